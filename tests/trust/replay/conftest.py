"""The three guards, each with a real store of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.interop.programs import needs
from tests.redis_server import RedisServer
from trust.replay import MemoryReplayGuard, RedisReplayGuard, ReplayGuard, SQLiteReplayGuard
from trust.replay import redis as redis_module
from trust.replay import sqlite as sqlite_module

T = 1_900_000_000
START = datetime.fromtimestamp(T, UTC)

GUARDS = ["memory", "sqlite", pytest.param("redis", marks=needs("redis-server"))]
SHARED = GUARDS[1:]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no store that hangs; a test of one that does sets this back."""
    monkeypatch.setattr(redis_module, "WAIT_SECONDS", 60)
    monkeypatch.setattr(sqlite_module, "WAIT_SECONDS", 60)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the guard named by the test's parameter keeps what it knows, as `opened` takes it."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_server").url)
    return "" if request.param == "memory" else str(tmp_path / "replay.db")


def opened(store: str) -> ReplayGuard:
    if store.startswith("redis"):
        return RedisReplayGuard(store)
    return SQLiteReplayGuard(store, started_at=START) if store else MemoryReplayGuard(started_at=START)


@pytest.fixture
def guard(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplayGuard]:
    made = opened(store)
    if isinstance(made, RedisReplayGuard):  # the server has run for hours, and not for a moment
        hours_later = SimpleNamespace(monotonic=lambda: time.monotonic() + 10_000)
        monkeypatch.setattr(redis_module, "time", hours_later)
    yield made
    if not isinstance(made, MemoryReplayGuard):
        made.close()  # type: ignore[attr-defined]
