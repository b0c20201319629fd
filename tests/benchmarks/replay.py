"""The replay guards: time and memory of an entry in memory as it fills to 3,000,000, its design size; the shared ones.

A shared guard's time is wall time: what a caller waits for, the disk's and the server's work among it.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.harness import Row
from tests.benchmarks.loads import resident
from tests.redis_server import RedisServer
from trust.replay import MemoryReplayGuard, RedisReplayGuard, ReplayGuard, SQLiteReplayGuard, replay_key

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ENTRIES = 3_000_000  # 300 s, the longest life of a message, at the design rate
SLICE = 50_000
SHARED_ENTRIES = 2_000
RATE = 10_000  # messages a second
ISSUER, AUDIENCE = "spiffe://fleet.example/planner", "spiffe://fleet.example/billing"


def rows() -> list[Row]:
    # A process of its own: this one has run other benchmarks, and keeps what they have freed.
    command = [sys.executable, "-m", __name__]
    seconds, held = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    middle, few = statistics.median(seconds), len(seconds) // 10
    empty, full = statistics.median(seconds[:few]), statistics.median(seconds[-few:])
    keys = time.process_time()
    for number in range(SLICE):
        replay_key(ISSUER, AUDIENCE, f"{number:022}")
    key_seconds = (time.process_time() - keys) / SLICE
    return [
        Row(name="replay guard, entry", ours=middle, peer_name="the goal", peer=3e-6, goal="<= 1x"),
        Row(name="replay guard, its key", ours=key_seconds, peer_name="an entry", peer=middle, goal="-"),
        Row(name=f"replay guard, at {ENTRIES:,}", ours=full, peer_name="when empty", peer=empty, goal="~ 1x"),
        Row(
            name="replay guard, entry", ours=held / ENTRIES, peer_name="the goal", peer=100, goal="<= 1x", unit="bytes"
        ),
        *_shared(middle),
    ]


def main() -> None:
    """Seconds of an entry in each slice as one guard fills, and the bytes that it holds in the end."""
    guard, entries = MemoryReplayGuard(started_at=START), _entries()
    gc.disable()
    before = resident()
    seconds = [_fill(guard, itertools.islice(entries, SLICE)) / SLICE for _ in range(ENTRIES // SLICE)]
    assert len(guard) == ENTRIES
    sys.stdout.write(json.dumps([seconds, resident() - before]))


def _shared(in_memory: float) -> list[Row]:
    """Rows of the guards whose stores are there: a file on the temporary folder's disk, and Redis on this host."""
    with tempfile.TemporaryDirectory() as folder:
        file = SQLiteReplayGuard(Path(folder) / "replay.db", started_at=START)
        seconds = {"in SQLite": _wait(file)}
        file.close()
        if shutil.which("redis-server"):
            with RedisServer(Path(folder)) as server:
                remote = RedisReplayGuard(server.url)
                seconds["in Redis"] = _wait(remote)
                remote.close()
    return [
        Row(name=f"replay guard, entry {where}", ours=ours, peer_name="in memory", peer=in_memory, goal="-")
        for where, ours in seconds.items()
    ]


def _wait(guard: ReplayGuard) -> float:
    """Wall seconds of one entry, of one thread that waits for each."""
    entries = list(itertools.islice(_entries(), SHARED_ENTRIES))
    start = time.perf_counter()
    for key, issued_at in entries:
        # By a clock a little behind the signers', for a server that has just started.
        guard.remember(key, issued_at=issued_at, expires_at=issued_at + 60, now=issued_at - 5)
    return (time.perf_counter() - start) / len(entries)


def _entries() -> Iterator[tuple[bytes, float]]:
    """Keys of distinct messages, and when each is issued: they come evenly, and each lives for 60 s."""
    for number in itertools.count():
        issued_at = START.timestamp() + number / RATE
        yield replay_key(ISSUER, AUDIENCE, f"{number:022}"), float(int(issued_at))


def _fill(guard: MemoryReplayGuard, entries: Iterator[tuple[bytes, float]]) -> float:
    now = START.timestamp()  # it stands still, so that nothing is forgotten and the guard only fills
    made = list(entries)
    start = time.process_time()
    for key, issued_at in made:
        guard.remember(key, issued_at=issued_at, expires_at=issued_at + 60, now=now)
    return time.process_time() - start


if __name__ == "__main__":
    main()
