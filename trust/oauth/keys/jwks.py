"""An issuer's public keys, read from a JWKS (RFC 7517).

Only public asymmetric signature keys count, each for its own algorithm. Everything else (symmetric, encryption, weak
or unreadable keys, private keys that somebody published, in whichever entry their public half is, a key ID that occurs
twice) is passed over, so that a token which names it is signed by an unknown key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from trust.errors import ConfigurationError, TokenKeyUnknown
from trust.signing.algorithms import PublicKey

MAX_JWKS_BYTES = 64 << 10  # 64 keys of a common kind, or 24 of ML-DSA-65
MAX_KEYS = 64  # of one issuer; a rotation needs two or three of each algorithm
MAX_KID_CHARACTERS = 256
RSA_BITS = range(2048, 8192 + 1)  # smaller is weak, larger costs the verifier more than it adds

# The algorithms that a key of each kind and curve is good for, the one that we sign with first. What a verifier takes
# is its own decision: RS256 is here for those validators alone that are told to take it. `EdDSA` is the older name of
# `Ed25519` (RFC 9864), the same algorithm. ML-DSA keys have no curve and must say their `alg` (RFC 9964 section 3).
_ALGORITHMS: dict[tuple[object, object], tuple[str, ...]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("Ed25519", "EdDSA"),
    ("RSA", None): ("PS256", "RS256"),
    ("AKP", None): ("ML-DSA-44", "ML-DSA-65"),
}
_PUBLIC_MEMBERS = {"EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "RSA": ("n", "e"), "AKP": ("alg", "pub")}
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})


class KeySource(Protocol):
    """The public keys of one issuer."""

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        """The key with this ID for this algorithm; the same object until the key set changes. Does no IO.

        Raises:
            TokenKeyUnknown: there is no such key.
            KeysUnavailable: there are no keys that are recent enough, or this one may be newer than they are: nothing
                can be said about the token.
        """

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        """Fetch what `find` will need, where that takes a fetch.

        Raises:
            KeysUnavailable: as `find`.
        """


class StaticKeys:
    """A JWKS given by configuration, such as that of an authorization server in the same process.

    Raises:
        ConfigurationError: not a JWKS, or none of its keys can be used.
    """

    def __init__(self, jwks: Mapping[str, object]) -> None:
        try:
            self._keys = usable_keys(jwks)
        except ValueError as error:
            raise ConfigurationError("JWKS", got=error, expected="a JWK set (RFC 7517)") from None
        if not self._keys:
            raise ConfigurationError("JWKS has no usable key", expected="a public signature key with a kid")

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        return find(self._keys, kid, alg)

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        return


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a set, and what it is good for."""

    public_key: PublicKey
    algorithms: tuple[str, ...]


def find(keys: Mapping[str, Key], kid: str, alg: str) -> PublicKey:
    """The key with this ID for this algorithm.

    Raises:
        TokenKeyUnknown: there is none.
    """
    key = keys.get(kid)
    if key is None:
        raise TokenKeyUnknown("token is signed by an unknown key", got=kid, expected="a key of the issuer's JWKS")
    if alg not in key.algorithms:
        raise TokenKeyUnknown("key is for another algorithm", got=alg, expected=" or ".join(key.algorithms))
    return key.public_key


def usable_keys(jwks: object) -> dict[str, Key]:
    """The usable keys of a JWKS by key ID.

    Raises:
        ValueError: not a JWKS, or too many keys.
    """
    entries = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError('not a JSON object with a "keys" list')
    if len(entries) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys")
    found = [(entry["kid"], key) for entry in entries if (key := _usable_key(entry)) is not None]
    # Which of two keys with one ID is meant cannot be known, and trying both would let the weaker one decide.
    times = Counter(kid for kid, _ in found)
    # A private key that is in public is everyone's: what it signs proves nothing, by whichever entry it is found.
    exposed = [entry for entry in entries if isinstance(entry, Mapping) and not _PRIVATE_MEMBERS.isdisjoint(entry)]
    kids = [entry.get("kid") for entry in exposed]
    public = [public_key(entry) for entry in exposed]
    return {kid: key for kid, key in found if times[kid] == 1 and kid not in kids and key.public_key not in public}


def _usable_key(entry: object) -> Key | None:
    if not isinstance(entry, Mapping):
        return None
    kid = entry.get("kid")
    return key_of(entry) if isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARACTERS else None


def key_of(entry: Mapping[str, object]) -> Key | None:
    """The key of one JWK, whatever its ID; None where it is not one public key for signatures that we take."""
    # RFC 7517 sections 4.2 and 4.3
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    key = public_key(entry)
    if key is None or not _PRIVATE_MEMBERS.isdisjoint(entry):
        return None
    algorithms = algorithms_of(entry)
    weak = isinstance(key, rsa.RSAPublicKey) and key.key_size not in RSA_BITS
    return Key(key, algorithms) if algorithms and not weak else None


def public_key(entry: Mapping[str, object]) -> PublicKey | None:
    """The public key of a JWK, whatever it is for; None where it has none that we know."""
    kty = entry.get("kty")
    if not isinstance(kty, str) or kty not in _PUBLIC_MEMBERS:
        return None
    members = {name: entry.get(name) for name in _PUBLIC_MEMBERS[kty]}
    if not all(isinstance(value, str) for value in members.values()):
        return None
    try:
        key = JWK(kty=kty, **members).get_op_key("verify")
    except (JWException, ValueError, TypeError):  # not on the curve, not base64url, a wrong length or curve
        return None
    return key if isinstance(key, PublicKey) else None


def algorithms_of(entry: Mapping[str, object]) -> tuple[str, ...]:
    """What the key of a JWK is good for; only one where it says so (RFC 7517 section 4.4)."""
    kty = entry.get("kty")
    algorithms = _ALGORITHMS.get((kty, entry.get("crv") if kty in ("EC", "OKP") else None), ())
    return tuple(a for a in algorithms if a == entry["alg"]) if "alg" in entry else algorithms


def public_members(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey) -> dict[str, str]:
    """The JWK members of a public key; none for a curve that has no JWK."""
    try:
        members: dict[str, str] = JWK.from_pyca(key).export_public(as_dict=True)
    except KeyError:  # jwcrypto's word for a curve that it does not know
        return {}
    members.pop("kid", None)
    return members


def thumbprint(entry: Mapping[str, Any]) -> str:
    """The RFC 7638 thumbprint of a JWK that has a `public_key`, with SHA-256."""
    found: str = JWK(**{name: entry[name] for name in ("kty", *_PUBLIC_MEMBERS[entry["kty"]])}).thumbprint()
    return found
