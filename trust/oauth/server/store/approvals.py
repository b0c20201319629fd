"""Requests that wait for a person, and what that person said.

A row is one request of one client. It goes when it is used or has expired. The audit trail says who decided at once
(`decisions`), and again when the client asks: where the token is issued, or the request refused.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from trust.errors import ApprovalNotWaiting, TooManyApprovals
from trust.oauth.server.store.decisions import Operator, note
from trust.oauth.server.store.schema import APPROVALS, seconds_of, time_of

State = Literal["pending", "approved", "denied"]

# Requests of one client that wait for a person: more than that nobody reads. The decided ones that still stand count,
# too: otherwise a client that was told no would ask the same in other words, for as long as the person can bear it.
MAX_WAITING = 16
MAX_ON_BEHALF = 8  # of them, for one other agent: so that it alone does not use up what the client may ask for all
USE_WITHIN = timedelta(minutes=5)  # what was approved and is not fetched by then has to be asked for again

_COUNTING = 0x61326171  # "a2aq": the advisory lock of PostgreSQL under which new requests are counted
_ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"  # what people do not take for one another when they read it aloud


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client asks a person for."""

    request: str  # digest of all that a token of it would depend on
    client_id: str
    agent_id: str
    subject: str  # on whose behalf
    actors: tuple[str, ...]  # through whom it came from there, the latest first; the agent itself left out
    resource: str
    scope: str
    message: str  # in the client's own words; nothing vouches for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A request that waits for a person, or has been decided."""

    approval_id: str
    asked: Asked
    asked_at: datetime
    expires_at: datetime
    state: State
    decided_by: str
    decided_at: datetime | None


class ApprovalTable:
    """Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine, by: Operator | None = None) -> None:
        self._engine = engine
        self._by = by

    def ask(self, asked: Asked, *, now: datetime, lifetime: timedelta) -> tuple[Approval, bool]:
        """The approval for this request, made where there is none; and whether it is new.

        Raises:
            TooManyApprovals: `MAX_WAITING` requests of the client are there already, or `MAX_ON_BEHALF` on behalf of
                this subject, decided ones included.
        """
        try:
            return self._ask(asked, now=now, lifetime=lifetime)
        except sa.exc.IntegrityError:  # the same request, at the same time
            return self._ask(asked, now=now, lifetime=lifetime)

    def _ask(self, asked: Asked, *, now: datetime, lifetime: timedelta) -> tuple[Approval, bool]:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(APPROVALS).where(APPROVALS.c.expires_at <= seconds_of(now)))
            row = connection.execute(sa.select(APPROVALS).where(APPROVALS.c.request == asked.request)).first()
            if row is not None:
                return _approval(row), False
            if connection.dialect.name == "postgresql":  # or those who ask at the same time would not count one another
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_COUNTING})")
            of_client = sa.select(APPROVALS.c.subject).where(APPROVALS.c.client_id == asked.client_id)
            subjects = list(connection.execute(of_client).scalars())
            if len(subjects) >= MAX_WAITING:
                raise TooManyApprovals("too many requests of this client for a person", got=asked.client_id)
            if asked.subject != asked.agent_id and subjects.count(asked.subject) >= MAX_ON_BEHALF:
                raise TooManyApprovals("too many requests on behalf of this agent for a person", got=asked.subject)
            approval = Approval(
                approval_id=_new_id(),
                asked=asked,
                asked_at=now.replace(microsecond=0),
                expires_at=(now + lifetime).replace(microsecond=0),
                state="pending",
                decided_by="",
                decided_at=None,
            )
            connection.execute(
                sa.insert(APPROVALS).values(
                    approval_id=approval.approval_id,
                    request=asked.request,
                    client_id=asked.client_id,
                    agent_id=asked.agent_id,
                    subject=asked.subject,
                    actors=" ".join(asked.actors),
                    resource=asked.resource,
                    scope=asked.scope,
                    message=asked.message,
                    asked_at=seconds_of(approval.asked_at),
                    expires_at=seconds_of(approval.expires_at),
                    state=approval.state,
                    decided_by="",
                    decided_at=None,
                )
            )
            return approval, True

    def decide(self, approval_id: str, *, approve: bool, by: str, now: datetime) -> Approval:
        """Say yes or no to a request that waits; once.

        Raises:
            ApprovalNotWaiting: there is none with this ID that still waits.
        """
        with self._engine.begin() as connection:
            change: dict[str, object] = {"decided_by": by, "decided_at": seconds_of(now)}
            if approve:
                change |= {"state": "approved", "expires_at": seconds_of(now + USE_WITHIN)}
            else:  # the answer to the same request until it would have expired: nobody is asked twice
                change |= {"state": "denied"}
            waits = sa.and_(
                APPROVALS.c.approval_id == approval_id,
                APPROVALS.c.state == "pending",
                APPROVALS.c.expires_at > seconds_of(now),
            )
            if connection.execute(sa.update(APPROVALS).where(waits).values(change)).rowcount != 1:
                raise ApprovalNotWaiting(
                    f"no request {approval_id} waits for a decision",
                    expected="one that is neither decided nor expired",
                    do="list those that wait",
                )
            row = connection.execute(sa.select(APPROVALS).where(APPROVALS.c.approval_id == approval_id)).one()
            facts = {"subject": row.subject, "client": row.client_id, "scope": row.scope, "approval": approval_id}
            event = "approval approve" if approve else "approval deny"
            note(connection, self._by, event, row.resource, by=by, **facts)
            return _approval(row)

    def waiting(self, *, now: datetime) -> list[Approval]:
        """The requests that wait for a person, the oldest first."""
        with self._engine.connect() as connection:
            waits = sa.and_(APPROVALS.c.state == "pending", APPROVALS.c.expires_at > seconds_of(now))
            found = connection.execute(sa.select(APPROVALS).where(waits).order_by(APPROVALS.c.asked_at))
            return [_approval(row) for row in found]


def use_approval(connection: sa.Connection, approval: Approval, *, now: datetime) -> bool:
    """Take an approval, in the transaction that records its token; False where it was used, or expired, meanwhile."""
    usable = sa.and_(
        APPROVALS.c.approval_id == approval.approval_id,
        APPROVALS.c.state == "approved",
        APPROVALS.c.expires_at > seconds_of(now),
    )
    return connection.execute(sa.delete(APPROVALS).where(usable)).rowcount == 1


def _approval(row: sa.Row[tuple[object, ...]]) -> Approval:
    return Approval(
        approval_id=row.approval_id,
        asked=Asked(
            request=row.request,
            client_id=row.client_id,
            agent_id=row.agent_id,
            subject=row.subject,
            actors=tuple(row.actors.split()),
            resource=row.resource,
            scope=row.scope,
            message=row.message,
        ),
        asked_at=time_of(row.asked_at),
        expires_at=time_of(row.expires_at),
        state=row.state,
        decided_by=row.decided_by,
        decided_at=None if row.decided_at is None else time_of(row.decided_at),
    )


def _new_id() -> str:
    """For people to compare; no secret. 40 bits: rows are few, and a clash is an error of one request."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    return f"{letters[:4]}-{letters[4:]}"
