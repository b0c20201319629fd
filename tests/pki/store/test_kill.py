"""Killed at random moments: whatever was acknowledged is there, in the store and in the ledger, and nothing is twice.

About a hundred times in all. Every victim issues in three threads (so that commits are shared), revokes, rotates and
backs up, all at once; see `victim.py`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.ledger import Entry
from pki.records import State
from pki.store import Store
from tests.pki.store.parts import problems

SQLITE_KILLS, POSTGRESQL_KILLS = 80, 20
ROUNDS = 10  # kills of one CA
LONGEST = 0.15  # seconds that a victim lives after its first word; more than a hundred operations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forks"),
    pytest.mark.timeout(300),
]


class Victims:
    """The process of `victim.py`."""

    def __init__(self) -> None:
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pki.store.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            bufsize=1,
        )

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")

    def line(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that makes victims has died"
        return line.split()

    def until(self, *verbs: str) -> list[list[str]]:
        lines = [self.line()]
        while lines[-1][0] not in verbs:
            lines.append(self.line())
        return lines

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def victims() -> Iterator[Victims]:
    started = Victims()
    yield started
    started.close()


def check(where: str, acknowledged: list[list[str]], folder: Path) -> int:
    """Everything that was acknowledged is there, and every backup is whole; returns the number of certificates."""
    assert not [words for words in acknowledged if words[0] == "failed"]
    said = {verb: {words[1] for words in acknowledged if words[0] == verb} for verb in ("issued", "revoked", "rotated")}
    store = Store.open(where)
    assert problems(store) == (), "the audit compares every row with the ledger"
    entries = [Entry.decode(row.entry) for row in store.ledger_rows()]
    assert [row.position for row in store.ledger_rows()] == list(range(len(entries)))
    times = Counter(f"{entry.serial:x}" for entry in entries if entry.kind == "issued")
    assert set(times.values()) == {1}, "no serial twice"
    records = {f"{record.serial:x}": record for record in store.each_record()}
    assert records.keys() == times.keys()
    assert said["issued"] <= records.keys()
    assert all(records[serial].revoked_at is not None for serial in said["revoked"])
    assert said["revoked"] <= {f"{entry.serial:x}" for entry in entries if entry.kind == "revoked"}
    states = {one.key_id: one.state for one in store.issuers() if one.kind == "intermediate"}
    assert said["rotated"] <= states.keys()
    assert list(states.values()).count(State.ACTIVE) == 1
    store.close()
    for path in folder.glob("backup-*"):
        whole = folder / "whole"
        whole.mkdir(exist_ok=True)
        path.rename(whole / "ca.db")
        saved = Store.open(whole)
        assert problems(saved) == ()
        saved.close()
        (whole / "ca.db").unlink()
    return len(records)


def kill_again_and_again(where: str, folder: Path, victims: Victims, rounds: int, chance: random.Random) -> None:
    victims.tell("create", where)
    assert victims.line() == ["created"]
    acknowledged: list[list[str]] = []
    before = 0
    for _ in range(rounds):
        victims.tell("run", where, folder)
        *_, (_, pid) = victims.until("pid")
        said = victims.until("rotated")  # it has begun
        time.sleep(chance.uniform(0, LONGEST))
        os.kill(int(pid), signal.SIGKILL)
        victims.tell("wait")
        said += victims.until("all")
        assert all(Path(words[1]).is_file() for words in said if words[0] == "backup")
        acknowledged += [words for words in said if words[0] in ("issued", "revoked", "rotated", "failed")]
        after = check(where, acknowledged, folder)
        assert after > before, "it did something"
        before = after


@pytest.mark.parametrize("seed", range(SQLITE_KILLS // ROUNDS))
def test_killed_on_sqlite(seed: int, tmp_path: Path, victims: Victims) -> None:
    kill_again_and_again(str(tmp_path / "ca"), tmp_path, victims, ROUNDS, random.Random(seed))


@pytest.mark.parametrize("seed", range(POSTGRESQL_KILLS // ROUNDS))
def test_killed_on_postgresql(seed: int, postgresql: str, tmp_path: Path, victims: Victims) -> None:
    kill_again_and_again(postgresql, tmp_path, victims, ROUNDS, random.Random(1000 + seed))


def test_two_processes_lose_nothing(empty: str, tmp_path: Path, victims: Victims) -> None:
    victims.tell("create", empty)
    assert victims.line() == ["created"]
    for _ in range(2):
        victims.tell("issue", empty, 200)
    victims.tell("wait")
    acknowledged = [words for words in victims.until("all") if words[0] not in ("gone", "all", "pid")]
    assert len({words[1] for words in acknowledged if words[0] == "issued"}) == 2 + 2 * 200
    assert check(empty, acknowledged, tmp_path) == 2 + 2 + 2 * 200
    store = Store.open(empty)
    assert len({record.issuer for record in store.records(kind="agent")}) == 2
    store.close()
