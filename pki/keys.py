"""The CA's private keys: made here, kept in PKCS#8 files that a password opens.

A key is any `ec.EllipticCurvePrivateKey`: that abstract class is the seam at which a key on a token (PKCS#11, a cloud
KMS) comes in, because the certificate builders call nothing of it but `public_key`, `curve` and `sign`.
"""

from __future__ import annotations

import base64
import secrets
import textwrap
from pathlib import Path

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pki.errors import AuthorityDamaged, WrongPassword
from trust.credentials import read_bounded, write_atomically

MAX_KEY_BYTES = 16 << 10

# OWASP's scrypt parameters for 16 MiB. More memory would be better still, but OpenSSL refuses to open a key that
# needs more than 32 MiB, and an operator must be able to open it without this program.
SCRYPT_N = 2**14
SCRYPT_R = 8
SCRYPT_P = 5

_PBES2 = x509.ObjectIdentifier("1.2.840.113549.1.5.13")  # RFC 8018 appendix A.4
_SCRYPT = x509.ObjectIdentifier("1.3.6.1.4.1.11591.4.11")  # RFC 7914 section 7
_AES256_CBC = x509.ObjectIdentifier("2.16.840.1.101.3.4.1.42")  # RFC 8018 appendix B.2.5


def generate() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key. Ed25519 is left out: some verifiers refuse CAs that have one."""
    return ec.generate_private_key(ec.SECP256R1())


def save(key: ec.EllipticCurvePrivateKey, path: Path, password: str) -> None:
    """Write a key as encrypted PKCS#8 PEM, 0600, in one step; `openssl pkey -in FILE` opens it.

    PBES2 with scrypt (RFC 7914) and AES-256-CBC. `cryptography` opens such files but writes only PBKDF2 with 2048
    rounds, which a graphics card guesses a thousand times faster, so the envelope is put together here.
    """
    write_atomically(path, encrypted_pem(key, password), mode=0o600)


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
        key = load_pem_private_key(pem, _bytes(password))
    except (ValueError, TypeError):
        raise WrongPassword(
            f"{path.name} does not open", got="a wrong password", expected="the password given to `a2a-pki init`"
        ) from None
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


def encrypted_pem(key: ec.EllipticCurvePrivateKey, password: str) -> bytes:
    """The key as an EncryptedPrivateKeyInfo (RFC 5958 section 3)."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    secret = Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(_bytes(password))
    padder = padding.PKCS7(128).padder()
    clear = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(clear) + padder.finalize()) + encryptor.finalize()
    scrypt = _Scrypt(salt=salt, cost=SCRYPT_N, block_size=SCRYPT_R, parallelization=SCRYPT_P)
    scheme = _Scheme(
        derivation=_Derivation(algorithm=_SCRYPT, parameters=scrypt),
        encryption=_Encryption(algorithm=_AES256_CBC, iv=iv),
    )
    der = asn1.encode_der(_Envelope(algorithm=_Algorithm(algorithm=_PBES2, parameters=scheme), sealed=sealed))
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()


def _hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that fits the curve (RFC 5480 section 4)."""
    return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()


def _bytes(password: str) -> bytes:
    if not password:
        raise WrongPassword("password of the CA", got="nothing", expected="at least one character")
    return password.encode()


@asn1.sequence
class _Scrypt:
    salt: bytes
    cost: int
    block_size: int
    parallelization: int


@asn1.sequence
class _Derivation:
    algorithm: x509.ObjectIdentifier
    parameters: _Scrypt


@asn1.sequence
class _Encryption:
    algorithm: x509.ObjectIdentifier
    iv: bytes


@asn1.sequence
class _Scheme:
    derivation: _Derivation
    encryption: _Encryption


@asn1.sequence
class _Algorithm:
    algorithm: x509.ObjectIdentifier
    parameters: _Scheme


@asn1.sequence
class _Envelope:
    algorithm: _Algorithm
    sealed: bytes
