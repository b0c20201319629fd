from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.forge import NOW
from trust.errors import ConfigurationError, TokenStoreUnavailable
from trust.oauth.server.store import Store, engines
from trust.oauth.server.store.engines import engine_for, words_of


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///oauth.db?mode=memory",
        "sqlite:////no/such/folder/hunter2.db",
        "mysql://root:hunter2@host/name",
        "nosuchdb://root:hunter2@host/name",
        "postgresql://root:hun@ter2@host/name",
        "postgresql://root:h@unter/hunter2@host/name",
        "postgresql://root:hunter2@host",
        "postgresql+asyncpg://root:hunter2@host/name",
        "hunter2",
        "",
    ],
)
def test_a_url_that_names_no_database_that_lasts_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        engine_for(url)
    assert type(caught.value) is ConfigurationError
    assert "hunter2" not in str(caught.value) or "no/such/folder" in url
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_told_in_one_line_without_the_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Store("postgresql://nobody:hunter2@127.0.0.1:1/name")
    told = "token store postgresql://127.0.0.1:1/name cannot be opened: got connection failed: "
    assert str(caught.value).startswith(told) and "sqlite:////folder/tokens.db" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "hunter2" not in repr(caught.value) and "\n" not in str(caught.value)


def test_a_database_that_is_not_there_is_told_apart_from_one_that_lets_nobody_in(postgresql: str) -> None:
    url = sa.make_url(postgresql)
    wrong = (url.set(database="no_such_one"), url.set(username="nobody_here", password="hunter2"))
    for address, words in zip(wrong, ('database "no_such_one" does not exist', 'role "nobody_here" '), strict=True):
        with pytest.raises(ConfigurationError, match="cannot be opened") as caught:
            Store(address.render_as_string(hide_password=False))
        assert words in str(caught.value) or "password authentication failed" in str(caught.value)
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_standby_is_away(postgresql: str) -> None:
    """Which PostgreSQL says of a failover, until somebody makes the other one the first."""
    with Store(postgresql) as store:
        store.clients.changes()
    with Store(f"{postgresql}?options=-c%20default_transaction_read_only%3Don") as standby:
        with standby.reached():
            standby.clients.changes()
        with pytest.raises(TokenStoreUnavailable, match="read-only"), standby.reached():
            standby.clients.disable("spiffe://fleet.example/planner", now=NOW)


def test_an_option_that_postgresql_has_not_is_one_line() -> None:
    with pytest.raises(ConfigurationError, match="an option that it cannot have") as caught:
        engine_for("postgresql://root:hunter2@host/name?port=abc")
    assert "hunter2" not in str(caught.value)


def test_what_a_driver_repeats_of_our_password_is_not_told() -> None:
    engine = engine_for("postgresql://root:hunter2@host/name?password=hunter3")
    said = sa.exc.OperationalError("", None, OSError("no hunter2, no hunter3\nand more"))
    assert words_of(engine, said) == "OSError"
    for harmless in ("no host", "nowhere"):
        assert words_of(engine, sa.exc.OperationalError("", None, OSError(f"{harmless}\nhunter2"))) == harmless
    assert words_of(engine, sa.exc.OperationalError("", None, OSError())) == "OSError"
    engine.dispose()


def test_a_database_that_is_asked_too_much_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0)
    with Store(f"sqlite:///{tmp_path / 'oauth.db'}") as store, contextlib.ExitStack() as stack:
        with pytest.raises(TokenStoreUnavailable) as caught, store.reached():
            for _ in range(100):
                stack.enter_context(store._engine.connect())
        assert str(caught.value).startswith(
            f"token store {tmp_path / 'oauth.db'} cannot be reached: got QueuePool limit"
        )


FIRST = "give another one, or start `a2a-trust serve --authority` on it first"
FOREIGN: dict[str, tuple[str, ...]] = {
    "an empty file": (),
    "other tables": ("CREATE TABLE people (name TEXT)",),
    "a table of this name": ("CREATE TABLE oauth_tokens (id INTEGER)",),
    "other tables and a log": ("PRAGMA journal_mode = WAL", "CREATE TABLE people (name TEXT)"),
}


@pytest.mark.parametrize("kind", [*FOREIGN, "no database"])
def test_a_file_of_others_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        for statement in FOREIGN.get(kind, ()):
            database.execute(statement)
    if kind == "no database":
        file.write_bytes(b"people\n" * 1000)
    file.touch()
    file.chmod(0o644)
    before = file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode
    with pytest.raises(ConfigurationError) as caught:
        Store(f"sqlite:///{file}", create=False)
    assert str(caught.value) == f"no authorization server's database: {file}; {FIRST}"
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode) == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["loop", "x" * 300])
def test_a_path_that_is_none_is_no_database(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigurationError, match="no authorization server's database"):
        Store(f"sqlite:///{tmp_path / name}", create=False)


@pytest.mark.parametrize("create", [False, True])
def test_a_table_of_another_program_is_left_as_it_is(url: str, create: bool) -> None:
    engine = engine_for(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE oauth_tokens (id INTEGER)")
    with pytest.raises(ConfigurationError, match=r"another program's|no authorization server's"):
        Store(url, create=create)
    inspector = sa.inspect(engine)
    assert inspector.get_table_names() == ["oauth_tokens"] and len(inspector.get_columns("oauth_tokens")) == 1
    engine.dispose()


def test_an_empty_database_is_left_as_it_is_unless_it_is_to_be_ours(url: str, opened: Callable[[], Store]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Store(url, create=False)
    assert "no authorization server's database" in str(caught.value) and "password" not in str(caught.value)
    engine = engine_for(url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
    held = opened()  # and meanwhile, where it is SQLite, all of it is in the log
    with Store(url, create=False) as store:
        assert store.clients.all() == held.clients.all() == ()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match="install the extra `postgresql`"):
        engine_for("postgresql://root:hunter2@host/name")


def test_on_postgresql_nothing_is_waited_for_for_ever_and_a_commit_is_on_the_disk(postgresql: str) -> None:
    with_query = postgresql + "?options=-c%20synchronous_commit%3Doff"
    engine = engine_for(with_query)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    engine.dispose()
    assert settings == {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "15s",
    }
