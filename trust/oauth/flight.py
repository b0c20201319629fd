"""Work that many wait for, and that is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flight(Generic[T]):
    """One piece of work at a time, such as a fetch. Belongs to one event loop.

    Wait for it with `asyncio.shield`: when one of those who wait is cancelled, the others still get what they came for.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[T] | None = None

    @property
    def under_way(self) -> asyncio.Task[T] | None:
        return None if self._task is None or self._task.done() else self._task

    def begin(self, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The work that is under way; begun now where there is none."""
        task = self.under_way
        if task is None:
            task = self._task = asyncio.create_task(work())
            task.add_done_callback(_look_at)
        return task


def _look_at(task: asyncio.Task[T]) -> None:
    """A failure is looked at, also where nobody waits any more."""
    if not task.cancelled():
        task.exception()
