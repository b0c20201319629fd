"""Blocking calls that come at the same time are made together, by one thread: with one wait for the disk for them all.

Python runs one thread at a time, so a thread for each call would not be faster; and a database that lets one writer in
at a time, as SQLite does, has the others wait longer than the work takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

MAX_BATCH = 64  # calls; what is saved by more is less than what the first of them loses by waiting

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Work = Callable[[Sequence[Asked]], Sequence[Answer | Exception]]


class Together(Generic[Asked, Answer]):
    """For one event loop at a time.

    Args:
        work: answers, or refuses, each of those that are asked. What it raises is raised to all of them.
        in_thread: calls it in another thread.
    """

    def __init__(
        self,
        work: Work[Asked, Answer],
        in_thread: Callable[[Callable[[], Sequence[Answer | Exception]]], Awaitable[Sequence[Answer | Exception]]],
    ) -> None:
        self._work = work
        self._in_thread = in_thread
        # Only the event loop looks at these.
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer, of work that begins after this call; raises what the work raises or gives for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._task is None:
            self._task = asyncio.create_task(self._forever())
        return await future

    async def _forever(self) -> None:
        """One batch after the other, for as long as somebody waits. A caller that goes away changes nothing."""
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                results: Sequence[Answer | Exception]
                try:
                    results = await self._in_thread(partial(self._work, [asked for asked, _ in batch]))
                except Exception as error:
                    results = [error] * len(batch)
                for (_, future), result in zip(batch, results, strict=True):
                    if future.done():  # its client went away
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._task = None
            for _, future in (*batch, *self._waiting):  # where the loop ends: nobody is left waiting
                future.cancel()
            self._waiting.clear()
