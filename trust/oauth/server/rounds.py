"""Work that a server does every few seconds, beside what it is asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from trust.errors import TrustError

STALE_SECONDS = 60.0  # a round that takes longer hangs, on a database that locks or a disk that does not answer

logger = logging.getLogger("a2a_trust.oauth")


class Rounds:
    """Calls `work` in a thread of its own, at once and then every so many seconds, from `start` to `close`.

    What it raises ends no more than that round, and is logged once: a database that is away may be back in the next.
    """

    def __init__(self, work: Callable[[], None], *, seconds: float, name: str, failing: str, again: str) -> None:
        """Args: name: of the thread. failing, again: what the log says when rounds begin to fail, and no longer do."""
        self._work, self._seconds = work, seconds
        self._failing, self._again = failing, again
        self._problem: str | None = None
        self._began: float | None = None  # of the round that is under way
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forever, name=name, daemon=True)

    @property
    def problem(self) -> str | None:
        """Why the last round failed, in one line; None where it did not. Also one that does not come to an end."""
        began = self._began
        if began is not None and time.monotonic() - began > STALE_SECONDS:
            return "hangs"
        return self._problem

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait for the round that is under way, unless it hangs."""
        self._stop.set()
        self._thread.join(STALE_SECONDS)

    def _forever(self) -> None:
        while True:
            self._began = time.monotonic()
            try:
                self._work()
            except Exception as error:
                told = str(error) if isinstance(error, TrustError) else type(error).__name__
                if self._problem != told:
                    logger.error("%s: %s", self._failing, told)
                self._problem = told
            else:
                if self._problem is not None:
                    logger.warning("%s", self._again)
                self._problem = None
            self._began = None
            if self._stop.wait(self._seconds):
                return
