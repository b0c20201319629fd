"""The CA's private keys: made here or on a token, kept as PKCS#8 that a password opens, or never seen at all.

What signs is a `Signer`. A private key of `cryptography` is one; a key on a token (`pki.pkcs11`) is another. An agent's
key can be on a token, too: `private_key` of it is one that `trust` signs messages, cards, HTTP and tokens with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from pki import pkcs11
from pki.der import Unsigned
from pki.errors import AuthorityDamaged, KeyStoreError, WrongPassword
from pki.records import IssuerRecord, PendingKey
from trust import errors, private_keys

MAX_PASSWORD_BYTES = 4096  # a file that holds one is read as far as that


class Signer(Protocol):
    """What holds an EC key and signs with it, where nobody needs to see the key."""

    def public_key(self) -> ec.EllipticCurvePublicKey: ...

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """The DER signature over `data`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A new CA key: what signs with it, and how the store keeps it."""

    signer: Signer
    pem: bytes | None = field(default=None, repr=False)  # encrypted PKCS#8
    uri: str | None = None  # on a token


def make_key(key_store: str | None, password: str | None, pin: str | None) -> KeyPair:
    """A new CA key: on a token, where `key_store` names one, or here, and then encrypted with the password.

    Raises:
        WrongPassword: there is nothing to protect it with.
        KeyStoreError: the token cannot be used.
    """
    if key_store is not None:
        on_token = pkcs11.generate_on_token(key_store, pin)
        return KeyPair(signer=on_token, uri=on_token.uri)
    if password is None:
        raise locked()
    key = generate()
    return KeyPair(signer=key, pem=write(key, password))


def locked() -> WrongPassword:
    return WrongPassword("CA is locked", got="no password", expected="the password of the CA")


def generate() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key. Ed25519 is left out: some verifiers refuse CAs that have one."""
    return ec.generate_private_key(ec.SECP256R1())


def write(key: ec.EllipticCurvePrivateKey, password: str) -> bytes:
    """The key as encrypted PKCS#8 PEM (scrypt); `openssl pkey` opens it.

    Raises:
        WrongPassword: the password is empty, or too long to be read again, or no text.
    """
    if not password:
        raise WrongPassword("password of the CA", got="nothing", expected="at least one character")
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise WrongPassword("password of the CA", got="other bytes", expected="a password in UTF-8") from None
    if size > MAX_PASSWORD_BYTES:
        raise WrongPassword("password of the CA", got=f"{size} bytes", expected=f"at most {MAX_PASSWORD_BYTES}")
    return private_keys.write(key, password)


def read(pem: bytes, password: str, name: str = "key of the CA") -> ec.EllipticCurvePrivateKey:
    """Read what `write` wrote.

    Not checked: whose key it is (`open_signer` does that).

    Args:
        name: of the key, for the error.

    Raises:
        WrongPassword: the password does not open it.
        AuthorityDamaged: it is not an encrypted EC key.
    """
    damaged = AuthorityDamaged(
        f"{name} is damaged", expected="an encrypted PKCS#8 EC key on P-256 or P-384", do="restore it"
    )
    if b"BEGIN ENCRYPTED PRIVATE KEY" not in pem:
        raise damaged  # a key in the clear opens with every password: somebody has replaced it
    try:
        key = private_keys.read(pem, password)
    except errors.WrongPassword:
        got = "a wrong password" if password else "no password"
        expected = "the password that it was written with (`a2a-pki init`, or the last `passwd` before)"
        raise WrongPassword(f"{name} does not open", got=got, expected=expected) from None
    except errors.CredentialsError:
        raise damaged from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise damaged
    return key


def open_signer(
    issuer: IssuerRecord, *, password: str | None, pin: str | None, modules: Collection[str] = ()
) -> Signer:
    """The key of a CA, from its encrypted PEM or from the token that its URI names.

    Args:
        modules: PKCS#11 modules that may be loaded, by their paths.

    Raises:
        WrongPassword: the password, or the PIN, is missing or wrong.
        KeyStoreError: the key is kept elsewhere, or the token cannot be used.
        AuthorityDamaged: what opened is not the key of the CA's certificate.
    """
    if not issuer.online:
        raise KeyStoreError(
            f"key of the {issuer.kind} CA is not here",
            expected="a key in the database or on a token",
            do="have it sign where it is: `a2a-pki ceremony request`" if issuer.kind == "root" else "restore a backup",
        )
    signer = _opened(issuer, f"key of the {issuer.kind} CA", password, pin, modules)
    if signer.public_key() != issuer.certificate.public_key():
        raise AuthorityDamaged(
            f"key of the {issuer.kind} CA is not the one in its certificate",
            expected=f"the key with identifier {issuer.key_id}",
            do="restore a backup",
        )
    return signer


