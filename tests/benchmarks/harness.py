"""How every benchmark measures: ours and the peer's in turn, in one run on one machine, and the medians compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 31  # of each side; an odd number has a median that was measured
ROUND_SECONDS = 0.01  # long against the clock's resolution, short against the noise of a shared machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `ours` and `peer` are seconds for the same amount of work."""

    name: str
    ours: float
    peer_name: str
    peer: float
    goal: str  # for a reader, such as "<= 1.4x"

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def median_of(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of one call of each. The rounds alternate, so that a slow moment of the machine hits both."""
    sides = [(ours, _repetitions(ours)), (peer, _repetitions(peer))]
    seconds: list[list[float]] = [[], []]
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            for side, (call, repetitions) in enumerate(sides):
                start = time.process_time()
                for _ in range(repetitions):
                    call()
                seconds[side].append((time.process_time() - start) / repetitions)
    finally:
        gc.enable()
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compare(name: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object], goal: str) -> Row:
    ours_seconds, peer_seconds = median_of(ours, peer)
    return Row(name=name, ours=ours_seconds, peer_name=peer_name, peer=peer_seconds, goal=goal)


def _repetitions(call: Callable[[], object]) -> int:
    call()
    start = time.process_time()
    call()
    return max(1, round(ROUND_SECONDS / max(time.process_time() - start, 1e-9)))
