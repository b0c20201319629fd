"""Where a database may be, and that nothing about it is said aloud that only its owner should know."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from pki import store
from pki.errors import AuthorityMissing, PKIError, StoreError
from pki.records import IssuerRecord
from pki.store import DATABASE_FILE, Store, backup, restore
from pki.store import database as module
from pki.store import postgresql as driver
from pki.store.database import Database, Location, locate, sqlite_file
from tests.pki.conftest import NOW
from tests.pki.judges import listing
from tests.pki.store import parts
from tests.pki.store.parts import CA1, PASSWORD, ROOT, SETTINGS, issue, leaf
from trust.errors import Fault

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("where", "file", "url"),
    [
        ("ca", "ca/ca.db", "sqlite:///ca/ca.db"),
        (Path("/srv/ca"), "/srv/ca/ca.db", "sqlite:////srv/ca/ca.db"),
        ("sqlite:///ca/ca.db", "ca/ca.db", "sqlite:///ca/ca.db"),
        ("sqlite:////srv/ca/ca.db", "/srv/ca/ca.db", "sqlite:////srv/ca/ca.db"),
        ("postgresql://u:p@h/d", None, "postgresql+psycopg://u:p@h/d"),
        ("postgres://u:p@h/d", None, "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://u:p@h:1/d?sslmode=require", None, "postgresql+psycopg://u:p@h:1/d?sslmode=require"),
        ("postgresql:///d?host=/run/postgresql", None, "postgresql+psycopg:///d?host=%2Frun%2Fpostgresql"),
    ],
)
def test_where_it_is(where: str | Path, file: str | None, url: str) -> None:
    location = locate(where)
    assert location.file == (None if file is None else Path(file))
    assert location.url.render_as_string(hide_password=False) == url


@pytest.mark.parametrize(
    "where",
    [
        f"mysql://u:{SECRET}@h/d",
        f"postgresql+psycopg2://u:{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h",
        f"postgresql://u:half@{SECRET}@h/d",
        f"postgresql://u:{SECRET} @@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"sqlite:///{SECRET}/other.db",
        "sqlite://",
        f"sqlite:///ca.db?key={SECRET}",
        f"://{SECRET}",
        f"{SECRET}://",
    ],
)
def test_where_it_cannot_be(where: str) -> None:
    with pytest.raises(PKIError) as caught:
        locate(where)
    assert type(caught.value) is AuthorityMissing
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_location_keeps_the_password_to_itself() -> None:
    location = locate(f"postgresql://u:{SECRET}@h/d?password={SECRET}")
    assert SECRET not in f"{location} {location!r}"
    assert str(location) == "PostgreSQL database d on h"
    assert str(locate("postgresql:///d")) == "PostgreSQL database d on here"


def test_what_goes_wrong_does_not_tell_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PKIError) as caught:
        Store.open(f"postgresql://someone:{SECRET}@127.0.0.1:1/none")
    assert type(caught.value) is StoreError
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_a_refused_login_does_not_tell_the_password(postgresql: str) -> None:
    url = make_url(postgresql).set(username="nobody_here", password=SECRET, database="no_such_database")
    with pytest.raises(PKIError) as caught:
        Store.open(url.render_as_string(hide_password=False))
    assert type(caught.value) is StoreError
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_was_not_created(postgresql: str) -> None:
    url = make_url(postgresql).set(database="no_such_database")
    with pytest.raises(PKIError, match="create it first") as caught:
        Store.open(url.render_as_string(hide_password=False))
    assert type(caught.value) is StoreError


def test_a_row_that_is_refused_is_not_shown(where: str) -> None:
    """The statement's parameters would be keys and token digests."""
    opened = Store.open(where)
    secret = IssuerRecord(
        key_id=CA1.row.key_id,
        kind="root",
        parent="",
        state=ROOT.row.state,
        since=NOW,
        serial=1,
        der=ROOT.row.der,
        key_pem=SECRET.encode(),
    )
    with pytest.raises(PKIError) as caught:
        opened.change_issuers(add=[(secret, parts.fake(1))], now=NOW)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    opened.close()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(PKIError, match="install the extra `postgresql` of a2a-trust") as caught:
        Store.open("postgresql://h/d")
    assert type(caught.value) is StoreError


