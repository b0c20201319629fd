from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trust.errors import ConfigurationError
from trust.oauth.server.store import Store
from trust.oauth.server.store.engines import engine_for


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
    assert str(caught.value).startswith("token store cannot be opened: got OperationalError")
    assert "hunter2" not in repr(caught.value) and "\n" not in str(caught.value)


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
