"""PostgreSQL: whoever hangs (a server, a network, another instance) is given up, and a commit is on the disk."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import URL, create_engine, event

from pki.errors import StoreError

# An instance that is frozen (a paused machine, a lost network) must not keep its turn for ever.
_IDLE_MS = 15_000  # within a transaction, with nothing to do: then the server ends it
_TCP: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# Of one statement; a server that stands still keeps its connections, and says nothing.
ANSWER_TIMEOUT = timedelta(seconds=30)


def engine(url: URL, patience: float, options: dict[str, Any]) -> Any:
    """SQLAlchemy's engine. A statement, a lock and a connection are waited for, and none of them for ever.

    Args:
        patience: seconds, to connect and for a lock.
        options: of `create_engine`.

    Raises:
        StoreError: psycopg is not installed.
    """
    try:
        made = create_engine(
            url,
            isolation_level="READ COMMITTED",  # a writer reads after it has its turn, and must see what came before
            pool_pre_ping=True,
            connect_args={"connect_timeout": int(patience) or 1, **_TCP, **dict(url.query)},
            **options,
        )
    except ImportError:
        raise StoreError(
            "PostgreSQL", got="no driver", expected="psycopg", do="install the extra `postgresql` of a2a-trust"
        ) from None

    def configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS}")
            for name in ("tcp_keepalives_idle", "tcp_keepalives_interval"):
                # Where it is a socket of the machine: ignored.
                cursor.execute(f"SET {name} = {_TCP[name.removeprefix('tcp_')]}")
            cursor.execute(f"SET lock_timeout = {int(patience * 1000)}")
            # Durable means on disk, whatever the server's default is.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()

    event.listen(made, "do_connect", lambda _dialect, _record, args, given: _patient().connect(*args, **given))
    event.listen(made, "connect", configure)
    return made


@cache
def _patient() -> Any:
    """The driver's connection, but that it does not wait for ever.

    A server that hangs still answers at the level of TCP, and nothing at all to the driver's cancelling, so the
    connection is given up. Whoever waits for it is told; whether a commit was done is not known.
    """
    import psycopg

    class Patient(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **given: Any) -> Any:
            end = time.monotonic() + ANSWER_TIMEOUT.total_seconds()
            return super().wait(self._bounded(gen, end), *args, **given)

        def _bounded(self, gen: Any, end: float) -> Any:
            """The driver asks every 0.1 s whether there is news, and this is where it asks."""
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() > end:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT.total_seconds():g} s")
                    wanted = gen.send(ready)
            except StopIteration as answer:
                return answer.value

    return Patient
