"""What people decide by command: who decided what, and when.

A row is written in the transaction that carries the decision out, so there is neither without the other. It stays
until a running server has told its audit trail of it (`trust.oauth.server.decisions`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from trust.clock import Clock, wall_clock
from trust.oauth.server.store.schema import DECISIONS, seconds_of, time_of

# What a record of the trail has beside the facts; no fact is called so.
_TAKEN = {"self", "time", "event", "decision", "check", "peer", "target", "by", "account", "at", "number"}
TELLING = timedelta(seconds=60)  # for one record; a server that has not come back by then has crashed


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who is at work on the database, other than a server.

    Nothing vouches for it: whoever can write to the database can write any name.

    Args:
        account: such as "alice@host".
        clock: the time, aware.
    """

    account: str
    clock: Clock = wall_clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One decision."""

    number: int  # grows; none is used twice
    event: str  # the command, such as "client disable"
    target: str
    by: str  # who decided: the name that was given, or the account
    account: str
    at: datetime
    facts: Mapping[str, str | int]


def note(
    connection: sa.Connection,
    operator: Operator | None,
    event: str,
    target: str,
    *,
    by: str = "",
    **facts: str | int,
) -> None:
    """Write down a decision, in the transaction that carries it out; nothing for a server's own work (no operator)."""
    if operator is not None:
        connection.execute(
            sa.insert(DECISIONS).values(
                event=event,
                target=target,
                decided_by=by or operator.account,
                account=operator.account,
                decided_at=seconds_of(operator.clock()),
                facts=json.dumps(facts),
            )
        )


class DecisionTable:
    """Decisions that no audit trail has yet. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def take(self, *, now: datetime) -> Decided | None:
        """The oldest one, which nobody else gets for `TELLING`; None where there is none.

        No lock is held meanwhile: an audit trail that hangs must not keep anybody from disabling a client.
        """
        seconds, telling = seconds_of(now), int(TELLING.total_seconds())
        until = DECISIONS.c.taken_until
        # What is taken for longer than anybody takes it was so by a clock that was ahead.
        free = sa.or_(until.is_(None), until <= seconds, until > seconds + 2 * telling)
        with self._engine.connect() as connection:
            if connection.execute(sa.select(DECISIONS.c.number).where(free).limit(1)).first() is None:
                return None  # as nearly always; nothing has waited for a writer
        with self._engine.begin() as connection:
            oldest = sa.select(DECISIONS.c.number).where(free).order_by(DECISIONS.c.number).limit(1)
            chosen = DECISIONS.c.number.in_(oldest.with_for_update(skip_locked=True))
            taken = sa.update(DECISIONS).where(chosen).values(taken_until=seconds + telling).returning(DECISIONS)
            row = connection.execute(taken).first()
        return None if row is None else _decided(row)

    def told(self, decided: Decided) -> None:
        """It is in an audit trail."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(DECISIONS).where(DECISIONS.c.number == decided.number))

    def give_back(self, decided: Decided) -> None:
        """It could not be told: whoever looks next takes it."""
        with self._engine.begin() as connection:
            mine = DECISIONS.c.number == decided.number
            connection.execute(sa.update(DECISIONS).where(mine).values(taken_until=None))


def _decided(row: sa.Row[Any]) -> Decided:
    return Decided(
        number=row.number,
        event=row.event,
        target=row.target,
        by=row.decided_by,
        account=row.account,
        at=_at(row.decided_at),
        facts=_facts(row.facts),
    )


# One row that is damaged must not keep the decisions after it from the trail: it is told as it can be.
def _facts(text: str) -> Mapping[str, str | int]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if (
        isinstance(facts, dict)
        and facts.keys().isdisjoint(_TAKEN)
        and all(type(f) in (str, int) for f in facts.values())
    ):
        return facts
    return {"damaged": text}


def _at(seconds: int) -> datetime:
    try:
        return time_of(seconds)
    except (ValueError, OverflowError, OSError):
        return time_of(0)
