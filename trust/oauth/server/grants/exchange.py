"""Token exchange (RFC 8693): a client that was called with a token gets one for the next agent, for the same subject.

Both the caller's token and the client's own registration must cover every scope, time scopes are kept, and the new
token ends no later than the old one. Pure, as `grant`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trust.errors import (
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    ScopeMalformed,
    SubjectTokenRefused,
    TokenError,
)
from trust.oauth.calendars import TIME_PREFIX
from trust.oauth.claims import AccessToken, verified_token
from trust.oauth.keys import KeySource
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, APPROVED, JWT_TYPE
from trust.oauth.scopes import attenuates, delegate_scope
from trust.oauth.server.grants.grant import Grant, TokenRequest, grant_of, scopes_of, target_of
from trust.oauth.server.store import Issued

MAX_DELEGATIONS = 4  # actors in one token: longer chains are loops more often than they are work


def read_subject_token(request: TokenRequest, keys: KeySource) -> AccessToken:
    """The subject token of an exchange: one of this very server, for one audience, that has not expired.

    It is bound to its holder, the caller of this client, who is not on this connection: so nothing is checked against
    a certificate here. What makes it the client's to exchange is that it was sent to it (check 2 of `token_exchange`).

    NOT checked: whether it was revoked.

    Raises:
        GrantNotAllowed: the client is not registered for scopes that it may take over.
        GrantRequestMalformed: another kind of token, or parameters that ask for something not done here.
        SubjectTokenRefused: malformed, of another type or issuer, forged, or expired.
    """
    form, client, now = request.form, request.client, request.now
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
        token = verified_token(form["subject_token"], issuer=request.policy.issuer, keys=keys, now=now).token
    except TokenError as error:
        # Only the name of the check: what it says of the token's content is not for our logs.
        raise SubjectTokenRefused("subject token is not one of ours", got=error.check) from None
    if token.expires_at <= now:
        raise SubjectTokenRefused("subject token has expired", got=token.expires_at, expected=f"later than {now}")
    if len(token.audience) != 1:
        raise SubjectTokenRefused("subject token has several audiences", expected="one, as our tokens have")
    return token


def token_exchange(request: TokenRequest, subject: AccessToken, parent: Issued | None) -> Grant:
    """A token for the client on behalf of the subject of the token that it was called with.

    1. to 4. as `check_delegation`                                         SubjectTokenRefused, DelegationRefused
    5. one `resource`, which the client may ask tokens for                              TargetRefused
    6. the scopes are named, and covered by the subject token and by the registration   ScopeRefused
    7. the time scopes allow this time                                                  ScopeRefused

    The receiver may be called `audience`, too: our receivers have one name.

    Args:
        subject: of `read_subject_token`.
        parent: what the store knows of it.
    """
    # 1. to 4.
    parent = check_delegation(request, subject, parent)
    # 5. to 7.
    return exchanged(request, subject, parent, target=target_of(request, request.client.resources))


def check_delegation(request: TokenRequest, subject: AccessToken, parent: Issued | None) -> Issued:
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
    (audience,) = subject.audience
    if audience not in request.client.audiences:
        raise SubjectTokenRefused(
            "subject token was sent to another agent", got=audience, expected=" or ".join(request.client.audiences)
        )
    # 3.
    consent = delegate_scope(request.peer.agent_id)
    try:
        consented = _covered(request, subject.scopes, consent)
    except ScopeMalformed as error:
        raise SubjectTokenRefused(f"subject token: {error}") from None
    if not consented:
        raise DelegationRefused("subject token does not let this client act", expected=f"the scope {consent}")
    actor, may_act = str(request.peer.agent_id), subject.claims.get("may_act")
    if may_act is not None and (not isinstance(may_act, Mapping) or may_act.get("sub") != actor):
        raise DelegationRefused("subject token names another actor in may_act", expected=actor)
    # 4.
    if len(subject.actors) >= MAX_DELEGATIONS:
        raise DelegationRefused("too many actors", expected=f"at most {MAX_DELEGATIONS} in one token")
    return parent


def exchanged(request: TokenRequest, subject: AccessToken, parent: Issued, *, target: str) -> Grant:
    """What is made of a subject token that `check_delegation` let pass: checks 6 and 7 of `token_exchange`."""
    # 6.
    scopes = scopes_of(request, subject.scopes, "the subject token grants")
    scopes_of(request, request.client.exchange_scopes, "the client may take over")
    # A narrower token of one that a person has approved is approved.
    approved_at = subject.claims.get("auth_time") if subject.approved else None
    # 7.
    return grant_of(
        request,
        scopes=scopes,
        target=target,
        subject=subject.subject,
        actors=(str(request.peer.agent_id), *subject.actors),
        parent=parent,
        not_after=subject.expires_at,
        kept={} if approved_at is None else {"acr": APPROVED, "auth_time": approved_at},
    )


def _covered(request: TokenRequest, held: Iterable[str], scope: str) -> bool:
    """Whether `held` covers one scope, time scopes left aside (`grant_of` sees to them)."""
    return attenuates([s for s in held if not s.startswith(TIME_PREFIX)], scope, request.policy.catalogue)
