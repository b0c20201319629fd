"""Which tokens were issued, from which, and which of them are revoked.

Tokens themselves are never stored, only their identifiers (`jti`), so a stolen database gives nobody access.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from trust.errors import SubjectTokenRefused
from trust.oauth.server.store.schema import TOKENS

PURGE_BATCH = (
    16  # expired rows removed by each insertion: more than the one it adds, so the table shrinks to what lives
)


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
    revoked: bool = False


class TokenTable:
    """Issued tokens. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, issued: Issued, *, now: datetime) -> None:
        """Record a token before it is handed out, and remove a few that expired before `now`.

        The parent is looked at in the same transaction, so that no child slips in while its parent is being revoked.

        Raises:
            SubjectTokenRefused: the parent is unknown here, revoked or expired.
        """
        with self._engine.begin() as connection:
            # First, because a transaction of SQLite that begins by writing never has to upgrade its lock.
            _purge(connection, now)
            if issued.parent_id is not None:
                parent = sa.select(TOKENS).where(
                    TOKENS.c.token_id == issued.parent_id,
                    sa.not_(TOKENS.c.revoked),
                    TOKENS.c.expires_at > _seconds(now),
                )
                if connection.execute(parent.with_for_update()).first() is None:
                    raise SubjectTokenRefused("subject token is unknown, revoked or expired")
            connection.execute(
                sa.insert(TOKENS).values(
                    token_id=issued.token_id,
                    parent_id=issued.parent_id,
                    root_id=issued.root_id,
                    root_issued_at=_seconds(issued.root_issued_at),
                    client_id=issued.client_id,
                    subject=issued.subject,
                    issued_at=_seconds(issued.issued_at),
                    expires_at=_seconds(issued.expires_at),
                    revoked=issued.revoked,
                )
            )

    def find(self, token_id: str) -> Issued | None:
        """What is known of a token; None for one that was never issued here, or expired and is forgotten."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.token_id == token_id)).first()
        if row is None:
            return None
        return Issued(
            token_id=row.token_id,
            parent_id=row.parent_id,
            root_id=row.root_id,
            root_issued_at=_time(row.root_issued_at),
            client_id=row.client_id,
            subject=row.subject,
            issued_at=_time(row.issued_at),
            expires_at=_time(row.expires_at),
            revoked=row.revoked,
        )

    def revoke(self, token_id: str) -> int:
        """Revoke a token and every token that was exchanged from it; returns how many that were."""
        with self._engine.begin() as connection:
            revoke = sa.update(TOKENS).values(revoked=True).where(sa.not_(TOKENS.c.revoked))
            changed = total = connection.execute(revoke.where(TOKENS.c.token_id == token_id)).rowcount
            root = sa.select(TOKENS.c.root_id).where(TOKENS.c.token_id == token_id).scalar_subquery()
            dead = sa.select(TOKENS.c.token_id).where(TOKENS.c.root_id == root, TOKENS.c.revoked)
            # One generation a round, each with fresh eyes: a child that was being added while we waited for its
            # parent's lock is seen by the next round.
            while changed:
                changed = connection.execute(
                    revoke.where(TOKENS.c.root_id == root, TOKENS.c.parent_id.in_(dead))
                ).rowcount
                total += changed
        return total


def _purge(connection: sa.Connection, now: datetime) -> None:
    """Remove at most `PURGE_BATCH` expired rows. No child outlives its parent, so no living row loses its own."""
    expired = sa.select(TOKENS.c.token_id).where(TOKENS.c.expires_at < _seconds(now)).limit(PURGE_BATCH)
    connection.execute(sa.delete(TOKENS).where(TOKENS.c.token_id.in_(expired)))


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
