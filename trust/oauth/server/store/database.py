"""The authorization server's memory: one database, with a class for each of its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import sqlalchemy as sa

from trust.errors import ConfigurationError
from trust.oauth.server.store.approvals import ApprovalTable
from trust.oauth.server.store.clients import ClientTable
from trust.oauth.server.store.decisions import DecisionTable, Operator
from trust.oauth.server.store.engines import engine_for, name_of, unavailable, words_of
from trust.oauth.server.store.schema import ISSUER
from trust.oauth.server.store.signing_keys import SigningKeyTable
from trust.oauth.server.store.tokens import TokenTable
from trust.oauth.server.store.upgrading import prepare


class Store:
    """The database. Thread-safe; every method of its tables blocks, so call it from a worker thread.

    As a `with` block it is closed at the end; and what goes wrong with the database in there is a ConfigurationError.
    """

    def __init__(self, url: str, *, create: bool = True, by: Operator | None = None) -> None:
        """Open the database; what it lacks is made, in a database of before, too.

        Args:
            url: `sqlite:////var/lib/a2a-trust/oauth.db`, or `postgresql://user:password@host/database` (extra
                `postgresql`).
            create: False to leave a database as it is that no authorization server has used.
            by: who decides here about clients, tokens, approvals and keys: each such decision comes into the server's
                audit trail. None for a server, which records what it does itself.

        Raises:
            ConfigurationError: the URL cannot be used, names a database that would be lost with the process, or one
                of a later release; or nothing was to be made, and the database is no authorization server's.
        """
        self._engine = engine_for(url, create=create)
        try:
            prepare(self._engine, create=create)
        except sa.exc.SQLAlchemyError as error:
            self._engine.dispose()
            raise ConfigurationError(
                f"token store {name_of(self._engine)} cannot be opened",
                got=words_of(self._engine, error),
                expected="a writable database, such as sqlite:////folder/tokens.db or postgresql://...",
            ) from None
        except BaseException:
            self._engine.dispose()
            raise
        self.tokens = TokenTable(self._engine, by)
        self.clients = ClientTable(self._engine, by)
        self.signing_keys = SigningKeyTable(self._engine, by)
        self.approvals = ApprovalTable(self._engine, by)
        self.decisions = DecisionTable(self._engine)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, UnicodeError):
            raise ConfigurationError("text for the token store", expected="UTF-8") from None
        if isinstance(error, sa.exc.SQLAlchemyError):
            raise ConfigurationError(
                f"token store {name_of(self._engine)}",
                got=words_of(self._engine, error),
                expected="a database that answers",
                do="try again",
            ) from None

    def claim(self, issuer: str) -> None:
        """Keep whose database this is, where nobody has claimed it yet. Errors as `check_issuer`."""
        if self._issuer() is None:
            # Of several servers that start at once, one is the first.
            with contextlib.suppress(sa.exc.IntegrityError), self._engine.begin() as connection:
                connection.execute(sa.insert(ISSUER).values(id=1, issuer=issuer))
        self.check_issuer(issuer)

    def check_issuer(self, issuer: str) -> None:
        """That the database is this issuer's, or nobody's yet.

        Raises:
            ConfigurationError: it is another issuer's, whose agents would believe nothing that we sign.
        """
        theirs = self._issuer()
        if theirs not in (None, issuer):
            raise ConfigurationError(
                f"this database belongs to issuer {theirs}",
                got=issuer,
                do="give another issuer a database of its own: another --state folder, or another --store",
            )

    def _issuer(self) -> str | None:
        with self._engine.connect() as connection:
            return connection.execute(sa.select(ISSUER.c.issuer)).scalar()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """For what is done with the tables in this block.

        Raises:
            TokenStoreUnavailable: the database does not answer. What else goes wrong with it is raised as it is.
        """
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            if (away := unavailable(self._engine, error)) is None:
                raise
            raise away from None

    def close(self) -> None:
        self._engine.dispose()