def open_pending(
    pending: PendingKey, *, password: str | None, pin: str | None, modules: Collection[str] = ()
) -> Signer:
    """The key that waits for its certificate, if it is the one of its request.

    Whoever can write into the database could put a request of his own there, and have a root certify it.

    Raises:
        WrongPassword, KeyStoreError: as `open_signer`.
        AuthorityDamaged: what opened is not the key of the request, or not the one of its identifier.
    """
    signer = _opened(pending, "key that waits for its certificate", password, pin, modules)
    try:
        requested = x509.load_der_x509_csr(pending.csr).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        requested = None
    own = signer.public_key()
    if requested != own or x509.SubjectKeyIdentifier.from_public_key(own).digest.hex() != pending.key_id:
        raise AuthorityDamaged(
            "request for the next intermediate",
            got="one for another key",
            expected="the request that this CA made",
            do="restore a backup, and find out who has written into the database",
        )
    return signer


def _opened(
    kept: IssuerRecord | PendingKey, name: str, password: str | None, pin: str | None, modules: Collection[str]
) -> Signer:
    if kept.key_pem is not None:
        return read(kept.key_pem, password or "", name)
    if not pin:
        raise WrongPassword("PIN of the token", got="nothing", expected="the PIN that opens it")
    return pkcs11.open_on_token(pkcs11.named(kept.key_uri or "", modules), pin)


def sign(builder: x509.CertificateBuilder, signer: Signer) -> x509.Certificate:
    """Sign a certificate; where the key is ours, deterministically (RFC 6979): no weak random number gives it away.

    Raises:
        KeyStoreError: a token failed, or returned what is no signature of its key.
    """
    key = private_key(signer)
    return builder.sign(key, _hash(key), ecdsa_deterministic=True)


def sign_agent(unsigned: Unsigned, signer: Signer) -> tuple[x509.Certificate, bytes]:
    """Sign the certificate of an agent, likewise; with its DER, which then need not be made once more."""
    key = private_key(signer)
    return unsigned.sign(key, _hash(key))


def sign_crl(builder: x509.CertificateRevocationListBuilder, signer: Signer) -> x509.CertificateRevocationList:
    """Sign a revocation list, likewise."""
    key = private_key(signer)
    return builder.sign(key, _hash(key), ecdsa_deterministic=True)


def sign_csr(builder: x509.CertificateSigningRequestBuilder, signer: Signer) -> x509.CertificateSigningRequest:
    """Sign a certificate request, likewise: for a CA whose certificate somebody else signs."""
    key = private_key(signer)
    return builder.sign(key, _hash(key), ecdsa_deterministic=True)


def private_key(signer: Signer) -> ec.EllipticCurvePrivateKey:
    """The signer as the builders and JWS take it: a private key of `cryptography`, if only by its class.

        key = private_key(pkcs11.open_on_token(uri, pin))
        credentials = trust.Credentials.of(chain, key)  # the chain was issued for `requests.make(key, agent_id)`

    With a key on a token such credentials sign, and nothing else: TLS and files need the key itself, and get a
    `KeyStoreError`. So an agent has others for its connections, and sends this chain along (`MessageSigner`, `chain`).
    """
    return signer if isinstance(signer, ec.EllipticCurvePrivateKey) else _Adapted(signer)


class _Adapted(ec.EllipticCurvePrivateKey):
    """A signer that is no key of `cryptography`.

    Each signature is verified before anything is made of it. A token that returns rubbish must not make certificates
    that everybody refuses, and a faulty ECDSA signature can give the key away.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._public_key = signer.public_key()

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # type: ignore[override]
        signature = self._signer.sign(data, signature_algorithm)
        try:
            self._public_key.verify(signature, data, signature_algorithm)
        except InvalidSignature:
            raise KeyStoreError(
                "token returned a wrong signature", expected="one by the key that it was asked for", do="check it"
            ) from None
        return signature

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def exchange(self, *_: object) -> NoReturn:
        raise self._refusal()

    def private_numbers(self) -> NoReturn:
        raise self._refusal()

    def private_bytes(self, *_: object) -> NoReturn:
        raise self._refusal()

    def __copy__(self) -> _Adapted:
        return self

    def __deepcopy__(self, memo: object) -> _Adapted:
        return self

    @staticmethod
    def _refusal() -> KeyStoreError:
        return KeyStoreError("key does not leave its token", expected="a signature as the only use of it")


_CURVES = (ec.SECP256R1, ec.SECP384R1)


def _hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that fits the curve (RFC 5480 section 4)."""
    return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
