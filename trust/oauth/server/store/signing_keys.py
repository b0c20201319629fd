"""The keys that sign tokens, encrypted: shared by every process that serves one authorization server.

Each change is one transaction that names what it expects to find, so of several processes that do the same thing at
once one succeeds, and a crash leaves a state that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from trust.oauth.server.store.decisions import Operator, note
from trust.oauth.server.store.schema import SIGNING_KEYS, seconds_of, time_of


class KeyState(StrEnum):
    NEXT = "next"  # published; signs nothing yet
    ACTIVE = "active"  # signs
    RETIRED = "retired"  # published, for the tokens that it signed


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """One key at rest."""

    number: int  # 1, 2, ... in the order they were made; never used twice
    kid: str
    alg: str
    state: KeyState
    since: datetime  # when it came into this state; whole seconds
    pem: bytes = field(repr=False)  # PKCS#8, encrypted


class SigningKeyTable:
    """Signing keys. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine, by: Operator | None = None) -> None:
        self._engine = engine
        self._by = by

    def all(self) -> tuple[KeyRecord, ...]:
        """Every key that is published, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(SIGNING_KEYS).order_by(SIGNING_KEYS.c.number)).all()
        return tuple(
            KeyRecord(
                number=row.number,
                kid=row.kid,
                alg=row.alg,
                state=KeyState(row.state),
                since=time_of(row.since),
                pem=row.pem.encode(),
            )
            for row in rows
        )

    def add(self, record: KeyRecord) -> bool:
        """Add the newest key; False where another process has made one of this number, or a later one."""
        try:
            with self._engine.begin() as connection:
                made = connection.execute(_insert(record)).first() is not None
                if made:
                    note(connection, self._by, "authority rotate", record.kid, alg=record.alg)
                return made
        except sa.exc.IntegrityError:  # at the same moment
            return False

    def activate(self, number: int, *, now: datetime) -> bool:
        """The next key signs, and the one that did so is retired; False where that has happened already."""
        with self._engine.connect() as connection, connection.begin() as transaction:
            retired = sa.update(SIGNING_KEYS).values(state=KeyState.RETIRED, since=seconds_of(now))
            connection.execute(retired.where(SIGNING_KEYS.c.state == KeyState.ACTIVE, SIGNING_KEYS.c.number < number))
            active = sa.update(SIGNING_KEYS).values(state=KeyState.ACTIVE, since=seconds_of(now))
            found = active.where(SIGNING_KEYS.c.number == number, SIGNING_KEYS.c.state == KeyState.NEXT)
            if connection.execute(found).rowcount == 1:
                return True
            transaction.rollback()
            return False

    def redate(self, record: KeyRecord, *, now: datetime) -> bool:
        """Say that a key came into its state now; False where it has changed meanwhile."""
        same = (SIGNING_KEYS.c.number == record.number, SIGNING_KEYS.c.state == record.state)
        with self._engine.begin() as connection:
            change = sa.update(SIGNING_KEYS).values(since=seconds_of(now)).where(*same)
            return connection.execute(change.where(SIGNING_KEYS.c.since == seconds_of(record.since))).rowcount == 1

    def erase(self, number: int) -> bool:
        """Remove a retired key; False where it is gone, or not retired."""
        with self._engine.begin() as connection:
            gone = sa.delete(SIGNING_KEYS).where(
                SIGNING_KEYS.c.number == number, SIGNING_KEYS.c.state == KeyState.RETIRED
            )
            return connection.execute(gone).rowcount == 1

    def replace_all(self, record: KeyRecord) -> bool:
        """Remove every key and add this one, which signs at once; False as `add`, and then nothing was removed."""
        try:
            with self._engine.connect() as connection, connection.begin() as transaction:
                if connection.execute(_insert(record)).first() is None:
                    transaction.rollback()
                    return False
                connection.execute(sa.delete(SIGNING_KEYS).where(SIGNING_KEYS.c.number < record.number))
                facts = {"alg": record.alg, "compromised": "all keys before"}
                note(connection, self._by, "authority rotate", record.kid, **facts)
                return True
        except sa.exc.IntegrityError:
            return False


def _insert(record: KeyRecord) -> sa.sql.dml.ReturningInsert[tuple[int]]:
    """Only as the newest: a process that was asleep since it looked must not bring back a number."""
    values = {
        "number": record.number,
        "kid": record.kid,
        "alg": record.alg,
        "state": record.state,
        "since": seconds_of(record.since),
        "pem": record.pem.decode("ascii"),
    }
    newer = sa.select(SIGNING_KEYS.c.number).where(SIGNING_KEYS.c.number >= record.number).exists()
    columns = [sa.literal(value, SIGNING_KEYS.c[name].type) for name, value in values.items()]
    made = sa.insert(SIGNING_KEYS).from_select(list(values), sa.select(*columns).where(sa.not_(newer)))
    return made.returning(SIGNING_KEYS.c.number)
