"""What strangers can have written for nothing is written so often a minute, with the number of what was left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LINES = 60  # a minute: an incident is seen, and whoever knocks a thousand times a second fills no disk
MINUTE = 60.0


class Seldom:
    """So many lines in a minute, and how many there would have been besides. Safe for threads."""

    def __init__(self, lines: int = LINES, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._said = 0
        self._missed = 0

    def says(self) -> bool:
        """Whether there may be one more line now; what may not is counted."""
        with self._lock:
            if self._clock() - self._began >= MINUTE:
                self._began, self._said = self._clock(), 0
            if self._said >= self._lines:
                self._missed += 1
                return False
            self._said += 1
            return True

    def missed(self) -> int:
        """How many lines were left out since the last time this was asked."""
        with self._lock:
            count, self._missed = self._missed, 0
        return count

    def left_out(self) -> str:
        """The same, for the end of a line for people."""
        count = self.missed()
        return f" ({count:,} more like it)" if count else ""
