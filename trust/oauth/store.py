"""The authorization server's memory: which tokens were issued, from which, and which of them are revoked.

Tokens themselves are never stored, only their identifiers (`jti`), so a stolen database gives nobody access.

Only this file of `trust` knows SQLAlchemy. The default is one SQLite file (write-ahead log); any other database goes
by its URL. Every change is durable before the method returns: a revocation that a power cut undid would let a thief
back in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import event

from trust.errors import ConfigurationError, SubjectTokenRefused

PURGE_BATCH = (
    16  # expired rows removed by each insertion: more than the one it adds, so the table shrinks to what lives
)
BUSY_SECONDS = 10  # how long a writer waits for another process that holds SQLite's one write lock

_METADATA = sa.MetaData()
_TOKENS = sa.Table(
    "oauth_tokens",
    _METADATA,
    sa.Column("token_id", sa.String(64), primary_key=True),
    sa.Column("parent_id", sa.String(64), nullable=True),
    sa.Column("root_id", sa.String(64), nullable=False, index=True),
    sa.Column("root_issued_at", sa.BigInteger, nullable=False),
    sa.Column("client_id", sa.String(2048), nullable=False),
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("revoked", sa.Boolean, nullable=False),
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


class Store:
    """Issued tokens in a database. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, url: str) -> None:
        """Open the database and create what is missing in it.

        Args:
            url: SQLAlchemy's form, such as `sqlite:////var/lib/a2a-trust/oauth.db`.

        Raises:
            ConfigurationError: the URL cannot be used, or names a database that would be lost with the process.
        """
        try:
            address = sa.make_url(url)
            if address.get_backend_name() == "sqlite" and address.database in (None, "", ":memory:"):
                raise ConfigurationError("token store is not durable", expected="a file, as in sqlite:///oauth.db")
            # An SQL error that shows its parameters would put the identifiers of tokens into logs.
            self._engine = sa.create_engine(address, hide_parameters=True)
            if address.get_backend_name() == "sqlite":
                event.listen(self._engine, "connect", _configure_sqlite)
            _METADATA.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise ConfigurationError(
                "token store cannot be opened", got=type(error).__name__, expected="the URL of a writable database"
            ) from error

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
                parent = sa.select(_TOKENS).where(
                    _TOKENS.c.token_id == issued.parent_id,
                    sa.not_(_TOKENS.c.revoked),
                    _TOKENS.c.expires_at > _seconds(now),
                )
                if connection.execute(parent.with_for_update()).first() is None:
                    raise SubjectTokenRefused("subject token is unknown, revoked or expired")
            connection.execute(
                sa.insert(_TOKENS).values(
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
            row = connection.execute(sa.select(_TOKENS).where(_TOKENS.c.token_id == token_id)).first()
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
            revoke = sa.update(_TOKENS).values(revoked=True).where(sa.not_(_TOKENS.c.revoked))
            changed = total = connection.execute(revoke.where(_TOKENS.c.token_id == token_id)).rowcount
            root = sa.select(_TOKENS.c.root_id).where(_TOKENS.c.token_id == token_id).scalar_subquery()
            dead = sa.select(_TOKENS.c.token_id).where(_TOKENS.c.root_id == root, _TOKENS.c.revoked)
            # One generation a round, each with fresh eyes: a child that was being added while we waited for its
            # parent's lock is seen by the next round.
            while changed:
                changed = connection.execute(
                    revoke.where(_TOKENS.c.root_id == root, _TOKENS.c.parent_id.in_(dead))
                ).rowcount
                total += changed
        return total

    def close(self) -> None:
        self._engine.dispose()


def _purge(connection: sa.Connection, now: datetime) -> None:
    """Remove at most `PURGE_BATCH` expired rows. No child outlives its parent, so no living row loses its own."""
    expired = sa.select(_TOKENS.c.token_id).where(_TOKENS.c.expires_at < _seconds(now)).limit(PURGE_BATCH)
    connection.execute(sa.delete(_TOKENS).where(_TOKENS.c.token_id.in_(expired)))


def _configure_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last commits in a power cut
    cursor.close()


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
