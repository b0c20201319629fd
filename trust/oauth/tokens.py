"""Whether an access token lets its bearer in: JWTs (RFC 9068) bound to their holder, and nothing else.

`TokenValidator` says what a token of one issuer allows, or raises; `TokenValidators` does so for several issuers.
`trust.oauth.claims` has what a token says, `trust.oauth.presented` how it comes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Literal, Protocol, get_args

from trust.audit import AuditSink
from trust.clock import utc
from trust.errors import (
    ConfigurationError,
    TokenAudienceWrong,
    TokenBoundElsewhere,
    TokenError,
    TokenExpired,
    TokenIssuerWrong,
    TokenLifetimeTooLong,
    TokenMalformed,
    TokenNotBound,
    TokenNotYetValid,
    TokenRevoked,
    TokenWithoutCertificate,
    TokenWithoutProof,
    must_be,
    must_have,
)
from trust.identity import AgentID, PeerIdentity
from trust.oauth.claims import (
    ALGORITHMS,
    AccessToken,
    VerifiedToken,
    check_claims,
    claimed_issuer,
    parsed_token,
    verified_token,
)
from trust.oauth.dpop import Proof
from trust.oauth.keys import KeySource
from trust.oauth.metadata import check_issuer
from trust.signing.jws import MAX_COMPACT_BYTES

__all__ = ["MAX_LIFETIME", "AccessToken", "Binding", "Denylist", "TokenValidator", "TokenValidators"]

MAX_LIFETIME = timedelta(minutes=30)  # a stolen or outdated token is good for no longer
MAX_CACHED_TOKENS = 4096  # about 3 KiB each
MAX_WARNED_CLIENTS = 1024  # of the names in the log; whom it has forgotten it warns of again

Binding = Literal["certificate", "dpop"]  # RFC 8705 section 3, RFC 9449
CERTIFICATE: tuple[Binding, ...] = ("certificate",)

logger = logging.getLogger("a2a_trust.oauth")


class Denylist(Protocol):
    """Tokens that were revoked before their time. Asked on every use of a token: it must be quick."""

    def contains(self, issuer: str, jti: str) -> bool: ...

    async def prepare(self) -> None:
        """Fetch what `contains` will need, where that takes a fetch; `contains` raises where it could not be had."""


class TokenValidator:
    """Validates access tokens of one issuer for one resource.

    Remembers tokens that it has verified, so that one that comes with every request costs little; what can change
    (checks 3 and 10 to 12) is checked every time. Thread-safe.

    Not checked: scopes (`trust.oauth.scopes`), the peer's certificate itself (`trust.peers`), whether the request or
    its proof is a replay (`trust.gate`).

    Args:
        issuer: the exact `iss`, an https URL.
        audience: this resource, as it must occur in `aud`, such as its SPIFFE ID.
        keys: the issuer's keys.
        algorithms: the ones accepted, of `ALGORITHMS`.
        unsafe_rs256: accept RS256 as well, for an issuer that signs with nothing else (FAPI 2.0 forbids it).
        bindings: what a token may be bound to: "certificate", "dpop" (a key, where a proxy ends TLS), or both words. A
            token that is bound to both must satisfy both, whatever is named here.
        required_claims: claims that must be there, beside those of RFC 9068 section 2.2.
        max_lifetime: the longest `exp - iat` accepted. Of a client whose tokens live longer than 30 minutes the log and
            the trail say so, once.
        denylist: revoked tokens; None where tokens are only ever ended by their expiry.
        audit: the trail.

    Raises:
        ConfigurationError: no issuer identifier, an empty audience, no algorithm or an unsafe one, no binding, no
            lifetime; or another type, such as a URL for keys.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: AgentID | str,
        keys: KeySource,
        algorithms: Collection[str] = ALGORITHMS,
        unsafe_rs256: bool = False,
        bindings: Collection[Binding] = CERTIFICATE,
        required_claims: Collection[str] = (),
        max_lifetime: timedelta = MAX_LIFETIME,
        denylist: Denylist | None = None,
        audit: AuditSink | None = None,
    ) -> None:
        check_issuer(issuer)
        if not isinstance(audience, AgentID):
            must_be("audience", audience, str, expected="this resource, as tokens name it")
        if not audience:
            raise ConfigurationError("audience", got="nothing", expected="this resource, as tokens name it")
        must_have("keys", keys, "prepare", expected="a KeySource", do="use RemoteKeys(url, http) or StaticKeys(jwks)")
        if not algorithms or not set(algorithms) <= set(ALGORITHMS):
            raise ConfigurationError("token algorithms", got=list(algorithms), expected=f"some of {list(ALGORITHMS)}")
        if not bindings or isinstance(bindings, str) or not set(bindings) <= set(get_args(Binding)):
            expected = f"some of {list(get_args(Binding))}"
            raise ConfigurationError("bindings of tokens", got=bindings, expected=expected)
        must_be("required_claims", required_claims, Collection, expected="a collection of names")
        if denylist is not None:
            must_have("denylist", denylist, "prepare", expected="contains and prepare, as of Denylist")
        if max_lifetime <= timedelta(0):
            raise ConfigurationError("lifetime of tokens", got=max_lifetime, expected="more than nothing")
        self.issuers = (issuer,)
        self.audience = str(audience)
        self.bindings = frozenset(bindings)
        self._issuer = issuer
        self._keys = keys
        self._algorithms = (*algorithms, "RS256") if unsafe_rs256 else tuple(algorithms)
        self._required_claims = tuple(required_claims)
        self._max_lifetime = max_lifetime.total_seconds()
        self._warns = max_lifetime > MAX_LIFETIME
        self._warned: dict[str, None] = {}
        self._denylist = denylist
        self._audit = audit
        self._cache: dict[bytes, VerifiedToken] = {}
        self._lock = threading.Lock()

    async def prepare(self, token: str, *, now: datetime) -> None:
        """Let the key source and the denylist fetch what `validate` will need. A malformed token needs nothing.

        Raises:
            KeysUnavailable: the issuer's keys cannot be had.
        """
        try:
            known = self._cache.get(_digest(token))
            kid = known.kid if known is not None else parsed_token(token, self._algorithms).header.get("kid")
        except TokenError:
            return
        if isinstance(kid, str):
            await self._keys.prepare(kid, now=now)
        if self._denylist is not None:
            await self._denylist.prepare()

    def validate(
        self, token: str, *, peer: PeerIdentity | None, now: datetime, proof: Proof | None = None
    ) -> AccessToken:
        """Return what the token allows, or raise.

         1. size, three parts, strict base64url and JSON, no duplicate members      TokenMalformed
         2. `typ` is that of an access token, `alg` is allowed, no `crit`,
            no key or address of one                  TokenTypeWrong, TokenAlgorithmRefused, TokenMalformed
         3. `kid` names a key of the issuer, for this `alg`       TokenMalformed, TokenKeyUnknown, KeysUnavailable
         4. the signature verifies                                                  TokenSignatureWrong
         5. the claims that RFC 9068 requires are there, of the right types         TokenClaimMissing, -Malformed
         6. `iss` is the issuer, exactly                                            TokenIssuerWrong
         7. `scope`, `act` and `cnf` are well formed; the token is bound            TokenClaimMalformed, TokenNotBound
         8. `aud` contains this resource; further claims that are
            required are there                                    TokenAudienceWrong, TokenClaimMissing
         9. `exp - iat` is within the limit                                         TokenLifetimeTooLong
        10. it has not expired; `iat` and `nbf` have come          TokenExpired, TokenNotYetValid
        11. `cnf.x5t#S256`, where it is there, is the certificate of this peer, and `cnf.jkt`, where it is there,
            the key of this proof     TokenWithoutCertificate, TokenWithoutProof, TokenBoundElsewhere, TokenNotBound
        12. it is not revoked                                                       TokenRevoked, DenylistUnavailable

        No claim is looked at before the signature has been verified.

        Args:
            token: the compact JWS, from `presented_token`.
            peer: the verified other end of the connection that the token came over; None where it has no certificate.
            now: aware.
            proof: the verified proof that came with the token (`trust.oauth.dpop`), where it came by the scheme `DPoP`.
        """
        # 1. The size, before anything is made of the token.
        digest = _digest(token)
        verified = self._cache.get(digest)
        # 3. again: where the key was withdrawn or replaced since, the token is verified anew.
        if verified is None or self._keys.find(verified.kid, verified.alg, now=now) is not verified.key:
            verified = self._verify(token, now)
            self._remember(digest, verified)
        access = verified.token
        # 10.
        seconds = utc(now).timestamp()
        if seconds >= verified.expires:
            raise TokenExpired("token has expired", got=access.expires_at, expected=f"later than {now}", do="renew it")
        if seconds < verified.not_before:
            raise TokenNotYetValid(
                "token is not valid yet", got=access.issued_at, expected=f"not after {now}", do="compare both clocks"
            )
        # 11.
        if access.thumbprint:
            _check_certificate(access, peer)
        if access.key_thumbprint or proof is not None:
            _check_proof(access, proof)
        # 12.
        self._refuse_revoked(access.issuer, access.token_id)
        if self._warns:
            self._warn_of_long_life(verified)
        return access

    async def check_denylist(self, issuer: str, token_id: str) -> None:
        """Check 12 again, while a long answer goes out to whom the token let in. Whether it has expired is not asked.

        Raises:
            TokenRevoked, DenylistUnavailable: it may get no more of it.
        """
        if self._denylist is not None:
            await self._denylist.prepare()
            self._refuse_revoked(issuer, token_id)

    def _refuse_revoked(self, issuer: str, token_id: str) -> None:
        if self._denylist is not None and self._denylist.contains(issuer, token_id):
            raise TokenRevoked("token was revoked", got=token_id)

    def remembers(self, token: str) -> bool:
        """Whether it has verified this very token before: it is this validator's. It need not be valid any more."""
        return _digest(token) in self._cache

    def _verify(self, token: str, now: datetime) -> VerifiedToken:
        # 1. to 7.
        verified = verified_token(token, issuer=self._issuer, keys=self._keys, algorithms=self._algorithms, now=now)
        access = verified.token
        if not ((access.thumbprint and "certificate" in self.bindings) or (access.key_thumbprint and self._takes_dpop)):
            got = "a certificate" if access.thumbprint else "a key"
            expected = " or ".join("a certificate" if b == "certificate" else "a key" for b in sorted(self.bindings))
            raise TokenNotBound("what the token is bound to", got=got, expected=expected)
        # 8.
        if self.audience not in access.audience:
            raise TokenAudienceWrong("token is for another resource", got=access.audience, expected=self.audience)
        check_claims(access.claims, self._required_claims)
        # 9.
        lifetime = verified.expires - verified.issued_at
        if lifetime > self._max_lifetime:
            raise TokenLifetimeTooLong(
                "token lives too long", got=f"{lifetime:.0f} s", expected=f"<= {self._max_lifetime:.0f} s"
            )
        return verified

    @property
    def _takes_dpop(self) -> bool:
        return "dpop" in self.bindings

    def _remember(self, digest: bytes, verified: VerifiedToken) -> None:
        with self._lock:
            self._cache.pop(digest, None)
            if len(self._cache) >= MAX_CACHED_TOKENS:
                del self._cache[next(iter(self._cache))]  # the oldest: the nearest to its expiry
            self._cache[digest] = verified

    def _warn_of_long_life(self, verified: VerifiedToken) -> None:
        """The operator allows tokens that are good to a thief for longer than they should be: not silently."""
        lifetime, access = verified.expires - verified.issued_at, verified.token
        if lifetime <= MAX_LIFETIME.total_seconds() or access.client_id in self._warned:
            return
        with self._lock:
            if access.client_id in self._warned:
                return
            if len(self._warned) >= MAX_WARNED_CLIENTS:
                del self._warned[next(iter(self._warned))]
            self._warned[access.client_id] = None
        reason = f"token lives {lifetime:.0f} s, more than {MAX_LIFETIME.total_seconds():.0f} s are not recommended"
        logger.warning("%s: client %r, issuer %s", reason, access.client_id[:200], access.issuer)
        if self._audit is not None:
            self._audit.record(
                event="token",
                decision="allow",
                check=TokenLifetimeTooLong.check,
                subject=access.subject,
                target=self.audience,
                client=access.client_id,
                reason=reason,
            )


