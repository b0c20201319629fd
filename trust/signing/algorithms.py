"""The signature algorithms: one key, one algorithm, one signature length. RFC 7518, RFC 8037, RFC 9864, RFC 9964.

ECDSA signing is deterministic (RFC 6979), so that no bad random number can give the key away.

ML-DSA-44 and ML-DSA-65 are post-quantum (FIPS 204). Their signatures are 2420 and 3309 bytes long and come with
certificates of 2 KiB and more, which no header line holds: they are made and read only in the body, that is inside
JSON, and only by verifiers whose list of algorithms names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from trust.errors import ConfigurationError, KeyMismatch, SignatureMalformed, SignatureWrong
from trust.private_keys import ml_dsa

MIN_RSA_BITS = 2048  # NIST SP 800-131A

PublicKey = (
    ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | rsa.RSAPublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
)


def verify(alg: str, key: object, signature: bytes, data: bytes) -> None:
    """Steps (4) and (5) of a verifier: return where `signature` is the key's over `data`.

    Args:
        alg: one of `READABLE_IN_BODY`, or RS256.
        key: a public key of `cryptography`.

    Raises:
        KeyMismatch: the key is not of the type or curve of `alg`.
        SignatureMalformed: the signature has not the exact length.
        SignatureWrong: it does not verify.
    """
    try:
        _VERIFY[alg](key, signature, data)
    except InvalidSignature:
        raise SignatureWrong("signature does not verify", expected=f"a valid {alg} signature by this key") from None


def signer(key: object, *, in_body: bool = False) -> tuple[str, Callable[[bytes], bytes]]:
    """The algorithm of a private key, and the function that signs with it.

    Args:
        key: a private key of `cryptography`, or what has the interface of one: an EC key on a token, for instance
            (`pki.keys.private_key`).
        in_body: the signature travels inside JSON, where there is room for ML-DSA.

    Raises:
        ConfigurationError: a key that nothing here signs with.
    """
    if _is_private(key):
        if isinstance(key.curve, ec.SECP256R1):
            return "ES256", lambda data: _ES256.sign(key, data)
        if isinstance(key.curve, ec.SECP384R1):
            return "ES384", lambda data: _ES384.sign(key, data)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "Ed25519", key.sign
    if in_body and isinstance(key, mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey):
        return ml_dsa(key.public_key()), key.sign
    more = ", ML-DSA-44 or -65" if in_body else " (ML-DSA signs only inside JSON: it fits no header line)"
    raise ConfigurationError("signing key", got=_kind(key), expected="a private key: EC P-256, P-384 or Ed25519" + more)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ecdsa:
    """ECDSA over one curve with one hash, its signatures written r || s (RFC 7518 section 3.4)."""

    curve: type[ec.EllipticCurve]
    size: int  # bytes of r and of s
    zero: bytes
    order: bytes
    signing: ec.ECDSA
    verifying: ec.ECDSA

    def sign(self, key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
        return _raw(key.sign(data, self.signing), self.size)

    def verify(self, key: object, signature: bytes, data: bytes) -> None:
        if not _is_public(key) or not isinstance(key.curve, self.curve):
            raise KeyMismatch("key", got=_kind(key), expected=str(self.curve.name))
        _exactly(signature, 2 * self.size)
        r, s = signature[: self.size], signature[self.size :]
        # 0 < r < order, and s likewise; of one length, big-endian numbers compare as their bytes do.
        if not (self.zero < r < self.order and self.zero < s < self.order):  # CVE-2022-21449: zeros verified in Java
            raise InvalidSignature
        key.verify(_der(r, s), data, self.verifying)


_ES256 = _Ecdsa(
    curve=ec.SECP256R1,
    size=32,
    zero=bytes(32),
    order=ec.SECP256R1.group_order.to_bytes(32),
    signing=ec.ECDSA(hashes.SHA256(), deterministic_signing=True),
    verifying=ec.ECDSA(hashes.SHA256()),
)
_ES384 = _Ecdsa(
    curve=ec.SECP384R1,
    size=48,
    zero=bytes(48),
    order=ec.SECP384R1.group_order.to_bytes(48),
    signing=ec.ECDSA(hashes.SHA384(), deterministic_signing=True),
    verifying=ec.ECDSA(hashes.SHA384()),
)


def _der(r: bytes, s: bytes) -> bytes:
    """r and s, positive and of one length of at most 48 bytes, as `cryptography` takes them (RFC 3279, 2.2.3)."""
    if not r[0] or not s[0]:  # one in 128: DER has no leading zeros
        return encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    # Where the first bit of a number is set, a zero before it says that it is positive.
    r = b"\0" + r if r[0] > 0x7F else r
    s = b"\0" + s if s[0] > 0x7F else s
    return b"\x30%c\x02%c%b\x02%c%b" % (len(r) + len(s) + 4, len(r), r, len(s), s)


def _raw(der: bytes, size: int) -> bytes:
    """r || s of a signature that `cryptography` has made: two short integers in one short sequence."""
    s_starts = 4 + der[3] + 2
    r, s = der[4 : s_starts - 2], der[s_starts:]
    return r[-size:].rjust(size, b"\0") + s[-size:].rjust(size, b"\0")  # a 33rd byte is the zero of `_der`


# The key classes are abstract, and `isinstance` of such takes ten times as long as a remembered answer for the type.
@lru_cache(maxsize=64)
def _is_subclass(kind: Any, expected: Any) -> bool:
    return issubclass(kind, expected)


def _is_private(key: Any) -> TypeGuard[ec.EllipticCurvePrivateKey]:
    kind: Any = type(key)
    return _is_subclass(kind, ec.EllipticCurvePrivateKey)


def _is_public(key: Any) -> TypeGuard[ec.EllipticCurvePublicKey]:
    kind: Any = type(key)
    return _is_subclass(kind, ec.EllipticCurvePublicKey)


def _verify_ed25519(key: object, signature: bytes, data: bytes) -> None:
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyMismatch("key", got=_kind(key), expected="Ed25519")
    _exactly(signature, 64)
    key.verify(signature, data)


def _verify_ps256(key: object, signature: bytes, data: bytes) -> None:
    _rsa(key, signature).verify(signature, data, _PSS, hashes.SHA256())


def _verify_rs256(key: object, signature: bytes, data: bytes) -> None:
    _rsa(key, signature).verify(signature, data, padding.PKCS1v15(), hashes.SHA256())


def _rsa(key: object, signature: bytes) -> rsa.RSAPublicKey:
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
        raise KeyMismatch("key", got=_kind(key), expected=f"RSA of at least {MIN_RSA_BITS} bits")
    _exactly(signature, (key.key_size + 7) // 8)
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class _MlDsa:
    """Pure ML-DSA with the empty context (RFC 9964 section 4)."""

    name: str
    public_key: type[mldsa.MLDSA44PublicKey] | type[mldsa.MLDSA65PublicKey]
    size: int  # of a signature: FIPS 204, table 2

    def verify(self, key: object, signature: bytes, data: bytes) -> None:
        if not isinstance(key, self.public_key):
            raise KeyMismatch("key", got=_kind(key), expected=self.name)
        _exactly(signature, self.size)
        key.verify(signature, data)


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)  # RFC 7518 section 3.5

# What can be verified in a header line. HMAC and RSA PKCS#1 v1.5 are not here, so no allow-list can bring them in:
# no message is ever signed so.
READABLE: Mapping[str, Callable[[object, bytes, bytes], None]] = {
    "ES256": _ES256.verify,
    "ES384": _ES384.verify,
    "Ed25519": _verify_ed25519,  # RFC 9864
    "EdDSA": _verify_ed25519,  # its older name, which would also cover Ed448
    "PS256": _verify_ps256,  # tokens of foreign issuers; nothing here signs with RSA
}
READABLE_IN_BODY: Mapping[str, Callable[[object, bytes, bytes], None]] = {
    **READABLE,
    "ML-DSA-44": _MlDsa(name="ML-DSA-44", public_key=mldsa.MLDSA44PublicKey, size=2420).verify,
    "ML-DSA-65": _MlDsa(name="ML-DSA-65", public_key=mldsa.MLDSA65PublicKey, size=3309).verify,
}
# In tokens, beside those of a header line: some issuers sign with nothing else. For who asks for it by name.
READABLE_IN_TOKENS: Mapping[str, Callable[[object, bytes, bytes], None]] = {**READABLE, "RS256": _verify_rs256}
_VERIFY = {**READABLE_IN_TOKENS, **READABLE_IN_BODY}
POST_QUANTUM = ("ML-DSA-44", "ML-DSA-65")  # to be added to a list of algorithms by who wants them


def _exactly(signature: bytes, size: int) -> None:
    if len(signature) != size:
        raise SignatureMalformed("signature", got=f"{len(signature)} bytes", expected=f"exactly {size}")


def _kind(key: object) -> str:
    return f"{type(key).__name__} {getattr(getattr(key, 'curve', None), 'name', '')}".strip()
