"""What every endpoint does alike; here, while the database does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tests.authority import BILLING, PLANNER, Authority, ask, exchange
from tests.pki.store import parts
from trust.errors import TokenStoreUnavailable
from trust.oauth.server.store import Store, engines


@pytest.fixture
def postgresql() -> Iterator[str]:
    with parts.postgresql() as url:
        yield url


async def asked(authority: Authority, token: str) -> list[httpx.Response]:
    """Every endpoint that needs the database for it."""
    async with authority.http(PLANNER) as http:
        form = {"client_id": PLANNER, "token": token}
        return [
            await http.post("/token", data=ask()),
            await http.post("/introspect", data=form),
            await http.post("/revoke", data=form),
            await http.get("/revoked"),
        ]


def refused(answers: list[httpx.Response]) -> None:
    for answer in answers:
        assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
        assert answer.headers["retry-after"] == "5"


def test_while_postgresql_is_away_every_client_is_told_to_come_back(
    tmp_path: Path, postgresql: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    authority.store = Store(postgresql)
    authority.serve()
    url = sa.make_url(postgresql)
    admin = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    allows = f"ALTER DATABASE {url.database} WITH ALLOW_CONNECTIONS "

    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        with admin.connect() as connection:
            connection.exec_driver_sql(allows + "false")
            connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'"
            )
            left = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.database}'"
            limit = time.monotonic() + 20
            while connection.exec_driver_sql(left).scalar():
                assert time.monotonic() < limit
                await asyncio.sleep(0.02)
            told = len(authority.trail.records)
            try:
                for _ in range(3):
                    refused(await asked(authority, token))
            finally:
                connection.exec_driver_sql(allows + "true")
        records = authority.trail.records[told:]
        assert [r["event"] for r in records] == ["token", "introspection", "revocation"] * 3
        place = f"postgresql://{url.host}:{url.port}/{url.database}"
        for record in records:
            assert (record["decision"], record["check"]) == ("deny", TokenStoreUnavailable.check)
            assert record["reason"].startswith(f"token store {place} cannot be reached: got ")
            assert "not currently accepting connections" in record["reason"]
        # And no request more than a line of the log, which has no traceback.
        lines = [r for r in caplog.records if "request failed" in r.message]
        assert len(lines) == 3 and not any(r.exc_info for r in caplog.records)
        assert [a.status_code for a in await asked(authority, token)] == [200] * 4

    try:
        with caplog.at_level(logging.WARNING):
            asyncio.run(work())
    finally:
        authority.store.close()
        admin.dispose()


def test_a_locked_file_is_a_database_that_is_away_and_a_missing_table_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0)
    authority = Authority(tmp_path)

    async def work() -> None:
        first = await authority.token(PLANNER, ask())
        with contextlib.closing(sqlite3.connect(tmp_path / "oauth.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            refused([await authority.post(PLANNER, ask())])
            assert authority.trail.last["reason"] == (
                f"token store {tmp_path / 'oauth.db'} cannot be reached: got database is locked; see that it runs"
            )
            database.execute("ROLLBACK")
            database.execute("DROP TABLE oauth_tokens")
        answer = await authority.post(BILLING, exchange(first))
        assert (answer.status_code, authority.trail.last["check"]) == (500, "server")
        assert caplog.records[-1].exc_info

    asyncio.run(work())
