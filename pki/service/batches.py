"""Issuance off the event loop: what waits at the same time is signed and stored together, by one thread.

Python runs one thread at a time, and signing holds on to it: more threads would not sign faster, and would share fewer
waits for the disk. Cores are for processes (`pki.service.program`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pki.authority import Issued
from pki.steps import Steps

THREADS = 1
MAX_BATCH = 64  # certificates; the first of them waits for the last to be signed, some 300 us each

Together = Callable[[Sequence[Steps[Issued]]], Sequence[Issued | Exception]]
_Waiting = tuple[Steps[Issued], asyncio.Future[Issued]]


class Batches:
    """For one event loop."""

    def __init__(self, together: Together) -> None:
        """`together`: `CertificateAuthority.together`."""
        self._together = together
        self._threads = ThreadPoolExecutor(THREADS, "a2a-pki-issue")
        self._mutex = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._working = 0

    def close(self) -> None:
        """Wait for what the threads are doing."""
        self._threads.shutdown()

    async def issued(self, steps: Steps[Issued]) -> Issued:
        """Take the steps, together with others; raises what they raise."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Issued] = loop.create_future()
        with self._mutex:
            self._waiting.append((steps, future))
            starts = self._working < THREADS
            self._working += starts
        if starts:
            self._threads.submit(self._work, loop)
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := self._taken():
            try:
                results = self._together([steps for steps, _ in batch])
            except Exception as error:  # a defect; nobody is left waiting
                results = [error] * len(batch)
            loop.call_soon_threadsafe(_answer, batch, results)

    def _taken(self) -> list[_Waiting]:
        with self._mutex:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            if not batch:
                self._working -= 1
            return batch


def _answer(batch: Sequence[_Waiting], results: Sequence[Issued | Exception]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():  # its client went away
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
