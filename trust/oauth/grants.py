"""What the token endpoint decides: a request, an authenticated client and the time -> the claims of a token, or no.

Pure: no socket, database, clock or randomness. `trust.oauth.server` moves the bytes and signs the claims.

Two grants, and one rule over both: authority only ever narrows.

- Client credentials (RFC 6749 section 4.4): a client gets for itself what it is registered for.
- Token exchange (RFC 8693): a client that was called with a token gets one for the next agent, on behalf of the same
  subject. Both the caller's token and the client's own registration must cover every scope, time scopes are kept, and
  the new token ends no later than the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from trust.errors import (
    ClientRefused,
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    InsufficientScope,
    ScopeMalformed,
    ScopeRefused,
    SubjectTokenRefused,
    TargetRefused,
    TokenError,
)
from trust.identity import PeerIdentity
from trust.oauth.clients import Client, ClientRegistry
from trust.oauth.keys import KeySource
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.oauth.scopes import TIME_PREFIX, Calendar, Catalogue, attenuates, expiry_cap, parse_scope_list
from trust.oauth.store import Issued
from trust.oauth.tokens import verified_token

MAX_DELEGATIONS = 4  # actors in one token: longer chains are loops more often than they are work
MAX_PARAMETERS = 32  # of one request; a token exchange has nine

# Another way to authenticate beside the certificate: RFC 6749 section 2.3 forbids more than one.
_OTHER_AUTHENTICATION = ("client_secret", "client_assertion", "client_assertion_type")

Form = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantPolicy:
    """What holds for all clients of an authorization server."""

    issuer: str
    catalogue: Catalogue | None = None
    calendars: Mapping[str, Calendar] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectToken:
    """A token of ours that a client wants to exchange: signature, issuer and time are verified, revocation is not."""

    token_id: str
    subject: str
    audience: str
    scopes: tuple[str, ...]
    expires_at: datetime
    act: Mapping[str, Any] | None
    may_act: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A decision to issue: the claims to sign, and what the store must record first."""

    claims: dict[str, Any]
    issued: Issued
    scope: str
    expires_in: int  # seconds that are really left, so that no client believes in a longer life


def parse_form(body: bytes) -> Form:
    """The parameters of a token request, each once; those without a value are left out. RFC 6749 section 3.2.

    Raises:
        GrantRequestMalformed: not a form, or a parameter twice.
        TargetRefused: several resources (RFC 8707 section 2): one token is for one receiver.
    """
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:  # UnicodeDecodeError is one
        raise GrantRequestMalformed("request body", expected="application/x-www-form-urlencoded") from None
    repeated = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
    if repeated == ["resource"]:
        raise TargetRefused("several resources", expected="one: a token is for one receiver")
    if repeated:
        raise GrantRequestMalformed("parameter given twice", got=", ".join(repeated), expected="each once")
    return {name: value for name, value in pairs if value}


def authenticate(
    form: Form, peer: PeerIdentity | None, clients: ClientRegistry, *, now: datetime
) -> tuple[Client, PeerIdentity]:
    """The client that the certificate proves, and the peer that proved it. RFC 8705 section 2.

    Raises:
        ClientRefused: in the same words whether the certificate, the registration or the `client_id` is at fault.
        GrantRequestMalformed: a second way to authenticate was used.
    """
    if any(name in form for name in _OTHER_AUTHENTICATION):
        raise GrantRequestMalformed("client authentication", got="more than one way", expected="the certificate only")
    client = clients.find(form.get("client_id", ""))
    if (
        client is None
        or peer is None
        or peer.agent_id != client.agent_id
        # The connection may be older than the end of the certificate.
        or not peer.not_before <= now < peer.not_after
    ):
        raise ClientRefused(
            "client is not authenticated",
            got=f"client_id {form.get('client_id', 'missing')} from {peer.agent_id if peer else 'no certificate'}",
            expected="the client_id that is registered for the SPIFFE ID of a valid certificate",
        )
    return client, peer


