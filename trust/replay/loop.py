"""Guards that wait, beside an event loop that must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from trust.errors import ReplayStoreUnavailable
from trust.replay.guard import THREADS, ReplayGuard
from trust.replay.memory import MemoryReplayGuard

ASK_SECONDS = 15  # for all that a guard waits for: then the caller is told that its store is away

T = TypeVar("T")


class OffTheLoop:
    """Runs what asks a guard so that the event loop goes on meanwhile: in a thread, where the guard may wait.

    A guard in memory never waits, and pays for no thread.
    """

    def __init__(self, guard: ReplayGuard) -> None:
        in_memory = isinstance(guard, MemoryReplayGuard)
        self._threads = None if in_memory else ThreadPoolExecutor(THREADS, thread_name_prefix="a2a-trust-replay")

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            ReplayStoreUnavailable: it takes longer than 15 s. It may still go on, and what it remembers is remembered.
        """
        if self._threads is None:
            return work()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)
        except TimeoutError:
            raise ReplayStoreUnavailable("replay store", expected=f"an answer within {ASK_SECONDS} s") from None
