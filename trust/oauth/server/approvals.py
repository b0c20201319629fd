"""Human approval: some scopes are granted only when a person has said yes to this very request.

A request for such a scope is answered with `authorization_pending` (RFC 8628 section 3.5) and shown to a person, by
`a2a-trust approval` or by a callback. The client sends the same request again until it is decided; what was approved
is good for one token, which says so: `acr` and `auth_time` (RFC 9470). What is exchanged from that token keeps them.

A resource that wants an approval where the server's rules do not ask for one says so in its challenge; the client then
asks with `acr_values`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from trust.errors import (
    ApprovalDenied,
    ApprovalPending,
    ConfigurationError,
    GrantRequestMalformed,
    StepUpUnknown,
)
from trust.oauth.metadata import APPROVED
from trust.oauth.scopes import Catalogue, check_rules, parse_scope_list, touches
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.edge import Parts
from trust.oauth.server.grants import Grant
from trust.oauth.server.store import Approval, Asked

INTERVAL_SECONDS = 5  # between two questions of one client, as it is told
DECISION_TIME = timedelta(minutes=15)  # a request, for a person who is there
MAX_DECISION_TIME = timedelta(hours=24)  # a request that nobody has decided by then is of yesterday
MAX_MESSAGE_CHARACTERS = 200
MAX_CALLBACKS = 64  # at a time; further requests wait for the command line alone

logger = logging.getLogger("a2a_trust.oauth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person has said, and who that was, for the audit trail."""

    approve: bool
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRules:
    """What needs a person, and how that person is asked.

    Args:
        scopes: a token that could do anything that one of these matches needs a yes first; wildcards count.
        lifetime: how long a request waits for a person, at most a day.
        ask: called once for each new request; what it returns is the decision, None leaves it to the command line.
            When it raises, the request goes on waiting.

    Raises:
        ConfigurationError: no scopes, a malformed one, or a lifetime out of range.
    """

    scopes: tuple[str, ...]
    lifetime: timedelta = DECISION_TIME
    ask: Callable[[Approval], Awaitable[Decision | None]] | None = None

    def __post_init__(self) -> None:
        if not self.scopes:
            raise ConfigurationError("approval rules", got="no scopes", expected="those that a person must approve")
        check_rules(self.scopes, "approval rules")
        if not timedelta(0) < self.lifetime <= MAX_DECISION_TIME:
            raise ConfigurationError("approval lifetime", got=self.lifetime, expected=f"at most {MAX_DECISION_TIME}")

    def need(self, scope: str, catalogue: Catalogue | None) -> bool:
        """Whether a token with these scopes could do what needs a person, directly or through the catalogue."""
        return touches(self.scopes, parse_scope_list(scope), catalogue)


class Approvals:
    """The approvals of one server: asks for them, and waits for nobody."""

    def __init__(self, parts: Parts, rules: ApprovalRules | None) -> None:
        self._parts = parts
        self._rules = rules
        self._asking: set[asyncio.Task[None]] = set()

    async def approved(
        self, grant: Grant, form: Form, *, client: Client, now: datetime
    ) -> tuple[Grant, Approval | None]:
        """The grant, with the claims of its approval where it needs one; and that approval, which is still to be used.

        Raises:
            ApprovalPending: a person has not decided yet.
            ApprovalDenied: a person has said no.
            StepUpUnknown: `acr_values` holds nothing that this server has.
            TooManyApprovals: too many requests of this client wait already.
            GrantRequestMalformed: `binding_message` is too long, or not printable.
        """
        rules, wanted = self._rules, form.get("acr_values", "").split()
        if wanted and (rules is None or APPROVED not in wanted):
            raise StepUpUnknown("acr_values", got=form["acr_values"], expected=APPROVED if rules else "none")
        catalogue = self._parts.policy.catalogue
        if rules is None or not (wanted or (rules.need(grant.scope, catalogue) and not grant.approved)):
            return grant, None
        table = self._parts.store.approvals
        asked = _asked(grant, form, client)
        approval, new = await self._parts.in_thread(partial(table.ask, asked, now=now, lifetime=rules.lifetime))
        if new and rules.ask is not None:
            self._show(rules.ask, approval)
        if approval.state == "denied":
            raise ApprovalDenied("a person has said no", got=f"{approval.approval_id} by {approval.decided_by}")
        if approval.state != "approved":
            raise pending(approval, now)
        decided = approval.decided_at or now
        claims = {**grant.claims, "acr": APPROVED, "auth_time": int(decided.timestamp())}
        return replace(grant, claims=claims), approval

    def _show(self, ask: Callable[[Approval], Awaitable[Decision | None]], approval: Approval) -> None:
        if len(self._asking) >= MAX_CALLBACKS:
            logger.warning("approval %s: too many callbacks wait, the command line is left", approval.approval_id)
            return
        task = asyncio.create_task(self._call(ask, approval))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _call(self, ask: Callable[[Approval], Awaitable[Decision | None]], approval: Approval) -> None:
        try:
            async with asyncio.timeout((approval.expires_at - approval.asked_at).total_seconds()):
                decision = await ask(approval)
            if decision is not None:
                await self._parts.in_thread(
                    partial(
                        self._parts.store.approvals.decide,
                        approval.approval_id,
                        approve=decision.approve is True,
                        by=decision.by,
                        now=self._parts.clock(),
                    )
                )
        except Exception:  # whatever an operator's callback may raise: the request waits for the command line
            logger.exception("approval %s: the callback failed, the command line is left", approval.approval_id)


def pending(approval: Approval, now: datetime) -> ApprovalPending:
    """What a client is told that is to ask again."""
    return ApprovalPending(
        "a person has to approve this first",
        approval_id=approval.approval_id,
        interval=INTERVAL_SECONDS,
        expires_in=max(0, int((approval.expires_at - now).total_seconds())),
        got=approval.approval_id,
        do=f"a2a-trust approval approve {approval.approval_id}",
    )


def _asked(grant: Grant, form: Form, client: Client) -> Asked:
    """All that the token would depend on. Another request is another approval."""
    message = form.get("binding_message", "")
    if len(message) > MAX_MESSAGE_CHARACTERS or not message.isprintable():
        raise GrantRequestMalformed("binding_message", expected=f"{MAX_MESSAGE_CHARACTERS} printable characters")
    scope, resource = " ".join(sorted(grant.scope.split())), str(grant.claims["aud"])
    actors = grant.actors[1:]  # the first is the agent itself
    told = [client.client_id, str(client.agent_id), grant.issued.subject, actors, resource, scope, message]
    parent = grant.issued.parent_id or ""
    # Each assertion is a new one: it counts who vouches, and for what.
    issuer = "" if grant.assertion is None else grant.assertion.issuer
    request = json.dumps([*told, parent, issuer, form["grant_type"], grant.token_type])
    return Asked(
        request=hashlib.sha256(request.encode()).hexdigest(),
        client_id=client.client_id,
        agent_id=str(client.agent_id),
        subject=grant.issued.subject,
        actors=actors,
        resource=resource,
        scope=scope,
        message=message,
    )