def client_credentials(
    form: Form, *, client: Client, peer: PeerIdentity, policy: GrantPolicy, now: datetime, token_id: str
) -> Grant:
    """A token for the client itself.

    1. the client is registered for scopes of its own            GrantNotAllowed
    2. one `resource`, which the client may ask tokens for       TargetRefused
    3. the scopes are named, and all covered by the registered   ScopeRefused
    4. the time scopes allow this time                           ScopeRefused
    """
    # 1.
    if not client.scopes:
        raise GrantNotAllowed("client has no scopes of its own", got=client.client_id, do="register scopes for it")
    # 2. and 3.
    target = _target(form, client)
    scopes = _scopes(form, client.scopes, "the client is registered for", policy)
    # 4.
    return _grant(
        scopes=scopes,
        target=target,
        client=client,
        peer=peer,
        policy=policy,
        now=now,
        token_id=token_id,
        subject=str(client.agent_id),
    )


def read_subject_token(
    form: Form, *, client: Client, keys: KeySource, policy: GrantPolicy, now: datetime
) -> SubjectToken:
    """The subject token of an exchange, verified to be an access token of this very server.

    It is bound to its holder, the caller of this client, who is not on this connection: so nothing is checked against
    a certificate here. What makes it the client's to exchange is that it was sent to it (check 2 of `token_exchange`).

    Raises:
        GrantNotAllowed: the client is not registered for scopes that it may take over.
        GrantRequestMalformed: another kind of token, or parameters that ask for something not done here.
        SubjectTokenRefused: malformed, of another type or issuer, forged, or expired.
    """
    if not client.exchange_scopes:
        raise GrantNotAllowed("client may not exchange", got=client.client_id, do="register exchange_scopes for it")
    if form.get("subject_token_type") != ACCESS_TOKEN_TYPE or not form.get("subject_token"):
        raise GrantRequestMalformed("subject token", got=form.get("subject_token_type"), expected=ACCESS_TOKEN_TYPE)
    if form.get("requested_token_type", ACCESS_TOKEN_TYPE) != ACCESS_TOKEN_TYPE:
        raise GrantRequestMalformed("requested_token_type", expected=ACCESS_TOKEN_TYPE)
    if "actor_token" in form:
        raise GrantRequestMalformed("actor_token", expected="none: the actor is the client that its certificate proves")
    try:
        token = verified_token(form["subject_token"], issuer=policy.issuer, keys=keys, now=now).token
    except TokenError as error:
        # Only the name of the check: what it says of the token's content is not for our logs.
        raise SubjectTokenRefused("subject token is not one of ours", got=error.check) from None
    if token.expires_at <= now:
        raise SubjectTokenRefused("subject token has expired", got=token.expires_at, expected=f"later than {now}")
    if len(token.audience) != 1:
        raise SubjectTokenRefused("subject token has several audiences", expected="one, as our tokens have")
    return SubjectToken(
        token_id=token.token_id,
        subject=token.subject,
        audience=token.audience[0],
        scopes=token.scopes,
        expires_at=token.expires_at,
        act=token.claims.get("act"),
        may_act=token.claims.get("may_act"),
    )


def token_exchange(
    form: Form,
    *,
    client: Client,
    peer: PeerIdentity,
    subject: SubjectToken,
    parent: Issued | None,
    policy: GrantPolicy,
    now: datetime,
    token_id: str,
) -> Grant:
    """A token for the client on behalf of the subject of the token that it was called with.

    1. the subject token is one that the store knows, and not revoked                   SubjectTokenRefused
    2. it was sent to this client: its audience is the client                           SubjectTokenRefused
    3. it holds `delegate:X`, X being this client, and its `may_act`, if any, names it  DelegationRefused
    4. the chain of actors is not too long                                              DelegationRefused
    5. one `resource`, which the client may ask tokens for                              TargetRefused
    6. the scopes are named, and covered by the subject token and by the registration   ScopeRefused
    7. the time scopes allow this time                                                  ScopeRefused

    `delegate:X` is the consent of whoever asked for the subject token: without it a token that one agent gives to
    another opens the door of that other agent only. X is the path of the SPIFFE ID of the agent that may act onward.

    Args:
        parent: what the store knows of the subject token.
    """
    # 1. The store looks again when it records the child, in one transaction.
    if parent is None or parent.revoked:
        raise SubjectTokenRefused("subject token is unknown or revoked", got=subject.token_id)
    # 2.
    if subject.audience not in client.audiences:
        raise SubjectTokenRefused(
            "subject token was sent to another agent", got=subject.audience, expected=" or ".join(client.audiences)
        )
    # 3.
    consent = f"delegate:{client.delegate_name}"
    try:
        consented = _covered(subject.scopes, consent, policy)
    except ScopeMalformed as error:
        raise SubjectTokenRefused(f"subject token: {error}") from None
    if not consented:
        raise DelegationRefused("subject token does not let this client act", expected=f"the scope {consent}")
    actor = str(client.agent_id)
    if subject.may_act is not None and (
        not isinstance(subject.may_act, Mapping) or subject.may_act.get("sub") != actor
    ):
        raise DelegationRefused("subject token names another actor in may_act", expected=actor)
    # 4.
    if _depth(subject.act) >= MAX_DELEGATIONS:
        raise DelegationRefused("too many actors", expected=f"at most {MAX_DELEGATIONS} in one token")
    # 5. and 6.
    target = _target(form, client)
    scopes = _scopes(form, subject.scopes, "the subject token grants", policy)
    _scopes(form, client.exchange_scopes, "the client may take over", policy)
    # 7.
    return _grant(
        scopes=scopes,
        target=target,
        client=client,
        peer=peer,
        policy=policy,
        now=now,
        token_id=token_id,
        subject=subject.subject,
        parent=parent,
        not_after=subject.expires_at,
        act={"sub": actor} if subject.act is None else {"sub": actor, "act": subject.act},
    )


