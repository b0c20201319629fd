from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.forge import NOW
from trust.errors import ConfigurationError
from trust.oauth.server.store import Store, upgrading
from trust.oauth.server.store.schema import METADATA

# A database of before: this table, and not a word about its version.
FIRST = """
CREATE TABLE oauth_tokens (
    token_id VARCHAR(64) NOT NULL, parent_id VARCHAR(64), root_id VARCHAR(64) NOT NULL, root_issued_at BIGINT NOT NULL,
    client_id VARCHAR(2048) NOT NULL, subject VARCHAR(2048) NOT NULL, issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL, revoked BOOLEAN NOT NULL, PRIMARY KEY (token_id)
)
"""
ROW = "INSERT INTO oauth_tokens VALUES ('t', NULL, 't', 0, 'planner', 's', 0, 4000000000, {false})"


def run(url: str, *statements: str) -> None:
    engine = sa.create_engine(sa.make_url(url))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.format(false="false" if "postgres" in url else "0"))
    engine.dispose()


def tables(url: str) -> dict[str, set[str]]:
    engine = sa.create_engine(sa.make_url(url))
    found = sa.inspect(engine)
    columns = {table: {c["name"] for c in found.get_columns(table)} for table in found.get_table_names()}
    engine.dispose()
    return columns


def indexes(url: str) -> set[str]:
    """Those that are not made for what must be unique."""
    engine = sa.create_engine(sa.make_url(url))
    found = sa.inspect(engine)
    all_of = [index for table in found.get_table_names() for index in found.get_indexes(table)]
    engine.dispose()
    return {str(index["name"]) for index in all_of if not index.get("duplicates_constraint")}


def test_a_database_of_the_first_release_goes_on(url: str, opened: Callable[[], Store]) -> None:
    run(url, FIRST, ROW)
    for _ in range(2):
        store = opened()
        token = store.tokens.find("t")
        assert token is not None and token.client_id == "planner" and not token.revoked
    assert store.clients.disable("planner", now=NOW) == 1
    assert tables(url) == {table.name: set(table.columns.keys()) for table in METADATA.sorted_tables}
    assert indexes(url) == {str(index.name) for table in METADATA.sorted_tables for index in table.indexes}


def test_a_database_of_the_second_release_keeps_its_counters(url: str, opened: Callable[[], Store]) -> None:
    """Revocations that were counted anew would be older than the lists that agents have."""
    store = opened()
    store.clients.disable("planner", now=NOW)
    counted = store.clients.changes(), store.tokens.revocations()
    run(
        url,
        "DROP TABLE oauth_decisions",
        "DROP TABLE oauth_issuer",
        "DROP INDEX ix_oauth_tokens_held",
        "UPDATE oauth_schema SET version = 2",
    )
    again = opened()
    assert (again.clients.changes(), again.tokens.revocations()) == counted != (0, 0)
    assert again.decisions.take(now=NOW) is None
    again.claim("https://a.example")
    assert "ix_oauth_tokens_held" in indexes(url)


def test_columns_that_an_earlier_release_had_not_are_added(
    url: str, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened()
    newer = sa.MetaData()
    sa.Table("oauth_clients", newer, sa.Column("name", sa.String, primary_key=True), sa.Column("by", sa.String(9)))
    monkeypatch.setattr(upgrading, "METADATA", newer)
    monkeypatch.setattr(upgrading, "VERSION", upgrading.VERSION + 1)
    opened()
    assert "by" in tables(url)["oauth_clients"]


def test_a_database_of_a_later_release_is_refused_as_it_is(url: str, opened: Callable[[], Store]) -> None:
    opened()
    run(url, "UPDATE oauth_schema SET version = 99")
    with pytest.raises(ConfigurationError, match="later release: got schema 99, expected at most 4; upgrade"):
        opened()


def test_of_processes_that_start_at_once_one_makes_the_tables_and_one_issuer_has_them(
    opened: Callable[[], Store],
) -> None:
    def claimed(number: int) -> Store | str:
        store = opened()
        try:
            store.claim(f"https://{number % 2}.example")
        except ConfigurationError as error:
            return str(error)
        return store

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(claimed, range(8)))
    stores = [store for store in found if isinstance(store, Store)]
    assert [store.clients.changes() for store in stores] == [0] * 4
    assert all("belongs to issuer" in text for text in found if isinstance(text, str))


def test_the_file_is_its_owners_also_one_that_was_not(tmp_path: Path) -> None:
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as database:
        database.execute(FIRST)
    old.chmod(0o644)
    for path in (new, old):
        store = Store(f"sqlite:///{path}")
        store.tokens.revoke("unknown")
        found = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.glob(f"{path.name}*")}
        assert len(found) == 3 and set(found.values()) == {"0o600"}, found
        store.close()
