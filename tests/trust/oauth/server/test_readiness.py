"""`/health` and `/ready`: what does not work is named, nothing else is told, and asking costs the database nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.authority import BILLING, ISSUER, PLANNER, Authority, Trail
from trust import files, private_keys
from trust.errors import ConfigurationError
from trust.oauth.server import decisions, readiness, rotation, rounds
from trust.oauth.server.readiness import Readiness
from trust.oauth.server.rounds import Rounds
from trust.oauth.server.state import authorization_server

SECONDS = 20
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


async def got(app: Starlette, path: str = "/ready", times: int = 1) -> httpx.Response:
    """The last of so many answers, to as many requests at once."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ISSUER) as http:
        return (await asyncio.gather(*(http.get(path) for _ in range(times))))[-1]


def ready(app: Starlette) -> tuple[int, Any]:
    answer = asyncio.run(got(app))
    return answer.status_code, answer.json()


def until(app: Starlette, wanted: tuple[int, Any]) -> None:
    limit = time.monotonic() + SECONDS
    while (found := ready(app)) != wanted:
        assert time.monotonic() < limit, found
        time.sleep(0.02)


def test_a_server_whose_database_is_gone_lives_and_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "REUSE_SECONDS", 0)
    app = Authority(tmp_path).app
    assert ready(app) == (200, {"ready": True, "checks": {"store": True}, "warnings": []})
    with contextlib.closing(sqlite3.connect(tmp_path / "oauth.db", isolation_level=None)) as database:
        database.execute("ALTER TABLE oauth_client_changes RENAME TO away")
        for _ in range(3):
            answer = asyncio.run(got(app))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.headers["cache-control"] == "no-store"
            # Not a word of what the database said.
            assert answer.json() == {"ready": False, "checks": {"store": False}, "warnings": []}
        alive = asyncio.run(got(app, "/health"))
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        database.execute("ALTER TABLE away RENAME TO oauth_client_changes")
    assert ready(app)[0] == 200
    said = [record.getMessage() for record in caplog.records if "database" in record.getMessage()]
    assert said == ["database does not answer: OperationalError", "database answers again"]


def test_many_who_ask_a_database_that_hangs_are_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "STORE_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "REUSE_SECONDS", 3600)
    authority, answers, looks = Authority(tmp_path), threading.Event(), []
    changes = authority.store.clients.changes

    def hangs() -> int:
        looks.append(1)
        assert answers.wait(SECONDS)
        return changes()

    monkeypatch.setattr(authority.store.clients, "changes", hangs)

    async def work() -> None:
        try:
            for _ in range(3):
                assert (await got(authority.app, times=50)).status_code == 503
            assert len(looks) == 1
        finally:
            answers.set()
        limit = time.monotonic() + SECONDS
        while (await got(authority.app, times=50)).status_code != 200:
            assert time.monotonic() < limit
        assert len(looks) == 1

    asyncio.run(work())


def test_the_paths_are_under_the_issuers(tmp_path: Path) -> None:
    app = Authority(tmp_path, issuer="https://auth.fleet.example/eu").app
    assert [asyncio.run(got(app, path)).status_code for path in ("/eu/health", "/eu/ready", "/health", "/ready")] == [
        *(200, 200, 404, 404)
    ]


def test_each_part_of_a_served_server_counts_and_a_broken_file_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_keys, "SCRYPT_N", 2)
    monkeypatch.setattr(readiness, "REUSE_SECONDS", 0)
    for module in (decisions, rotation):
        monkeypatch.setattr(module, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(files, "LOOK_SECONDS", 0)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0)
    file, folder = tmp_path / "clients.toml", tmp_path / "state"
    file.write_text(CLIENTS)
    whole = {"store": True, "signing_keys": True, "decisions": True}
    with authorization_server(
        clients=file, issuer=ISSUER, folder=folder, url=None, password=None, audit=Trail()
    ) as app:
        good = (200, {"ready": True, "checks": whole, "warnings": []})
        until(app, good)
        file.write_text("nonsense")
        until(app, (200, {"ready": True, "checks": whole, "warnings": ["clients_file"]}))
        file.write_text(CLIENTS)
        until(app, good)
        app.state.readiness.check()
        for table, part in (("oauth_signing_keys", "signing_keys"), ("oauth_decisions", "decisions")):
            with contextlib.closing(
                sqlite3.connect(folder / "tokens.db", isolation_level=None, timeout=SECONDS)
            ) as database:
                database.execute(f"ALTER TABLE {table} RENAME TO away")
                until(app, (503, {"ready": False, "checks": {**whole, part: False}, "warnings": []}))
                with pytest.raises(ConfigurationError, match=f"problems with {part}; see"):
                    app.state.readiness.check()
                database.execute(f"ALTER TABLE away RENAME TO {table}")
            until(app, good)


def test_a_round_that_does_not_end_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ends = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        ends.wait(SECONDS)

    hanging = Rounds(work, seconds=3600, name="hanging", failing="fails", again="again")
    assert hanging.problem is None
    hanging.start()
    try:
        assert begun.wait(SECONDS)
        assert hanging.problem is None
        monkeypatch.setattr(rounds, "STALE_SECONDS", -1)
        assert hanging.problem == "hangs"
        ends.set()
        limit = time.monotonic() + SECONDS
        while hanging.problem is not None and time.monotonic() < limit:
            time.sleep(0.01)
        assert hanging.problem is None
    finally:
        ends.set()
        hanging.close()


def test_what_is_asked_of_a_readiness_alone(tmp_path: Path) -> None:
    works: Callable[[], str | None] = lambda: None  # noqa: E731
    store = Authority(tmp_path).store
    Readiness(store, checks={"one": works}).check()
    with pytest.raises(ConfigurationError) as caught:
        Readiness(store, checks={"one": works, "two": lambda: "secret reason", "three": lambda: "x"}).check()
    assert str(caught.value) == "authorization server is not ready: got problems with two, three; see the lines above"
