"""The guard in a file: what it survives, what it refuses to open, its bounds."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.trust.replay.conftest import START, T
from trust.errors import ConfigurationError, Replayed, ReplayGuardFull, ReplayStoreUnavailable
from trust.replay import SQLiteReplayGuard, replay_key
from trust.replay import sqlite as module
from trust.replay.guard import SKEW_SECONDS


def key(n: int) -> bytes:
    return replay_key("iss", "aud", str(n))


def remember(guard: SQLiteReplayGuard, n: int, *, at: float = 0, now: float | None = None) -> None:
    guard.remember(key(n), issued_at=T + at, expires_at=T + at + 60, now=T + (at if now is None else now))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replay.db"


@pytest.fixture
def guard(path: Path) -> Iterator[SQLiteReplayGuard]:
    made = SQLiteReplayGuard(path, started_at=START)
    yield made
    made.close()


def test_it_knows_after_a_restart_what_it_took(path: Path, guard: SQLiteReplayGuard) -> None:
    remember(guard, 1)
    guard.close()
    later = SQLiteReplayGuard(path, started_at=START + timedelta(seconds=30))
    try:
        with pytest.raises(Replayed, match="received before"):
            remember(later, 1)
        remember(later, 2)  # from before the restart, and never seen: the file knows
    finally:
        later.close()


def test_a_new_file_refuses_what_was_issued_before_it(guard: SQLiteReplayGuard) -> None:
    with pytest.raises(Replayed, match="before this replay store was made"):
        remember(guard, 1, at=-1)


KILLED = """
import sys
from datetime import UTC, datetime
from trust.replay import SQLiteReplayGuard, replay_key
path, t = sys.argv[1], int(sys.argv[2])
guard = SQLiteReplayGuard(path, started_at=datetime.fromtimestamp(t, UTC))
for n in range(1_000_000):
    guard.remember(replay_key("iss", "aud", str(n)), issued_at=t, expires_at=t + 60, now=t)
    print(n, flush=True)
"""


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def work(_: int) -> int:
        accepted = 0
        for n in range(20):  # in most of them somebody finds the file locked
            barrier.wait()
            guard = SQLiteReplayGuard(tmp_path / f"{n}.db", started_at=START)
            with suppress(Replayed):
                remember(guard, 1)
                accepted += 1
            guard.close()
        return accepted

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 20


def test_each_entry_is_on_the_disk_before_it_counts(guard: SQLiteReplayGuard) -> None:
    # A power cut cannot be tested here; what SQLite promises for these two settings is.
    assert guard._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert guard._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_it_took_before_kill_9_it_still_knows(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path), str(T)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        last = 19 + len([line for line in process.stdout.read().splitlines() if line])
    guard = SQLiteReplayGuard(path, started_at=START)
    try:
        for n in range(last + 1):
            with pytest.raises(Replayed):
                remember(guard, n)
    finally:
        guard.close()


def test_a_clock_that_is_set_back_lets_nothing_in_again(guard: SQLiteReplayGuard) -> None:
    remember(guard, 1)
    remember(guard, 2, at=200)  # the first is removed
    with pytest.raises(Replayed, match="too long ago"):
        remember(guard, 1)
    remember(guard, 3, at=5)  # what lives longer than all that is forgotten is still judged


def test_it_keeps_what_lives_and_no_more(path: Path, guard: SQLiteReplayGuard) -> None:
    for second in range(300):
        remember(guard, second, at=second)
    with sqlite3.connect(path) as reader:
        (rows,) = reader.execute("SELECT count(*) FROM seen").fetchone()
    reader.close()
    assert 60 + SKEW_SECONDS <= rows <= 60 + SKEW_SECONDS + 2


def test_a_full_file_refuses_forgets_nothing_and_gets_room_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 8 * 4096)
    guard = SQLiteReplayGuard(path, started_at=START)
    try:
        taken = 0
        with pytest.raises(ReplayGuardFull):
            for taken in range(10_000):
                remember(guard, taken)
        assert taken > 100
        for n in (0, taken - 1):
            with pytest.raises(Replayed):
                remember(guard, n)
        with pytest.raises(ReplayGuardFull):
            for n in range(taken, taken + 100):
                remember(guard, n)
        remember(guard, taken, at=60 + SKEW_SECONDS + 1)
    finally:
        guard.close()


def test_a_file_that_another_program_holds_is_away(
    path: Path, guard: SQLiteReplayGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.close()
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    guard = SQLiteReplayGuard(path, started_at=START)
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ReplayStoreUnavailable, match=r"locked.*see that it runs"):
            remember(guard, 1)
        holder.execute("ROLLBACK")
        remember(guard, 1)
    finally:
        holder.close()
        guard.close()


def test_whoever_waits_too_long_for_the_other_threads_is_told(
    guard: SQLiteReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    thread = threading.Thread(target=remember, args=(guard, 1))
    thread.start()  # it holds the guard's lock, and waits for the file
    try:
        while not guard._lock.locked():
            assert thread.is_alive()
            time.sleep(0.001)
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
        with pytest.raises(ReplayStoreUnavailable, match="other threads"):
            remember(guard, 2)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
        thread.join()


def test_a_closed_guard_admits_nothing(guard: SQLiteReplayGuard) -> None:
    guard.close()
    with pytest.raises(ReplayStoreUnavailable):
        remember(guard, 1)


def test_a_guard_is_not_used_across_a_fork(guard: SQLiteReplayGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ConfigurationError, match="before a fork"):
        remember(guard, 1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_the_file_is_for_this_user_alone(path: Path, guard: SQLiteReplayGuard) -> None:
    remember(guard, 1)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "replay.db": 0o600,
        "replay.db-shm": 0o600,
        "replay.db-wal": 0o600,
    }


def test_no_name_is_a_database_that_is_lost_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SQLiteReplayGuard(":memory:", started_at=START).close()
    assert (tmp_path / ":memory:").is_file()


@pytest.mark.parametrize("kind", ["folder", "below a file", "no database", "other tables", "being used"])
def test_what_is_no_store_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    path = tmp_path / "store"
    user = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    try:
        if kind == "folder":
            path.mkdir()
        elif kind == "below a file":
            path.touch()
            path = path / "replay.db"
        elif kind == "no database":
            path.write_bytes(b"something else " * 100)
        else:
            path = tmp_path / "other.db"
            user.execute("CREATE TABLE bounds (other)")
            if kind == "being used":
                user.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigurationError, match="cannot be opened") as refusal:
            SQLiteReplayGuard(path, started_at=START)
        assert type(refusal.value) is ConfigurationError
    finally:
        user.close()
