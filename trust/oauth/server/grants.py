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

from trust.errors import GrantNotAllowed, InsufficientScope, ScopeMalformed, ScopeRefused, TargetRefused
from trust.identity import PeerIdentity
from trust.oauth.scopes import Calendar, Catalogue, attenuates, expiry_cap, parse_scope_list
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.store import Issued


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantPolicy:
    """What holds for all clients of an authorization server."""

    issuer: str
    catalogue: Catalogue | None = None
    calendars: Mapping[str, Calendar] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A decision to issue: the claims to sign, and what the store must record first."""

    claims: dict[str, Any]
    issued: Issued
    scope: str
    expires_in: int  # seconds that are really left, so that no client believes in a longer life


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
    target = target_of(form, client)
    scopes = scopes_of(form, client.scopes, "the client is registered for", policy)
    # 4.
    return grant_of(
        scopes=scopes,
        target=target,
        client=client,
        peer=peer,
        policy=policy,
        now=now,
        token_id=token_id,
        subject=str(client.agent_id),
    )


def grant_of(
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


def target_of(form: Form, client: Client) -> str:
    """RFC 8707 section 2. There is no default: a token that says nothing about its receiver is good for all of them."""
    if "audience" in form:
        raise TargetRefused("audience", expected="the target in `resource` (RFC 8707) alone")
    resource = form.get("resource", "")
    if resource not in client.resources:
        raise TargetRefused("resource", got=resource or "none", expected="one that the client is registered for")
    return resource


def scopes_of(form: Form, held: Iterable[str], whose: str, policy: GrantPolicy) -> tuple[str, ...]:
    """RFC 6749 section 3.3 lets a server grant a default or refuse where no scope is named: least privilege refuses."""
    try:
        wanted = parse_scope_list(form.get("scope", ""))
        if wanted and attenuates(held, wanted, policy.catalogue):
            return wanted
    except ScopeMalformed as error:
        raise ScopeRefused(str(error)) from None
    raise ScopeRefused("scope", got=" ".join(wanted) or "none", expected=f"at most what {whose}: {' '.join(held)}")
