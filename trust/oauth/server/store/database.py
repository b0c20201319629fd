"""The authorization server's memory: one database, with a class for each of its tables."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import event

from trust.errors import ConfigurationError
from trust.oauth.server.store.schema import METADATA
from trust.oauth.server.store.tokens import TokenTable

BUSY_SECONDS = 10  # how long a writer waits for another process that holds SQLite's one write lock


class Store:
    """The database. Thread-safe; every method of its tables blocks, so call it from a worker thread."""

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
            METADATA.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise ConfigurationError(
                "token store cannot be opened", got=type(error).__name__, expected="the URL of a writable database"
            ) from error
        self.tokens = TokenTable(self._engine)

    def close(self) -> None:
        self._engine.dispose()


def _configure_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last commits in a power cut
    cursor.close()