class TokenValidators:
    """Validates access tokens of several issuers for one resource, each by its own rules and with its own keys.

    The `iss` of a token, before it is verified, decides only whose validator is asked: nothing is pooled, so that the
    key of one issuer never verifies a token that names another. Thread-safe.

    Args:
        validators: one for each issuer; all for the same audience.

    Raises:
        ConfigurationError: none, two for one issuer, or different audiences; or no validators.
    """

    def __init__(self, *validators: TokenValidator) -> None:
        for validator in validators:
            must_be("token validators", validator, TokenValidator, expected="each as an argument of its own")
        self._by_issuer = {issuer: validator for validator in validators for issuer in validator.issuers}
        if not validators or len(self._by_issuer) != len(validators):
            raise ConfigurationError(
                "token validators", got=len(validators), expected="one for each issuer, at least one"
            )
        if len({validator.audience for validator in validators}) != 1:
            raise ConfigurationError("token validators", got="several audiences", expected="one: this resource")
        self.issuers = tuple(self._by_issuer)
        self.audience = validators[0].audience
        self.bindings: frozenset[Binding] = frozenset().union(*(validator.bindings for validator in validators))
        # Of all of them, for choosing only: each validator asks for its own again.
        self._algorithms = (*ALGORITHMS, "RS256")

    async def prepare(self, token: str, *, now: datetime) -> None:
        """As `TokenValidator.prepare`. A token of an unknown issuer needs nothing."""
        try:
            validator = self._of(token)
        except TokenError:
            return
        await validator.prepare(token, now=now)

    def validate(
        self, token: str, *, peer: PeerIdentity | None, now: datetime, proof: Proof | None = None
    ) -> AccessToken:
        """As `TokenValidator.validate`; the issuer is looked up after check 2.

        Raises:
            TokenIssuerWrong: it is none of these.
        """
        return self._of(token).validate(token, peer=peer, now=now, proof=proof)

    async def check_denylist(self, issuer: str, token_id: str) -> None:
        """As `TokenValidator.check_denylist`, of a token that `validate` has let in."""
        await self._by_issuer[issuer].check_denylist(issuer, token_id)

    def _of(self, token: str) -> TokenValidator:
        for validator in self._by_issuer.values():
            if validator.remembers(token):
                return validator
        issuer = claimed_issuer(token, self._algorithms)
        if issuer not in self._by_issuer:
            raise TokenIssuerWrong("issuer of the token", got=issuer, expected=" or ".join(self.issuers))
        return self._by_issuer[issuer]


