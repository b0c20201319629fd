"""Which tokens were issued, from which, and which of them are revoked.

Tokens themselves are never stored, only their identifiers (`jti`), so a stolen database gives nobody access.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from trust.errors import ClientRefused, SubjectTokenRefused
from trust.oauth.server.store.allowances import Allowances
from trust.oauth.server.store.decisions import Operator, note
from trust.oauth.server.store.disabled import disabled_of
from trust.oauth.server.store.schema import REVOCATIONS, TOKENS, seconds_of, time_of

# Expired rows that are removed for each one that is added: more than one, so the table shrinks to what lives.
PURGE_BATCH = 16
# A revoked token is on the list for as long after its end as an agent's clock may be behind ours (`MAX_SKEW_SECONDS`):
# there it would be valid again.
KEPT_SECONDS = 10
# Whoever exchanges tokens without end must not be able to make their revocation fail.
ATTEMPTS = 5
_DEADLOCK = "40P01"  # of PostgreSQL

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """One issued token, without the token. Times have whole seconds, as in its claims."""

    token_id: str  # `jti`
    parent_id: str | None  # `jti` of the subject token it was exchanged from
    root_id: str  # `jti` of the token at the start of the chain; its own where there is no parent
    root_issued_at: datetime
    client_id: str
    subject: str
    issued_at: datetime
    expires_at: datetime
    agent_id: str = ""  # of the client; not known of tokens in a database of before
    revoked: bool = False


class TokenTable:
    """Issued tokens. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine, by: Operator | None = None) -> None:
        self._engine = engine
        self._by = by
        self._allowances = Allowances()

    def add(self, issued: Issued, *, now: datetime, using: Callable[[sa.Connection], None] | None = None) -> None:
        """Record a token before it is handed out, and remove a few that expired before `now`.

        The parent is looked at in the same transaction, so that no child slips in while its parent is being revoked.

        Args:
            using: takes, in the same transaction, what is good for one token (`use_approval`, `use_assertion`). What it
                raises is raised, and then neither is the token recorded nor anything used; nor is it where the token is
                refused.

        Raises:
            SubjectTokenRefused: the parent is unknown here, revoked or expired.
            ClientRefused: the client was disabled since it was authenticated.
            TooManyTokensHeld: it has too many that have not expired (`allowances`).
        """
        (refused,) = _repeated(partial(self._add_all, [(issued, now)], using))
        if refused is not None:
            raise refused

    def add_all(self, tokens: Sequence[tuple[Issued, datetime]]) -> list[Exception | None]:
        """As `add` for each token with its now, in one transaction; what `add` would raise for one is in the list."""
        return _repeated(partial(self._add_all, tokens))

    def _add_all(
        self, tokens: Sequence[tuple[Issued, datetime]], using: Callable[[sa.Connection], None] | None = None
    ) -> list[Exception | None]:
        parents = sorted({issued.parent_id for issued, _ in tokens if issued.parent_id is not None})
        living: dict[str, int] = {}
        with self._engine.begin() as connection:
            purge = partial(_purge, connection, max(now for _, now in tokens), rows=PURGE_BATCH * len(tokens))
            # A transaction of SQLite that begins by writing never has to upgrade its lock. Elsewhere one that ends with
            # what waits for nobody never makes a revocation wait for it while it waits itself.
            is_first = connection.dialect.name == "sqlite"
            if is_first:
                purge()
            disabled = disabled_of(connection, {name for issued, _ in tokens for name in _names(issued)})
            if parents:
                found = sa.select(TOKENS.c.token_id, TOKENS.c.expires_at).where(
                    TOKENS.c.token_id.in_(parents), sa.not_(TOKENS.c.revoked)
                )
                # In one order for everybody: of two transactions that wait for each other's rows, one would fail.
                rows = connection.execute(found.order_by(TOKENS.c.token_id).with_for_update())
                living = {row.token_id: row.expires_at for row in rows}
            refused = [
                _refused(issued, living, disabled, now)
                or self._allowances.refused(connection, issued.client_id, issued.subject, now)
                for issued, now in tokens
            ]
            rows_to_be = [_row(issued) for (issued, _), error in zip(tokens, refused, strict=True) if error is None]
            if rows_to_be:
                connection.execute(sa.insert(TOKENS), rows_to_be)
                if using is not None:
                    using(connection)
            if not is_first:
                purge()
        return refused

    def find(self, token_id: str) -> Issued | None:
        """What is known of a token; None for one that was never issued here, or expired and is forgotten."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.token_id == token_id)).first()
        return None if row is None else _issued(row)

    def living(
        self, *, now: datetime, client_id: str | None = None, subject: str | None = None, limit: int
    ) -> list[Issued]:
        """The tokens that have not expired, newest first; those of one client or subject where one is named."""
        chosen = sa.select(TOKENS).where(*_of(client_id, subject, now))
        with self._engine.connect() as connection:
            rows = connection.execute(chosen.order_by(TOKENS.c.issued_at.desc(), TOKENS.c.token_id).limit(limit)).all()
        return [_issued(row) for row in rows]

    def revoke(self, token_id: str) -> int:
        """Revoke a token and every token that was exchanged from it; returns how many that were."""
        return self._revoke(TOKENS.c.token_id == token_id, target=token_id)

    def revoke_all(self, *, now: datetime, client_id: str | None = None, subject: str | None = None) -> int:
        """Revoke what a client holds, or what is about a subject, and all that was exchanged from it; how many.

        By another clock, a server's or an agent's, a token may live that has ended by ours.
        """
        if client_id is None and subject is None:
            raise ValueError("neither a client nor a subject")
        facts = {"client": client_id or "", "subject": subject or ""}
        kept = now - timedelta(seconds=KEPT_SECONDS)
        return self._revoke(*_of(client_id, subject, kept), target="", **facts)

    def _revoke(self, *chosen: sa.ColumnElement[bool], target: str, **facts: str) -> int:
        return _repeated(partial(self._revoke_once, *chosen, target=target, **facts))

    def _revoke_once(self, *chosen: sa.ColumnElement[bool], target: str, **facts: str) -> int:
        with self._engine.connect() as connection, connection.begin() as transaction:
            total = revoke_chosen(connection, *chosen)
            if not total and self._by is None:
                transaction.rollback()  # there was none to count
            else:  # a person's word is kept also where it changes nothing
                note(connection, self._by, "token revoke", target, revoked=total, **facts)
        return total

    def revocations(self) -> int:
        """How many there were so far: when it has grown, `revoked` has changed."""
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(REVOCATIONS.c.sequence)).scalar_one())

    def revoked(self, *, now: datetime, limit: int) -> dict[str, int]:
        """The revoked tokens with their ends in seconds since the epoch, until `KEPT_SECONDS` after; at most `limit`.

        Ask for `revocations` first: what comes in between is then in here already, and never the other way round.
        """
        chosen = sa.select(TOKENS.c.token_id, TOKENS.c.expires_at).where(
            TOKENS.c.revoked, TOKENS.c.expires_at > seconds_of(now) - KEPT_SECONDS
        )
        with self._engine.connect() as connection:
            return {row.token_id: row.expires_at for row in connection.execute(chosen.limit(limit))}


def revoke_chosen(connection: sa.Connection, *chosen: sa.ColumnElement[bool]) -> int:
    """Revoke tokens, and all that was exchanged from them, in a transaction of the caller's; returns how many.

    Args:
        chosen: conditions that a token still meets when it is revoked: by them its children are found afterwards.
    """
    # First: revocations wait for this row, and never for one another's tokens.
    connection.execute(sa.update(REVOCATIONS).values(sequence=REVOCATIONS.c.sequence + 1))
    roots = sa.select(TOKENS.c.root_id).where(*chosen)
    # All that may be touched, in the order in which those who add children lock the parents.
    living = sa.select(TOKENS.c.token_id).where(TOKENS.c.root_id.in_(roots), sa.not_(TOKENS.c.revoked))
    locked = living.order_by(TOKENS.c.token_id).with_for_update().subquery()
    connection.execute(sa.select(sa.func.count()).select_from(locked))
    revoke = sa.update(TOKENS).values(revoked=True).where(sa.not_(TOKENS.c.revoked))
    changed = total = connection.execute(revoke.where(*chosen)).rowcount
    dead = sa.select(TOKENS.c.token_id).where(TOKENS.c.root_id.in_(roots), TOKENS.c.revoked)
    # One generation a round, each with fresh eyes: a child that was being added while we waited for its parent's lock
    # is seen by the next round.
    while changed:
        changed = connection.execute(revoke.where(TOKENS.c.root_id.in_(roots), TOKENS.c.parent_id.in_(dead))).rowcount
        total += changed
    return int(total)


def _repeated(transaction: Callable[[], T]) -> T:
    """What a transaction returns; anew where the database ended it because two had waited for one another."""
    for _ in range(ATTEMPTS - 1):
        try:
            return transaction()
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                raise
    return transaction()


def _of(client_id: str | None, subject: str | None, now: datetime) -> list[sa.ColumnElement[bool]]:
    chosen = [TOKENS.c.expires_at > seconds_of(now)]
    if client_id is not None:
        chosen.append(TOKENS.c.client_id == client_id)
    if subject is not None:
        chosen.append(TOKENS.c.subject == subject)
    return chosen


def _issued(row: sa.Row[Any]) -> Issued:
    return Issued(
        token_id=row.token_id,
        parent_id=row.parent_id,
        root_id=row.root_id,
        root_issued_at=time_of(row.root_issued_at),
        client_id=row.client_id,
        agent_id=row.agent_id or "",
        subject=row.subject,
        issued_at=time_of(row.issued_at),
        expires_at=time_of(row.expires_at),
        revoked=row.revoked,
    )


def _names(issued: Issued) -> set[str]:
    """By which its client can be disabled."""
    return {issued.client_id, issued.agent_id} - {""}


def _refused(issued: Issued, living: Mapping[str, int], disabled: Set[str], now: datetime) -> Exception | None:
    if not disabled.isdisjoint(_names(issued)):
        return ClientRefused("client is disabled", got=issued.client_id, expected="one that still was when it asked")
    if issued.parent_id is not None and living.get(issued.parent_id, 0) <= seconds_of(now):
        return SubjectTokenRefused("subject token is unknown, revoked or expired")
    return None


def _row(issued: Issued) -> dict[str, Any]:
    return {
        "token_id": issued.token_id,
        "parent_id": issued.parent_id,
        "root_id": issued.root_id,
        "root_issued_at": seconds_of(issued.root_issued_at),
        "client_id": issued.client_id,
        "agent_id": issued.agent_id or None,
        "subject": issued.subject,
        "issued_at": seconds_of(issued.issued_at),
        "expires_at": seconds_of(issued.expires_at),
        "revoked": issued.revoked,
    }


def _purge(connection: sa.Connection, now: datetime, *, rows: int) -> None:
    """Remove at most so many expired rows. No child outlives its parent, so no living row loses its own."""
    ended = TOKENS.c.expires_at < seconds_of(now) - KEPT_SECONDS
    # What another transaction is busy with goes another time.
    expired = sa.select(TOKENS.c.token_id).where(ended).limit(rows).with_for_update(skip_locked=True)
    connection.execute(sa.delete(TOKENS).where(TOKENS.c.token_id.in_(expired)))
