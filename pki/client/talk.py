"""Asynchronous conversations for synchronous callers, whether or not an event loop runs in their thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Talk:
    """Runs one conversation at a time; `hang_up` ends it, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._over = False

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a coroutine, in an event loop of its own.

        Raises:
            asyncio.CancelledError: `hang_up` was called.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._noted(make))
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(asyncio.run(self._noted(make)))
            except BaseException as error:  # handed to whoever waits
                result.set_exception(error)

        threading.Thread(target=work, name="a2a-pki client", daemon=True).start()
        return result.result()

    def hang_up(self) -> None:
        """End the conversation that runs, and let no other begin."""
        with self._lock:
            self._over = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _noted(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._lock:
            if self._over:
                raise asyncio.CancelledError
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await make()
        finally:
            with self._lock:
                self._loop = self._task = None


def talk(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """One conversation that nobody ends early."""
    return Talk().run(make)