def _check_certificate(access: AccessToken, peer: PeerIdentity | None) -> None:
    if peer is None:
        raise TokenWithoutCertificate("token came without a certificate", expected="the one that it is bound to")
    if not hmac.compare_digest(access.thumbprint.encode(), peer.thumbprint.encode()):
        raise TokenBoundElsewhere(
            "token is bound to another certificate",
            got=access.thumbprint,
            expected=peer.thumbprint,
            do="get a new token with the current certificate",
        )


def _check_proof(access: AccessToken, proof: Proof | None) -> None:
    if proof is None:  # whoever sends a bound token as a bearer token may have stolen it
        raise TokenWithoutProof(
            "token came without a proof of its key", expected="Authorization: DPoP, and a DPoP header"
        )
    if not access.key_thumbprint:
        raise TokenNotBound("token is bound to no key", got="a proof of one", expected="Authorization: Bearer")
    if not hmac.compare_digest(access.key_thumbprint.encode(), proof.thumbprint.encode()):
        raise TokenBoundElsewhere("token is bound to another key", got=access.key_thumbprint, expected=proof.thumbprint)


def _digest(token: str) -> bytes:
    """Of the whole text: another encoding of the same token is another entry, and is verified for itself."""
    if not isinstance(token, str) or len(token) > MAX_COMPACT_BYTES or not token.isascii():
        raise TokenMalformed("token", expected=f"a str of at most {MAX_COMPACT_BYTES} ASCII characters")
    return hashlib.blake2b(token.encode(), digest_size=32).digest()
