"""Work that a server does every few seconds, beside what it is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from trust.errors import TrustError

logger = logging.getLogger("a2a_trust.oauth")


class Rounds:
    """Calls `work` in a thread of its own, at once and then every so many seconds, from `start` to `close`.

    What it raises ends no more than that round, and is logged once: a database that is away may be back in the next.

    Attributes:
        problem: why the last round failed, in one line; None where it did not.
    """

    def __init__(self, work: Callable[[], None], *, seconds: float, name: str, failing: str, again: str) -> None:
        """Args: name: of the thread. failing, again: what the log says when rounds begin to fail, and no longer do."""
        self._work, self._seconds = work, seconds
        self._failing, self._again = failing, again
        self.problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forever, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait for the round that is under way."""
        self._stop.set()
        self._thread.join()

    def _forever(self) -> None:
        while True:
            try:
                self._work()
            except Exception as error:
                told = str(error) if isinstance(error, TrustError) else type(error).__name__
                if self.problem != told:
                    logger.error("%s: %s", self._failing, told)
                self.problem = told
            else:
                if self.problem is not None:
                    logger.warning("%s", self._again)
                self.problem = None
            if self._stop.wait(self._seconds):
                return
