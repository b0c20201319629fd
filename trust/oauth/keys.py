"""The keys that access tokens are signed with: our own private ones, and an issuer's public ones (JWKS, RFC 7517).

The keys that are pinned for an agent (`trust.signing.pinned`) are such a set, too; only they can be ML-DSA (RFC 9964).

Of a JWKS only public asymmetric signature keys count, each for its own algorithm. Everything else in it (symmetric,
encryption, weak or unreadable keys, private keys that somebody published, in whichever entry their public half is, a
key ID that occurs twice) is passed over, so that a token which names it is signed by an unknown key.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import httpx
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from trust import private_keys
from trust.errors import ConfigurationError, KeysUnavailable, TokenKeyUnknown
from trust.oauth.metadata import origin_of
from trust.private_keys import ClassicalKey, PrivateKey
from trust.signing.algorithms import PublicKey
from trust.signing.jws import strict_json

FRESH = timedelta(minutes=5)  # how long a fetched key set is used without asking again
USABLE = timedelta(hours=1)  # how long it is used while the issuer cannot be reached: longer than any token lives
UNKNOWN_KID_REST = timedelta(seconds=30)  # anyone can make up key IDs: they cause one fetch in this time
FAILURE_REST = timedelta(seconds=10)  # after a failed fetch, so that an issuer in trouble is left in peace
FETCH_SECONDS = 3.0  # of the whole fetch: requests wait for it
MAX_JWKS_BYTES = 64 << 10  # 64 keys of a common kind, or 24 of ML-DSA-65
MAX_KEYS = 64  # of one issuer; a rotation needs two or three of each algorithm
MAX_KID_CHARACTERS = 256
RSA_BITS = range(2048, 8192 + 1)  # smaller is weak, larger costs the verifier more than it adds

# The algorithms that a key of each kind and curve is good for, the one that we sign with first. RSASSA-PKCS1-v1_5
# is not among them; `EdDSA` is the older name of `Ed25519` (RFC 9864), the same algorithm. ML-DSA keys have no curve
# and must say their `alg` (RFC 9964 section 3).
_ALGORITHMS: dict[tuple[object, object], tuple[str, ...]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("Ed25519", "EdDSA"),
    ("RSA", None): ("PS256",),
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
            KeysUnavailable: there are no keys that are recent enough: nothing can be said about the token.
        """

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        """Fetch what `find` will need, where that takes a fetch.

        Raises:
            KeysUnavailable: as `find`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key that signs tokens, with its algorithm and its key ID (RFC 7638 thumbprint)."""

    kid: str
    alg: str
    private_key: ClassicalKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new P-256 key, for ES256."""
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, private_key: PrivateKey) -> SigningKey:
        """Wrap a key.

        Raises:
            ConfigurationError: the key is not EC P-256, EC P-384 or Ed25519.
        """
        if not isinstance(private_key, ClassicalKey):
            raise ConfigurationError("signing key", got=type(private_key).__name__, expected="EC P-256/P-384, Ed25519")
        try:
            jwk = JWK.from_pyca(private_key.public_key())
        except KeyError:  # jwcrypto's word for a curve that it does not know
            jwk = JWK()
        algorithms = _ALGORITHMS.get((jwk.get("kty"), jwk.get("crv")), ())
        if not algorithms:
            raise ConfigurationError("signing key", got="another curve", expected="P-256, P-384 or Ed25519")
        return cls(kid=jwk.thumbprint(), alg=algorithms[0], private_key=private_key)

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None) -> SigningKey:
        """Read a PKCS#8 PEM key; a password exactly when it is encrypted.

        Raises:
            ConfigurationError: (or its WrongPassword and CredentialsError) as `private_keys.read`, and as `of`.
        """
        return cls.of(private_keys.read(pem, password))

    def to_pem(self, password: bytes) -> bytes:
        """The key as PKCS#8 PEM, encrypted with the password; `private_keys.write`."""
        return private_keys.write(self.private_key, password)

    @property
    def public_jwk(self) -> dict[str, str]:
        members: dict[str, str] = JWK.from_pyca(self.private_key.public_key()).export_public(as_dict=True)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.alg}


def public_jwks(keys: Iterable[SigningKey]) -> dict[str, list[dict[str, str]]]:
    """The JWKS that publishes these keys: their public halves, and nothing else."""
    return {"keys": [key.public_jwk for key in keys]}


@dataclass(frozen=True, slots=True)
class _Key:
    public_key: PublicKey
    algorithms: tuple[str, ...]


def _usable_keys(jwks: object) -> dict[str, _Key]:
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
    public = [_public_key(entry) for entry in exposed]
    return {kid: key for kid, key in found if times[kid] == 1 and kid not in kids and key.public_key not in public}


def _usable_key(entry: object) -> _Key | None:
    if not isinstance(entry, Mapping):
        return None
    kid, kty, operations = entry.get("kid"), entry.get("kty"), entry.get("key_ops", ["verify"])
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS:
        return None
    # RFC 7517 sections 4.2 and 4.3
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    public_key = _public_key(entry)
    if public_key is None or not _PRIVATE_MEMBERS.isdisjoint(entry):
        return None
    algorithms = _ALGORITHMS.get((kty, entry["crv"] if kty in ("EC", "OKP") else None), ())
    if "alg" in entry:  # RFC 7517 section 4.4: a key is for one algorithm where it says so
        algorithms = tuple(a for a in algorithms if a == entry["alg"])
    weak = isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size not in RSA_BITS
    return _Key(public_key, algorithms) if algorithms and not weak else None


