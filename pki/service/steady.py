"""Whether the wall clock can be gone by: rotation cannot be undone, and clocks are set, and set back.

A clock has jumped when it has gone on by another time than the monotonic clock has, since the last look; or, at the
first look, when the CA's last entry is so long ago that it would have had to be switched off for weeks. What is right
after a jump nobody here can tell: a wrong clock was put right, a right one was put wrong, or the machine slept. So what
depends on it waits until the two clocks have agreed for ten minutes: long enough for somebody's hand or NTP to take a
mistake back, and nothing that rotation does is in such a hurry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

JUMP = timedelta(hours=1)
SETTLED_SECONDS = 600.0
ABSENCE = timedelta(days=40)  # a CA that serves writes at least once a day, for its own certificate


class Steady:
    """Looks at both clocks. For one thread."""

    def __init__(self, last_write: datetime | None, now: datetime, *, ticks: Callable[[], float] = time.monotonic):
        """Args: last_write: when this CA wrote something before; None: never. ticks: seconds, never going back."""
        self._ticks = ticks
        self._wall, self._tick = now, ticks()
        self._until = self._tick
        if last_write is not None and now - last_write > ABSENCE:
            self._until += SETTLED_SECONDS

    def wait(self, now: datetime) -> float:
        """Seconds until the wall clock can be gone by again; 0 where it can be now."""
        tick = self._ticks()
        if abs((now - self._wall) - timedelta(seconds=tick - self._tick)) > JUMP:
            self._until = tick + SETTLED_SECONDS
        self._wall, self._tick = now, tick
        return max(0.0, self._until - tick)
