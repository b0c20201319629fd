"""Private keys at rest: PKCS#8 files (RFC 5958) that a password opens, here and with `openssl pkey`.

Files are read as every tool writes them. Ours are written with PBES2, scrypt (RFC 7914) and AES-256-CBC: `cryptography`
opens such files but writes only PBKDF2 with 2048 rounds, which a graphics card guesses a thousand times faster, so the
envelope is put together here.
"""

from __future__ import annotations

import base64
import secrets
import textwrap
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from trust.errors import ConfigurationError, CredentialsError, WrongPassword

# OWASP's scrypt parameters for 16 MiB. More memory would be better still, but OpenSSL refuses to open a key that
# needs more than 32 MiB, and an operator must be able to open it without this program.
SCRYPT_N = 2**14
SCRYPT_R = 8
SCRYPT_P = 5

ClassicalKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey  # those that messages and tokens are signed with
PostQuantumKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = ClassicalKey | PostQuantumKey

_PBES2 = x509.ObjectIdentifier("1.2.840.113549.1.5.13")  # RFC 8018 appendix A.4
_SCRYPT = x509.ObjectIdentifier("1.3.6.1.4.1.11591.4.11")  # RFC 7914 section 7
_AES256_CBC = x509.ObjectIdentifier("2.16.840.1.101.3.4.1.42")  # RFC 8018 appendix B.2.5


_NEW: dict[str, Callable[[], PrivateKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
}
KINDS = tuple(_NEW)
_ML_DSA: dict[type, str] = {
    mldsa.MLDSA44PublicKey: "ML-DSA-44",
    mldsa.MLDSA65PublicKey: "ML-DSA-65",
    mldsa.MLDSA87PublicKey: "ML-DSA-87",
}
POST_QUANTUM = frozenset(_ML_DSA.values())


def generate(kind: str) -> PrivateKey:
    """A new key of one of `KINDS`.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in _NEW:
        raise ConfigurationError("kind of key", got=kind, expected=" or ".join(KINDS))
    return _NEW[kind]()


def successor(key: PrivateKey) -> PrivateKey:
    """A new key to follow this one: of its kind where that is post-quantum, which somebody chose; else P-256."""
    return generate(ml_dsa(key.public_key()) or "P-256")


def ml_dsa(public_key: object) -> str:
    """The name of a post-quantum key, such as "ML-DSA-44" (FIPS 204); the empty string for any other."""
    return next((name for kind, name in _ML_DSA.items() if isinstance(public_key, kind)), "")


def read(pem: bytes, password: str | bytes | None) -> PrivateKey:
    """The private key of a PEM text.

    Not checked: the curve of the key, and whether it belongs to anything.

    Args:
        password: of an encrypted key; None for one in the clear. One in the clear where a password is given is refused:
            it would open with every password, so anybody may have put it there.

    Raises:
        WrongPassword: the key is encrypted and the password missing or wrong, or a password given and it is not.
        CredentialsError: not a PEM private key, damaged, or not EC, Ed25519 or ML-DSA.
    """
    key: object
    try:
        # First without, which tells a key that is locked from a text that is no key.
        key = load_pem_private_key(pem, None)
    except TypeError:
        key = _unlocked(pem, password)
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable() from None
    else:
        if password:
            raise WrongPassword("private key is not encrypted", expected="a password only for a key that has one")
    if not isinstance(key, PrivateKey):
        raise CredentialsError("private key", got=type(key).__name__, expected="an EC, Ed25519 or ML-DSA key")
    return key


def write(key: PrivateKey, password: str | bytes) -> bytes:
    """The key as encrypted PEM: an EncryptedPrivateKeyInfo (RFC 5958 section 3).

    Raises:
        CredentialsError: the password is empty.
    """
    if not password:
        raise CredentialsError("password of the private key is empty", do="choose one")
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


def _unlocked(pem: bytes, password: str | bytes | None) -> object:
    if not password:
        raise WrongPassword("private key is encrypted", expected="its password", do="give the password")
    try:
        return load_pem_private_key(pem, _bytes(password))
    except UnsupportedAlgorithm:
        raise _unreadable() from None
    except ValueError:
        raise WrongPassword("private key cannot be decrypted", expected="the right password") from None


def _unreadable() -> CredentialsError:
    return CredentialsError("private key is not readable", expected="a PEM private key (PKCS#8): EC, Ed25519 or ML-DSA")


def _bytes(password: str | bytes) -> bytes:
    return password.encode() if isinstance(password, str) else password


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
