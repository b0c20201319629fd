"""The CA's private keys: made here, kept in PKCS#8 files that a password opens.

A key is any `ec.EllipticCurvePrivateKey`: that abstract class is the seam at which a key on a token (PKCS#11, a cloud
KMS) comes in, because the certificate builders call nothing of it but `public_key`, `curve` and `sign`.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from pki.errors import AuthorityDamaged, WrongPassword
from trust import errors, private_keys
from trust.credentials import read_bounded, write_atomically

MAX_KEY_BYTES = 16 << 10


def generate() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key. Ed25519 is left out: some verifiers refuse CAs that have one."""
    return ec.generate_private_key(ec.SECP256R1())


def save(key: ec.EllipticCurvePrivateKey, path: Path, password: str) -> None:
    """Write a key as encrypted PKCS#8 PEM (scrypt), 0600, in one step; `openssl pkey -in FILE` opens it."""
    if not password:
        raise WrongPassword("password of the CA", got="nothing", expected="at least one character")
    write_atomically(path, private_keys.write(key, password), mode=0o600)


def load(path: Path, password: str) -> ec.EllipticCurvePrivateKey:
    """Read a key that `save` wrote.

    Raises:
        WrongPassword: the password does not open it.
        AuthorityDamaged: it is not an encrypted EC key.
        CredentialsError: the file cannot be read.
    """
    pem = read_bounded(path, MAX_KEY_BYTES)
    damaged = AuthorityDamaged(f"{path} is damaged", expected="an encrypted PKCS#8 EC key", do="restore it")
    if b"BEGIN ENCRYPTED PRIVATE KEY" not in pem:
        raise damaged  # a key in the clear opens with every password: somebody has replaced it
    try:
        key = private_keys.read(pem, password)
    except errors.WrongPassword:
        raise WrongPassword(
            f"{path.name} does not open", got="a wrong password", expected="the password given to `a2a-pki init`"
        ) from None
    except errors.CredentialsError:
        raise damaged from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise damaged
    return key


def sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Sign a certificate, deterministically (RFC 6979): a weak random number cannot give the key away."""
    return builder.sign(key, _hash(key), ecdsa_deterministic=True)


def sign_crl(
    builder: x509.CertificateRevocationListBuilder, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateRevocationList:
    """Sign a revocation list, likewise."""
    return builder.sign(key, _hash(key), ecdsa_deterministic=True)


def _hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that fits the curve (RFC 5480 section 4)."""
    return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