def _public_key(entry: Mapping[str, object]) -> PublicKey | None:
    """The public key of an entry, whatever it is for; None where it has none that we know."""
    kty = entry.get("kty")
    if not isinstance(kty, str) or kty not in _PUBLIC_MEMBERS:
        return None
    members = {name: entry.get(name) for name in _PUBLIC_MEMBERS[kty]}
    if not all(isinstance(value, str) for value in members.values()):
        return None
    try:
        public_key = JWK(kty=kty, **members).get_op_key("verify")
    except (JWException, ValueError, TypeError):  # not on the curve, not base64url, a wrong length or curve
        return None
    return public_key if isinstance(public_key, PublicKey) else None


def _find(keys: Mapping[str, _Key], kid: str, alg: str) -> PublicKey:
    key = keys.get(kid)
    if key is None:
        raise TokenKeyUnknown("token is signed by an unknown key", got=kid, expected="a key of the issuer's JWKS")
    if alg not in key.algorithms:
        raise TokenKeyUnknown("key is for another algorithm", got=alg, expected=" or ".join(key.algorithms))
    return key.public_key


class StaticKeys:
    """A JWKS given by configuration, such as that of an authorization server in the same process.

    Raises:
        ConfigurationError: not a JWKS, or none of its keys can be used.
    """

    def __init__(self, jwks: Mapping[str, object]) -> None:
        try:
            self._keys = _usable_keys(jwks)
        except ValueError as error:
            raise ConfigurationError("JWKS", got=error, expected="a JWK set (RFC 7517)") from None
        if not self._keys:
            raise ConfigurationError("JWKS has no usable key", expected="a public signature key with a kid")

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        return _find(self._keys, kid, alg)

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        return


class RemoteKeys:
    """The JWKS at an https URL, fetched when it is needed and kept while the issuer is away.

    A key set is used for 5 minutes without asking, and for an hour where asking fails; an unknown key ID causes one
    fetch in 30 seconds. However many requests wait, there is one fetch, and it goes on when one of them is cancelled.
    Belongs to the event loop of its `http` client.

    Args:
        url: `jwks_uri` of the issuer's metadata, or of the configuration; never from a token.
        http: the client to fetch with. Its credentials other than TLS certificates are not sent.

    Raises:
        ConfigurationError: not an https URL.
    """

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        origin_of(url)
        self._url = url
        self._http = http
        self._keys: dict[str, _Key] = {}
        self._body_of_keys = b""
        self._fetched_at: datetime | None = None
        self._failed_at: datetime | None = None
        self._unknown_kid_at: datetime | None = None
        self._failure = "not fetched yet"
        self._fetch: asyncio.Task[None] | None = None

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        if not _within(self._fetched_at, USABLE, now):
            raise KeysUnavailable("keys of the issuer are not available", got=self._failure, do=f"look at {self._url}")
        return _find(self._keys, kid, alg)

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        if self._wants_fetch(kid, now):
            if self._fetch is None or self._fetch.done():
                self._fetch = asyncio.create_task(self._refresh(now))
            await asyncio.shield(self._fetch)
        if not _within(self._fetched_at, USABLE, now):
            raise KeysUnavailable("keys of the issuer are not available", got=self._failure, do=f"look at {self._url}")

    def _wants_fetch(self, kid: str | None, now: datetime) -> bool:
        if _within(self._failed_at, FAILURE_REST, now):
            return False
        if not _within(self._fetched_at, FRESH, now):
            return True
        if kid is None or kid in self._keys or _within(self._unknown_kid_at, UNKNOWN_KID_REST, now):
            return False
        self._unknown_kid_at = now
        return True

    async def _refresh(self, now: datetime) -> None:
        """Fetch once. A failure leaves the keys as they are: an attacker who breaks a fetch must not empty them."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._body()
            if body != self._body_of_keys:  # an unchanged set keeps its key objects, as `find` promises
                self._keys, self._body_of_keys = _usable_keys(strict_json(body)), body
        except Exception as error:
            # Whatever went wrong - network, TLS, status, content, a closed client - there are no new keys.
            self._failure = f"{type(error).__name__}: {error}"
            self._failed_at = now
        else:
            self._fetched_at = now
            self._failed_at = None

    async def _body(self) -> bytes:
        # `auth=None`: a client that adds access tokens to its requests must not do so here, where the token is not
        # meant for the receiver and fetching one may itself need these keys. Redirects would let the answer of one
        # host name another; a compressed answer could be larger than anyone counted.
        headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
        async with self._http.stream("GET", self._url, headers=headers, auth=None, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("compressed answer")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise ValueError(f"more than {MAX_JWKS_BYTES} bytes")
            return bytes(body)


def _within(since: datetime | None, limit: timedelta, now: datetime) -> bool:
    """Whether `since` is less than `limit` away from `now`.

    Either way: requests that overlap are not in order, so that `now` may be a little before. But a clock that was set
    far back must not keep a set for as long.
    """
    return since is not None and abs(now - since) < limit
