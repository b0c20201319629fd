"""What holds for every guard: each message once, whoever asks, for as long as it is valid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.trust.replay import copies
from tests.trust.replay.conftest import GUARDS, SHARED, T, opened
from trust.errors import Replayed
from trust.replay import ReplayGuard, replay_key
from trust.replay.guard import SKEW_SECONDS

KEY = replay_key("iss", "aud", "1")
every = pytest.mark.parametrize("store", GUARDS, indirect=True)
shared = pytest.mark.parametrize("store", SHARED, indirect=True)

# A message that lives from T to T + 60 was accepted at T; when it comes again.
ATTACKS = {
    "at once": T,
    "a second later": T + 1,
    "just before its end": T + 59.999,
    "at its end": T + 60,
    "where the clock is behind": T - 10,
    "where the clock is ahead": T + 60 + SKEW_SECONDS - 5,
}


@every
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_copy_is_refused(guard: ReplayGuard, attack: str) -> None:
    guard.remember(KEY, issued_at=T, expires_at=T + 60, now=T)
    for _ in range(2):
        with pytest.raises(Replayed, match="received before") as refusal:
            guard.remember(KEY, issued_at=T, expires_at=T + 60, now=ATTACKS[attack])
        assert type(refusal.value) is Replayed


@every
def test_what_was_issued_before_anybody_remembered_is_refused(guard: ReplayGuard) -> None:
    with pytest.raises(Replayed, match="signed before"):
        guard.remember(KEY, issued_at=T - 20_000, expires_at=T + 60, now=T)


@every
def test_others_are_accepted(guard: ReplayGuard) -> None:
    for n in range(50):
        guard.remember(replay_key("iss", "aud", str(n)), issued_at=T + n, expires_at=T + n + 60, now=T + n)


@every
def test_of_1000_copies_at_once_one_is_accepted(guard: ReplayGuard) -> None:
    assert copies.outcomes(guard, 1000, T) == Counter(accepted=1, Replayed=999)


@shared
def test_of_1000_copies_at_once_in_four_processes_one_is_accepted(store: str) -> None:
    # They open the store at the same moment, too.
    command = [sys.executable, str(Path(copies.__file__)), store, str(T)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = sum((Counter(json.loads(process.communicate(timeout=120)[0])) for process in processes), Counter[str]())
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert found == Counter(accepted=1, Replayed=999)


@shared
def test_what_one_took_the_other_knows(store: str) -> None:
    one, other = opened(store), opened(store)
    try:
        one.remember(KEY, issued_at=T, expires_at=T + 60, now=T)
        with pytest.raises(Replayed):
            other.remember(KEY, issued_at=T, expires_at=T + 60, now=T)
    finally:
        one.close()  # type: ignore[attr-defined]
        other.close()  # type: ignore[attr-defined]


@shared
def test_what_expired_long_ago_cannot_be_known(guard: ReplayGuard) -> None:
    with pytest.raises(Replayed, match="too long ago"):
        guard.remember(KEY, issued_at=T, expires_at=T + 60, now=T + 60 + SKEW_SECONDS + 1)
