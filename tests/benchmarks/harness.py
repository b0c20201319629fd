"""How every benchmark measures: ours and the peer's in turn, in one run on one machine, and CPU time compared.

The machine may be shared and its clock may change, so the sides alternate in short rounds, medians are taken of
groups of neighbouring rounds, and the best group of each side counts: the least disturbed moments of both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

GROUPS = 7
ROUNDS_IN_A_GROUP = 7  # an odd number has a median that was measured
ROUND_SECONDS = 0.005  # long against the clock's resolution, short against the noise of a shared machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `ours` and `peer` are for the same amount of work, in seconds unless `unit` says otherwise."""

    name: str
    ours: float
    peer_name: str
    peer: float
    goal: str  # for a reader, such as "<= 1.4x"
    unit: str = "us"

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    def shown(self, figure: float) -> str:
        return f"{figure * 1e6:,.1f} us" if self.unit == "us" else f"{figure:,.0f} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds for one of many."""

    wall: float
    cpu: float


def medians(*calls: Callable[[], object]) -> list[float]:
    """CPU seconds of one call of each, of all threads of this process."""
    repetitions = [_repetitions(call) for call in calls]
    best = [float("inf")] * len(calls)
    gc.collect()
    gc.disable()
    try:
        for _ in range(GROUPS):
            group: list[list[float]] = [[] for _ in calls]
            for _ in range(ROUNDS_IN_A_GROUP):
                for seconds, call, number in zip(group, calls, repetitions, strict=True):
                    start = time.process_time()
                    for _ in range(number):
                        call()
                    seconds.append((time.process_time() - start) / number)
            best = [min(b, statistics.median(seconds)) for b, seconds in zip(best, group, strict=True)]
    finally:
        gc.enable()
    return best


def compare(name: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object], goal: str) -> Row:
    ours_seconds, peer_seconds = medians(ours, peer)
    return Row(name=name, ours=ours_seconds, peer_name=peer_name, peer=peer_seconds, goal=goal)


def _repetitions(call: Callable[[], object]) -> int:
    call()
    start = time.process_time()
    call()
    return max(1, round(ROUND_SECONDS / max(time.process_time() - start, 1e-9)))
