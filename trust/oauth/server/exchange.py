"""Token exchange (RFC 8693): a client that was called with a token gets one for the next agent, for the same subject.

Both the caller's token and the client's own registration must cover every scope, time scopes are kept, and the new
token ends no later than the old one. Pure, as `grants`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trust.errors import (
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    ScopeMalformed,
    SubjectTokenRefused,
    TokenError,
)
from trust.identity import PeerIdentity
from trust.oauth.calendars import TIME_PREFIX
from trust.oauth.claims import verified_token
from trust.oauth.keys import KeySource
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, APPROVED, JWT_TYPE
from trust.oauth.scopes import attenuates, delegate_scope
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.grants import Grant, GrantPolicy, grant_of, scopes_of, target_of
from trust.oauth.server.store import Issued

MAX_DELEGATIONS = 4  # actors in one token: longer chains are loops more often than they are work


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
    approved_at: object  # `auth_time`, where a person has approved it


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
    wanted = form.get("requested_token_type", ACCESS_TOKEN_TYPE)
    if wanted not in (ACCESS_TOKEN_TYPE, JWT_TYPE):
        raise GrantRequestMalformed("requested_token_type", got=wanted, expected=f"{ACCESS_TOKEN_TYPE} or {JWT_TYPE}")
    if "actor_token" in form or "actor_token_type" in form:
        # The certificate has proved who acts. A token could only repeat that, or name somebody else.
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
        approved_at=token.claims.get("auth_time") if token.claims.get("acr") == APPROVED else None,
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

    1. to 4. as `check_delegation`                                         SubjectTokenRefused, DelegationRefused
    5. one `resource`, which the client may ask tokens for                              TargetRefused
    6. the scopes are named, and covered by the subject token and by the registration   ScopeRefused
    7. the time scopes allow this time                                                  ScopeRefused

    The receiver may be called `audience`, too: our receivers have one name.

    Args:
        parent: what the store knows of the subject token.
    """
    # 1. to 4.
    parent = check_delegation(client=client, peer=peer, subject=subject, parent=parent, policy=policy)
    # 5. to 7.
    return exchanged(
        form,
        target=target_of(form, client.resources),
        client=client,
        peer=peer,
        subject=subject,
        parent=parent,
        policy=policy,
        now=now,
        token_id=token_id,
    )


def check_delegation(
    *, client: Client, peer: PeerIdentity, subject: SubjectToken, parent: Issued | None, policy: GrantPolicy
) -> Issued:
    """That this client may act with this subject token at all; returns what the store knows of that token.

    1. the subject token is one that the store knows, and not revoked                   SubjectTokenRefused
    2. it was sent to this client: its audience is the client                           SubjectTokenRefused
    3. it holds `delegate:X`, X being this client, and its `may_act`, if any, names it  DelegationRefused
    4. the chain of actors is not too long                                              DelegationRefused

    `delegate:X` is the consent of whoever asked for the subject token: without it a token that one agent gives to
    another opens the door of that other agent only. X is the path of the SPIFFE ID of the agent that may act onward.
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
    consent = delegate_scope(peer.agent_id)
    try:
        consented = _covered(subject.scopes, consent, policy)
    except ScopeMalformed as error:
        raise SubjectTokenRefused(f"subject token: {error}") from None
    if not consented:
        raise DelegationRefused("subject token does not let this client act", expected=f"the scope {consent}")
    actor = str(peer.agent_id)
    if subject.may_act is not None and (
        not isinstance(subject.may_act, Mapping) or subject.may_act.get("sub") != actor
    ):
        raise DelegationRefused("subject token names another actor in may_act", expected=actor)
    # 4.
    if actor_depth(subject.act) >= MAX_DELEGATIONS:
        raise DelegationRefused("too many actors", expected=f"at most {MAX_DELEGATIONS} in one token")
    return parent


def exchanged(
    form: Form,
    *,
    target: str,
    client: Client,
    peer: PeerIdentity,
    subject: SubjectToken,
    parent: Issued,
    policy: GrantPolicy,
    now: datetime,
    token_id: str,
) -> Grant:
    """What is made of a subject token that `check_delegation` let pass: checks 6 and 7 of `token_exchange`."""
    # 6.
    scopes = scopes_of(form, subject.scopes, "the subject token grants", policy)
    scopes_of(form, client.exchange_scopes, "the client may take over", policy)
    # 7.
    return grant_of(
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
        kept=_kept(subject, str(peer.agent_id)),
    )


def actor_depth(act: Mapping[str, Any] | None) -> int:
    """How many actors are nested in an `act` claim."""
    depth = 0
    while act is not None:
        act, depth = act.get("act"), depth + 1
    return depth


def _kept(subject: SubjectToken, actor: str) -> dict[str, Any]:
    """Who acted before, and that a person has approved it: a narrower token of an approved one is approved."""
    act: dict[str, Any] = {"act": {"sub": actor} if subject.act is None else {"sub": actor, "act": subject.act}}
    return act if subject.approved_at is None else {**act, "acr": APPROVED, "auth_time": subject.approved_at}


def _covered(held: Iterable[str], scope: str, policy: GrantPolicy) -> bool:
    """Whether `held` covers one scope, time scopes left aside (`grant_of` sees to them)."""
    return attenuates([s for s in held if not s.startswith(TIME_PREFIX)], scope, policy.catalogue)