def _grant(
    *,
    scopes: tuple[str, ...],
    target: str,
    client: Client,
    peer: PeerIdentity,
    policy: GrantPolicy,
    now: datetime,
    token_id: str,
    subject: str,
    parent: Issued | None = None,
    not_after: datetime | None = None,
    act: dict[str, Any] | None = None,
) -> Grant:
    """The claims of RFC 9068 section 2.2, bound to the certificate of the connection (RFC 8705 section 3.1)."""
    issued_at = now.replace(microsecond=0)
    root_issued_at = parent.root_issued_at if parent else issued_at
    try:
        cap = expiry_cap(scopes, root_issued_at=root_issued_at, now=now, calendars=policy.calendars)
    except InsufficientScope as error:
        raise ScopeRefused(str(error)) from None
    # A token is of no use without its certificate, nor an exchanged one without the token it came from.
    ends = [issued_at + client.lifetime, peer.not_after, not_after, cap]
    expires_at = min(end for end in ends if end is not None).replace(microsecond=0)
    expires_in = int((expires_at - now).total_seconds())
    if expires_in < 1:
        raise GrantNotAllowed("nothing is left of the lifetime", got=expires_at, expected=f"later than {now}")
    claims = {
        "iss": policy.issuer,
        "sub": subject,
        "aud": target,
        "client_id": client.client_id,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "jti": token_id,
        "scope": " ".join(scopes),
        "cnf": {"x5t#S256": peer.thumbprint},
    }
    if act is not None:
        claims["act"] = act
    issued = Issued(
        token_id=token_id,
        parent_id=parent.token_id if parent else None,
        root_id=parent.root_id if parent else token_id,
        root_issued_at=root_issued_at,
        client_id=client.client_id,
        subject=subject,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    return Grant(claims=claims, issued=issued, scope=" ".join(scopes), expires_in=expires_in)


def _target(form: Form, client: Client) -> str:
    """RFC 8707 section 2. There is no default: a token that says nothing about its receiver is good for all of them."""
    if "audience" in form:
        raise TargetRefused("audience", expected="the target in `resource` (RFC 8707) alone")
    resource = form.get("resource", "")
    if resource not in client.resources:
        raise TargetRefused("resource", got=resource or "none", expected="one that the client is registered for")
    return resource


def _scopes(form: Form, held: Iterable[str], whose: str, policy: GrantPolicy) -> tuple[str, ...]:
    """RFC 6749 section 3.3 lets a server grant a default or refuse where no scope is named: least privilege refuses."""
    try:
        wanted = parse_scope_list(form.get("scope", ""))
        if wanted and attenuates(held, wanted, policy.catalogue):
            return wanted
    except ScopeMalformed as error:
        raise ScopeRefused(str(error)) from None
    raise ScopeRefused("scope", got=" ".join(wanted) or "none", expected=f"at most what {whose}: {' '.join(held)}")


def _covered(held: Iterable[str], scope: str, policy: GrantPolicy) -> bool:
    """Whether `held` covers one scope, time scopes left aside (`_grant` sees to them)."""
    return attenuates([s for s in held if not s.startswith(TIME_PREFIX)], scope, policy.catalogue)


def _depth(act: Mapping[str, Any] | None) -> int:
    depth = 0
    while act is not None:
        act, depth = act.get("act"), depth + 1
    return depth
