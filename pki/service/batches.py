"""Issuance off the event loop: what waits at the same time is signed, stored and recorded together, by one thread.

Python runs one thread at a time, and signing holds on to it: more threads would not sign faster, and would share fewer
waits for the disk. Cores are for processes (`pki.service.program`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pki.authority import Issued
from pki.errors import copied
from pki.steps import Steps, told

MAX_BATCH = 64  # certificates; the first of them waits for the last to be signed, some 300 us each
# That a batch waits, at most, until as many are there as last time: one or two waits for the disk. Whoever is alone
# never waits; of those who ask again and again, each batch would otherwise begin with the first of them alone.
GATHERING_SECONDS = 0.01

Asked = TypeVar("Asked")
Together = Callable[[Sequence[Steps[Issued]]], Sequence[Issued | Exception]]


class Batches(Generic[Asked]):
    """For one event loop. `Asked` is what there is to be recorded of whoever asks."""

    def __init__(self, together: Together, record: Callable[[Sequence[tuple[Asked, Issued]]], None]) -> None:
        """
        Args:
            together: `CertificateAuthority.together`.
            record: writes down, before anybody is answered, what was made for whom. What it raises is raised to all of
                these: what cannot be recorded is not handed out.
        """
        self._together = together
        self._record = record
        self._thread = ThreadPoolExecutor(1, "a2a-pki-issue")
        # Only the event loop looks at these.
        self._waiting: deque[tuple[Steps[Issued], Asked, asyncio.Future[Issued]]] = deque()
        self._working = False
        self._expected = 1  # as many as came last time
        self._timer: asyncio.TimerHandle | None = None  # there while fewer wait than that

    def close(self) -> None:
        """Wait for what the thread is doing."""
        self._thread.shutdown()

    async def issued(self, steps: Steps[Issued], asked: Asked) -> Issued:
        """Take the steps, together with others; raises what they raise, or what kept them from being recorded."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Issued] = loop.create_future()
        self._waiting.append((steps, asked, future))
        self._gather(loop)
        return await future

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with those who wait, when as many are there as last time, or when they have waited long enough."""
        if self._working or not self._waiting:
            return
        if len(self._waiting) >= self._expected:
            self._begin(loop)
        elif self._timer is None:
            self._timer = loop.call_later(GATHERING_SECONDS, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        self._working, self._expected = True, len(batch)
        self._thread.submit(self._work, loop, batch)

    def _work(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[tuple[Steps[Issued], Asked, asyncio.Future[Issued]]]
    ) -> None:
        results: list[Issued | Exception]
        try:
            made = self._together([steps for steps, _, _ in batch])
            results = self._recorded([asked for _, asked, _ in batch], made)
        except BaseException as error:  # a defect, or a library in Rust that panics; nobody is left waiting
            results = [copied(told(error)) for _ in batch]
        loop.call_soon_threadsafe(self._done, loop, [future for _, _, future in batch], results)

    def _recorded(self, asked: Sequence[Asked], results: Sequence[Issued | Exception]) -> list[Issued | Exception]:
        made = [(one, result) for one, result in zip(asked, results, strict=True) if not isinstance(result, Exception)]
        if made:
            try:
                self._record(made)
            except Exception as error:  # whatever a trail raises: what was made is in the books, and is not handed out
                return [result if isinstance(result, Exception) else copied(error) for result in results]
        return list(results)

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: Sequence[asyncio.Future[Issued]],
        results: Sequence[Issued | Exception],
    ) -> None:
        for future, result in zip(futures, results, strict=True):
            if future.done():  # its client went away
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._working = False
        self._gather(loop)