def test_the_face() -> None:
    assert len(set(store.__all__)) == len(store.__all__) == 9
    assert all(hasattr(store, name) for name in store.__all__)
    assert DATABASE_FILE == "ca.db"
    assert isinstance(locate("x"), Location)
    assert SETTINGS.name_constraint


def test_the_connection_that_writes_is_kept_unless_something_fails(tmp_path: Path) -> None:
    """What it holds in memory is worth keeping; what has failed is not."""
    (tmp_path / "any.db").touch()
    opened = Database(sqlite_file(tmp_path / "any.db"))

    def writer() -> object:
        with opened.write() as connection:
            return connection.connection.dbapi_connection

    first = writer()
    assert writer() is first
    with pytest.raises(PKIError) as caught, opened.write() as connection:
        connection.execute(text("SELECT nothing"))
    assert type(caught.value) is StoreError
    second = writer()
    assert second is not first
    with pytest.raises(PKIError, match="within a transaction") as caught, opened.write() as connection:
        module._take_turn(connection)  # fails, and not because of a lock
    assert type(caught.value) is StoreError
    second = writer()
    with opened.read() as connection:
        assert connection.connection.dbapi_connection is not second, "readers wait, and it does not"
    opened.close()
    assert writer() is not second, "as before it was closed"
    opened.close()


@pytest.mark.skipif(os.name == "nt", reason="a file that is open is not moved there")
def test_a_file_that_was_moved_away_is_neither_read_nor_written(folder: Path, tmp_path: Path) -> None:
    """As an operator does before a restore, while a service runs."""
    running, away = parts.opened(folder), tmp_path / "away"
    issue(running, leaf())
    size = running.ledger_size()
    backup(running, tmp_path / "saved")
    shutil.copytree(folder, away)
    for name in listing(folder):
        (folder / name).replace(away / name)
    for use in (running.ledger_size, lambda: issue(running, leaf())):
        with pytest.raises(PKIError, match=r"got no file .*ca\.db") as caught:
            use()
        assert type(caught.value) is StoreError
    assert listing(folder) == [], "nor is one made in its place"
    restore(tmp_path / "saved", folder, password=PASSWORD)
    assert running.ledger_size() == size
    issue(running, leaf())
    running.close()
    sizes = []
    for where in (folder, away):
        store = parts.opened(where)
        sizes.append(store.ledger_size())
        assert parts.problems(store) == ()
        store.close()
    assert sizes == [size + 1, size]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing, and is still there."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except (ProcessLookupError, PermissionError):
        pytest.skip("the PostgreSQL server is not a process of ours on this machine")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


BACKEND = text("SELECT pg_backend_pid()")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_server_that_hangs_in_a_transaction_is_given_up(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither answers nor refuses; whoever waits is told, and the next one gets another connection."""
    monkeypatch.setattr(driver, "ANSWER_TIMEOUT", timedelta(seconds=0.5))
    opened = Database(locate(postgresql))
    try:
        with pytest.raises(PKIError, match=r"no answer within 0\.5 s") as caught, opened.write() as connection:
            first = connection.execute(BACKEND).scalar_one()
            with stopped(first):
                connection.execute(text("SELECT 1"))
        assert type(caught.value) is StoreError
        assert (caught.value.status, caught.value.fault) == (500, Fault.SERVICE), "the service answers 503 to that"
        with opened.write() as connection:
            assert connection.execute(BACKEND).scalar_one() != first
    finally:
        opened.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_connection_that_hangs_between_two_transactions_is_replaced(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ANSWER_TIMEOUT", timedelta(seconds=0.5))
    opened = Database(locate(postgresql))
    try:
        with opened.read() as connection:
            first = connection.execute(BACKEND).scalar_one()
        with stopped(first), opened.read() as connection:
            assert connection.execute(BACKEND).scalar_one() != first
    finally:
        opened.close()
