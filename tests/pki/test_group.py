"""Group commit by itself: who comes together is served together, errors go where they belong, nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pki.errors import StoreError
from pki.group import MAX_BATCH, GroupCommit, _Slot


class Commits:
    """A commit that a test can hold up, and that keeps what it got."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.fails: BaseException | None = None

    def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.entered.release()
        self.go.acquire()
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        return [ValueError(item) if item < 0 else 10 * item for item in items]


def outcome(group: GroupCommit[int, int], item: int) -> object:
    try:
        return group.submit(item)
    except BaseException as error:
        return type(error), str(error.args[0]) if error.args else ""


def waiting(group: GroupCommit[int, int], number: int) -> None:
    """Until that many are in the queue."""
    deadline = time.monotonic() + 10
    while len(group._waiting) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_those_that_come_meanwhile_share_the_next_commit() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(outcome, group, 0)
        commits.entered.acquire()
        others = [pool.submit(outcome, group, n) for n in range(1, 15)]
        waiting(group, 14)
        commits.go.release(2)
        assert first.result(10) == 0
        assert [other.result(10) for other in others] == [10 * n for n in range(1, 15)]
    assert [len(batch) for batch in commits.batches] == [1, 14]
    assert sorted(commits.batches[1]) == list(range(1, 15))


def test_each_gets_its_own_error() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    commits.go.release(10)
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: outcome(group, n), [1, -2, 3, -4]))
    assert outcomes == [10, (ValueError, "-2"), 30, (ValueError, "-4")]


def test_no_batch_is_too_large() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    number = MAX_BATCH + 10
    threading.stack_size(256 << 10)
    try:
        with ThreadPoolExecutor(number + 1) as pool:
            first = pool.submit(outcome, group, 0)
            commits.entered.acquire()
            others = [pool.submit(outcome, group, n) for n in range(number)]
            waiting(group, number)
            commits.go.release(3)
            assert [one.result(10) for one in [first, *others]] == [0, *range(0, 10 * number, 10)]
    finally:
        threading.stack_size(0)
    assert [len(batch) for batch in commits.batches] == [1, MAX_BATCH, 10]


def test_a_failed_commit_is_everybodys() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(outcome, group, 0)
        commits.entered.acquire()
        others = [pool.submit(outcome, group, n) for n in range(1, 5)]
        waiting(group, 4)
        commits.go.release()
        commits.entered.acquire()
        commits.fails = OSError("disk full")
        commits.go.release()
        assert first.result(10) == 0
        assert [other.result(10) for other in others] == [(OSError, "disk full")] * 4
        commits.go.release()
        assert pool.submit(outcome, group, 9).result(10) == 90, "it goes on"


def test_an_interrupted_leader_leaves_nobody_waiting() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(outcome, group, 0)
        commits.entered.acquire()
        others = [pool.submit(outcome, group, n) for n in range(1, 5)]
        waiting(group, 4)
        commits.go.release()
        commits.entered.acquire()
        late = pool.submit(outcome, group, 9)  # comes while the batch is under way
        waiting(group, 1)
        commits.fails = KeyboardInterrupt("now")
        commits.go.release(2)
        assert first.result(10) == 0
        outcomes = [other.result(10) for other in others]
        assert late.result(10) == 90
    assert outcomes.count((KeyboardInterrupt, "now")) == 1
    assert [o[0] for o in outcomes if isinstance(o, tuple)].count(StoreError) == 3


class Interrupted(BaseException):
    pass


class Lock:
    """A lock at which somebody is interrupted while waiting."""

    def __init__(self, before: threading.Event) -> None:
        self._before = before

    def acquire(self) -> bool:
        assert self._before.wait(10)
        raise Interrupted

    def release(self) -> None:
        pass


@pytest.mark.parametrize("promoted", [False, True])
def test_a_caller_that_is_interrupted_while_it_waits(promoted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its item leaves the queue; and if it was about to lead, the next one does."""
    commits = Commits()
    group = GroupCommit(commits)
    event = threading.Event()

    class Slot(_Slot[int, int]):
        def __init__(self, item: int) -> None:
            super().__init__(item)
            if item == 1:
                self.wake = Lock(event)  # type: ignore[assignment]

    monkeypatch.setattr("pki.group._Slot", Slot)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(outcome, group, 0)
        commits.entered.acquire()
        second = pool.submit(outcome, group, 1)
        waiting(group, 1)
        third = pool.submit(outcome, group, 2)
        waiting(group, 2)
        if promoted:
            commits.go.release()
            assert first.result(10) == 0
            event.set()
            assert second.result(10) == (Interrupted, "")
            commits.go.release()
        else:
            event.set()
            assert second.result(10) == (Interrupted, "")
            commits.go.release(2)
            assert first.result(10) == 0
        assert third.result(10) == 20
    assert commits.batches == [[0], [2]]


def test_a_leader_waits_a_moment_for_as_many_as_came_last_time() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    group._expected = 3
    commits.go.release(10)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda n: outcome(group, n), range(3))) == [0, 10, 20]
    assert sum(map(len, commits.batches)) == 3
    group._expected = 100
    assert outcome(group, 7) == 70, "and not for ever"
    assert group._expected == 1
