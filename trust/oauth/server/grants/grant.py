"""What the authorization server grants: pure decisions, with time and identifiers as arguments.

Here is what an agent gets for itself (client credentials), and what every grant has in common: one receiver, named
scopes, the claims of the token. `exchange` is for what an agent gets on behalf of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from trust.audit import MAX_SCOPE_CHARACTERS
from trust.errors import (
    GrantNotAllowed,
    IdentityError,
    InsufficientScope,
    IssuanceDenied,
    PolicyDenied,
    ScopeMalformed,
    ScopeRefused,
    TargetRefused,
)
from trust.identity import AgentID, PeerIdentity
from trust.oauth.calendars import TIME_PREFIX, Calendar, expiry_cap
from trust.oauth.claims import TYPES, act_of
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, APPROVED
from trust.oauth.policy import EXCHANGE, ISSUE, Permit, Question, ask
from trust.oauth.scopes import Catalogue, attenuates, delegate_scope, parse_scope_list
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.grants.partners import Partners
from trust.oauth.server.store import Issued, UsedAssertion
from trust.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantPolicy:
    """What holds for all clients of an authorization server."""

    issuer: str
    catalogue: Catalogue | None = None
    calendars: Mapping[str, Calendar] = field(default_factory=lambda: MappingProxyType({}))
    partners: Source[Partners] = field(default_factory=Partners)
    permit: Permit | None = None  # asked about what all else allows


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What is asked, by which client, and when: all that a decision depends on but the tokens that come with it."""

    form: Form = field(repr=False)  # it may hold a token
    client: Client
    peer: PeerIdentity
    policy: GrantPolicy
    now: datetime
    token_id: str  # of what may be issued


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A decision to issue: the claims to sign, and what the store must record first."""

    claims: dict[str, Any]
    issued: Issued
    scope: str
    expires_in: int  # seconds that are really left, so that no client believes in a longer life
    actors: tuple[str, ...] = ()  # who acts for the subject, the client first; as `act` says it
    token_type: str = ACCESS_TOKEN_TYPE  # what is issued, by its name in RFC 8693 section 3
    typ: str = TYPES[0]  # and in its own header
    assertion: UsedAssertion | None = None  # of another authorization server, which must not come a second time

    @property
    def approved(self) -> bool:
        """Whether a person has approved what it was exchanged from."""
        return self.claims.get("acr") == APPROVED


def client_credentials(request: TokenRequest) -> Grant:
    """A token for the client itself.

    1. the client is registered for scopes of its own            GrantNotAllowed
    2. one `resource`, which the client may ask tokens for       TargetRefused
    3. the scopes are named, and all covered by the registered   ScopeRefused
    4. the time scopes allow this time                           ScopeRefused
    """
    client = request.client
    # 1.
    if not client.scopes:
        raise GrantNotAllowed("client has no scopes of its own", got=client.client_id, do="register scopes for it")
    # 2. and 3.
    if "audience" in request.form:
        raise TargetRefused("audience", expected="the target in `resource` (RFC 8707) alone")
    target = target_of(request, client.resources)
    scopes = scopes_of(request, client.scopes, "the client is registered for")
    # 4.
    return grant_of(request, scopes=scopes, target=target, subject=str(client.agent_id))


def grant_of(
    request: TokenRequest,
    *,
    scopes: tuple[str, ...],
    target: str,
    subject: str,
    actors: tuple[str, ...] = (),
    parent: Issued | None = None,
    not_after: datetime | None = None,
    kept: Mapping[str, Any] = MappingProxyType({}),
) -> Grant:
    """The claims of RFC 9068 section 2.2, bound to the certificate of the connection (RFC 8705 section 3.1)."""
    client, peer, policy, now = request.client, request.peer, request.policy, request.now
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
        "jti": request.token_id,
        "scope": " ".join(scopes),
        "cnf": {"x5t#S256": peer.thumbprint},
        **may_act(scopes, target),
        **act_of(actors),
        **kept,  # what an exchange keeps of the token before
    }
    issued = Issued(
        token_id=request.token_id,
        parent_id=parent.token_id if parent else None,
        root_id=parent.root_id if parent else request.token_id,
        root_issued_at=root_issued_at,
        client_id=client.client_id,
        agent_id=str(client.agent_id),
        subject=subject,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    return Grant(claims=claims, issued=issued, scope=" ".join(scopes), expires_in=expires_in, actors=actors)


def check_permit(grant: Grant, request: TokenRequest) -> None:
    """Ask the policy for what registrations cannot say, where there is one (`trust.oauth.policy`).

    Raises:
        IssuanceDenied: it does not allow this grant, or failed.
    """
    question = Question(
        agent=request.peer.agent_id,
        action=EXCHANGE if grant.actors else ISSUE,
        resource=grant.claims["aud"],
        scopes=tuple(grant.scope.split(" ")),
        subject=grant.issued.subject,
        client=grant.issued.client_id,
        actors=grant.actors,
        now=request.now,
    )
    try:
        ask(request.policy.permit, question)
    except PolicyDenied as error:
        raise IssuanceDenied(str(error)) from None


def may_act(scopes: Iterable[str], target: str) -> dict[str, Any]:
    """`may_act` (RFC 8693 section 4.4), where the token names exactly one agent that may act with it: its receiver.

    Whoever asks for a token names that agent by the scope `delegate:X`. A wildcard, or a receiver that is not an agent
    by that name, leaves it to the scopes alone.
    """
    consents = [scope for scope in scopes if scope.startswith("delegate:")]
    try:
        agent = AgentID.parse(target)
    except IdentityError:
        return {}
    return {"may_act": {"sub": target}} if consents == [delegate_scope(agent)] else {}


def target_of(request: TokenRequest, allowed: Iterable[str]) -> str:
    """The one receiver. RFC 8707 section 2; RFC 8693 section 2.1, where it may be called `audience`, too.

    There is no default: a token that says nothing about its receiver is good for all of them.
    """
    named = {request.form[name] for name in ("resource", "audience") if name in request.form}
    if len(named) > 1:
        raise TargetRefused("resource and audience differ", expected="one: a token is for one receiver")
    target = next(iter(named), "")
    if target not in allowed:
        raise TargetRefused("resource", got=target or "none", expected="one that the client is registered for")
    return target


def scopes_of(request: TokenRequest, held: Iterable[str], whose: str) -> tuple[str, ...]:
    """RFC 6749 section 3.3 lets a server grant a default or refuse where no scope is named: least privilege refuses."""
    named = request.form.get("scope", "")
    if len(named) > MAX_SCOPE_CHARACTERS:  # the trail must show all that was granted
        raise ScopeRefused("scope", got=f"{len(named)} characters", expected=f"at most {MAX_SCOPE_CHARACTERS}")
    try:
        wanted = parse_scope_list(named)
        if wanted and attenuates(held, wanted, request.policy.catalogue):
            return wanted
    except ScopeMalformed as error:
        raise ScopeRefused(str(error)) from None
    # They take authority away, so that leaving one out would be asking for more.
    left_out = [s for s in held if s.startswith(TIME_PREFIX) and s not in wanted] if wanted else []
    raise ScopeRefused(
        "scope",
        got=" ".join(wanted) or "none",
        expected=f"at most what {whose}: {' '.join(held)}",
        do=f"add {' '.join(left_out)}: it limits what {whose}" if left_out else "",
    )
