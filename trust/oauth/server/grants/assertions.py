"""Identity chaining: from the authorization server of one trust domain to that of another, for the same subject.

An agent of domain A that was called with a token of A asks A for an *assertion* (RFC 8693, `requested_token_type` JWT):
a JWT authorization grant for the one other server that it names. It brings that to the server of domain B (RFC 7523),
which trusts A by declaration (`trust.oauth.server.grants.partners`), and gets a token of B. As
draft-ietf-oauth-identity-chaining has it, and narrower: an assertion is for one holder, once, for a minute. So it has
the claims of an access token bound to a certificate (`trust.oauth.claims`), and an `act`, whoever its issuer is.

What was granted in A ends in B when it would have ended in A: `grant_exp` says when that is. A *revocation* in A does
not reach B: a token of B that was issued before lives to its end, some minutes, or until B revokes it.

Its `typ` is its own, so that no assertion is ever taken for an access token, nor an access token for an assertion.

Pure, as `grant`. Both servers' sides are here, A's first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from trust.errors import (
    AssertionBoundElsewhere,
    AssertionIssuerUnknown,
    AssertionRefused,
    AssertionSubjectRefused,
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    IdentityError,
    KeysUnavailable,
    PartnerUnavailable,
    SignatureError,
    TokenError,
)
from trust.identity import AgentID
from trust.oauth.claims import ALGORITHMS, AccessToken, verified_token
from trust.oauth.metadata import JWT_TYPE
from trust.oauth.server.grants.exchange import MAX_DELEGATIONS, check_delegation, exchanged
from trust.oauth.server.grants.grant import Grant, TokenRequest, grant_of, scopes_of, target_of
from trust.oauth.server.grants.partners import PartnerIssuer
from trust.oauth.server.store import Issued, UsedAssertion
from trust.signing import jws

TYPES = ("authorization-grant+jwt", "application/authorization-grant+jwt")  # draft-ietf-oauth-rfc7523bis
LIFETIME = timedelta(seconds=60)  # of ours: it is on its way to the other server at once
MAX_LIFETIME = timedelta(minutes=5)  # of a partner's: what is longer was not made for one use
MAX_ID_CHARACTERS = 256  # of a `jti`
MAX_GRANT_SECONDS = 24 * 3600  # what a partner passes on ends within a day; the client's registration ends it earlier


def assertion_for_partner(request: TokenRequest, subject: AccessToken, parent: Issued | None) -> Grant:
    """An assertion for another authorization server, made of a subject token that the client was called with.

    1. to 4. as `check_delegation`                                       SubjectTokenRefused, DelegationRefused
    5. one `resource` (or `audience`): the issuer of a server that the client may go to   TargetRefused
    6. the scopes are named, and covered by the subject token and by the registration     ScopeRefused
    7. the time scopes allow this time                                                    ScopeRefused

    Not checked: whether the other server believes us, and what it makes of the scopes: they have its meaning there.
    """
    # 1. to 4.
    parent = check_delegation(request, subject, parent)
    # 5. to 7.
    grant = exchanged(request, subject, parent, target=target_of(request, request.client.assertion_audiences))
    expires_at = min(grant.issued.expires_at, grant.issued.issued_at + LIFETIME)
    return replace(
        grant,
        claims={**grant.claims, "exp": int(expires_at.timestamp()), "grant_exp": grant.claims["exp"]},
        issued=replace(grant.issued, expires_at=expires_at),
        expires_in=min(grant.expires_in, int(LIFETIME.total_seconds())),
        token_type=JWT_TYPE,
        typ=TYPES[0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """What a partner says of a client of ours: signature, issuer, time, holder and subject are verified, use is not."""

    partner: PartnerIssuer
    token: AccessToken  # whose claims it has
    ends_at: datetime  # of everything that is made of it


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedAssertion:
    """An assertion that nothing is known of but whom it says it is from. Its keys can be fetched, if they must be."""

    text: str = field(repr=False)
    kid: str
    partner: PartnerIssuer


def presented_assertion(request: TokenRequest) -> PresentedAssertion:
    """The assertion of a request and the partner whose keys decide about it; nothing else in it is looked at.

    Raises:
        GrantNotAllowed: the client is not registered for scopes that an assertion may bring it.
        GrantRequestMalformed: there is none.
        AssertionRefused: not a JWS of the type and the algorithms of assertions.
        AssertionIssuerUnknown: of an issuer that is no partner.
    """
    client, policy = request.client, request.policy
    if not client.assertion_scopes:
        raise GrantNotAllowed(
            "client may not bring assertions", got=client.client_id, do="register assertion_scopes for it"
        )
    text = request.form.get("assertion", "")
    if not text:
        raise GrantRequestMalformed("assertion", got="none", expected="a JWT of another authorization server")
    try:
        parsed = jws.parse_compact(text, algorithms=ALGORITHMS, typ=TYPES, understood=())
        claims = jws.strict_json(parsed.payload)
    except SignatureError as error:
        raise AssertionRefused(
            "assertion is no assertion", got=error.check, expected=f"a JWS of typ {TYPES[0]}"
        ) from None
    kid, issuer = parsed.header.get("kid"), claims.get("iss") if isinstance(claims, dict) else None
    if not isinstance(kid, str) or not isinstance(issuer, str):
        raise AssertionRefused("assertion names no key or no issuer", expected="a kid and an iss")
    partner = policy.partners.current().find(issuer)
    # We ourselves are nobody's partner: an assertion that was meant for another server would be a token here.
    if partner is None or issuer == policy.issuer:
        raise AssertionIssuerUnknown("assertion is of an unknown issuer", got=issuer, expected="a declared partner")
    return PresentedAssertion(text=text, kid=kid, partner=partner)


def read_assertion(request: TokenRequest, presented: PresentedAssertion) -> Assertion:
    """What an assertion says, where all of this holds. RFC 7523 section 3.

    1. the JWS is well-formed and of its type, and a key of this partner has signed it     AssertionRefused
    2. it has the claims of an access token and an `act`, each of the right type           AssertionRefused
    3. it is for this server alone                                                         AssertionRefused
    4. it has begun, has not ended, and is a short one                                     AssertionRefused
    5. it is bound to the certificate of this connection, whose agent is the actor         AssertionBoundElsewhere
    6. subject and actors are of the trust domains that the partner speaks for             AssertionSubjectRefused
    7. the chain of actors is not too long                                                 DelegationRefused

    Raises:
        PartnerUnavailable: the partner's keys cannot be had.
    """
    partner, peer, now = presented.partner, request.peer, request.now
    # 1. and 2.
    try:
        verified = verified_token(presented.text, issuer=partner.issuer, keys=partner.keys, now=now, types=TYPES)
    except KeysUnavailable as error:
        raise PartnerUnavailable(f"keys of {partner.issuer}", got=error.check, do="look at its JWKS") from None
    except TokenError as error:
        # Only the name of the check: what it says of the content is not for our logs.
        raise AssertionRefused(f"assertion is not one of {partner.issuer}", got=error.check) from None
    token = verified.token
    if not token.actors or len(token.token_id) > MAX_ID_CHARACTERS:
        raise AssertionRefused("assertion", got="no act, or a long jti", expected="the claims of an assertion")
    ends_at = _ends_at(token)
    # 3. Any other name in it is another server that could use it.
    if token.audience != (request.policy.issuer,):
        raise AssertionRefused("assertion is for another server", got=token.audience, expected=request.policy.issuer)
    # 4.
    seconds = now.timestamp()
    if not verified.not_before <= seconds < verified.expires:
        raise AssertionRefused(
            "assertion is not valid now", got=f"{token.issued_at} to {token.expires_at}", expected=f"around {now}"
        )
    if token.expires_at - token.issued_at > MAX_LIFETIME:
        raise AssertionRefused(
            "assertion lives too long", got=token.expires_at - token.issued_at, expected=f"at most {MAX_LIFETIME}"
        )
    # 5. One that is bound to a key of its holder's, too (DPoP), asks for a proof that nobody takes here.
    if token.key_thumbprint or token.thumbprint != peer.thumbprint or token.actors[0] != str(peer.agent_id):
        raise AssertionBoundElsewhere(
            "assertion is another agent's, or for another certificate", got=token.actors[0], expected=str(peer.agent_id)
        )
    # 6.
    for name in (token.subject, *token.actors):
        try:
            domain = AgentID.parse(name).trust_domain
        except IdentityError:
            domain = ""
        if domain not in partner.trust_domains:
            raise AssertionSubjectRefused(
                f"{partner.issuer} may not speak for it", got=name, expected="of " + " or ".join(partner.trust_domains)
            )
    # 7.
    if len(token.actors) > MAX_DELEGATIONS:
        raise DelegationRefused("too many actors", expected=f"at most {MAX_DELEGATIONS} in one token")
    return Assertion(partner=partner, token=token, ends_at=ends_at)


def token_for_assertion(request: TokenRequest, assertion: Assertion) -> Grant:
    """A token of ours for the subject of a partner's assertion. RFC 7523 section 2.1.

    1. one `resource`, which the client may ask tokens for                                           TargetRefused
    2. the scopes are named, and covered by the assertion, the partner's limit and the registration  ScopeRefused
    3. the time scopes allow this time                                                               ScopeRefused

    That a person has approved something in the partner's domain is not said here: our own rules ask again.

    Not checked: whether the assertion was used before; the store does that last, so that what is refused uses up none.
    """
    token, partner, client = assertion.token, assertion.partner, request.client
    # 1.
    target = target_of(request, client.resources)
    # 2.
    scopes = scopes_of(request, token.scopes, "the assertion brings")
    scopes_of(request, partner.scopes, "its issuer may bring")
    scopes_of(request, client.assertion_scopes, "the client may bring")
    # 3. Of what a partner wrote only what was checked is said in our name: of `act`, the names.
    grant = grant_of(
        request,
        scopes=scopes,
        target=target,
        subject=token.subject,
        actors=token.actors,
        not_after=assertion.ends_at,
    )
    used = UsedAssertion(issuer=partner.issuer, token_id=token.token_id, expires_at=token.expires_at)
    return replace(grant, assertion=used)


def _ends_at(token: AccessToken) -> datetime:
    """When the authority behind an assertion ends; with the assertion itself where its issuer does not say."""
    ends = token.claims.get("grant_exp")
    if ends is None:
        return token.expires_at
    if type(ends) is not int or not 0 <= ends - int(token.issued_at.timestamp()) <= MAX_GRANT_SECONDS:
        raise AssertionRefused("claim grant_exp", got=type(ends).__name__, expected="seconds since the epoch, soon")
    return datetime.fromtimestamp(ends, UTC)
