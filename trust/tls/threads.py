"""The async transports, for threads: `httpx.Client` over the very same connections, checks and errors.

A transport of this kind has one event loop, in a thread of its own, where its connections live. Calls wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, TypeVar

import httpx

from trust.errors import ConfigurationError

T = TypeVar("T")
Job = Callable[[], None]

CLOSING_SECONDS = 5.0  # for the calls that `close` cancels; they end at once, unless there is a defect


class BlockingTransport(httpx.BaseTransport):
    """An async transport for `httpx.Client(transport=...)`. Any number of threads may use it at once.

    The body of a request is read in the thread that sends it. A call that is interrupted ends its request. Calls that
    are under way when another thread closes the client end at once, with an error.

    Args:
        inner: not to be used by anybody else.

    Raises (from requests):
        What `inner` raises; `httpx.TransportError` once the client is closed. ConfigurationError: the process was
        forked since the first request, and the thread that carries the connections is in the other one.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._process = 0  # where that thread is
        self._closed = False
        self._calls: set[Future[Any]] = set()  # under way

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        errand = _Errand()
        stream: Any = request.stream
        if not isinstance(stream, httpx.ByteStream):
            stream = _Upload(iter(stream), errand)
        asked = httpx.Request(
            request.method, request.url, headers=request.headers, stream=stream, extensions=request.extensions
        )
        response = errand.wait(self._start(self._inner.handle_async_request(asked)))
        content = response.stream
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=content if isinstance(content, httpx.ByteStream) else _Download(self._start, content),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """End every call that is under way, and close every connection."""
        if self._forked():
            return  # they belong to the other process, which shares the sockets with this one
        with self._lock:
            thread, self._thread, self._closed = self._thread, None, True
        if thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
            for call in tuple(self._calls):  # whatever kept it from ending: nobody waits for a loop that is gone
                call.cancel()

    async def _end(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls, timeout=CLOSING_SECONDS)
        await self._inner.aclose()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._forked():  # before the lock, which nobody may be there to release
                raise ConfigurationError(
                    "client was used before this process was forked",
                    got=f"process {os.getpid()}",
                    expected=f"process {self._process}",
                    do="make a client in each process",
                )
            with self._lock:
                if self._closed:
                    raise _closed()
                if self._thread is None:
                    self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                    # A forgotten client must not keep the program from its end.
                    self._thread = threading.Thread(target=self._loop.run_forever, name="a2a-trust client", daemon=True)
                    self._thread.start()
                call = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            return call
        except BaseException:  # an interrupt, too
            work.close()
            raise

    def _forked(self) -> bool:
        return self._process not in (0, os.getpid())


def _closed() -> httpx.TransportError:
    return httpx.TransportError("client was closed")


class _Errand:
    """What the loop asks of the calling thread while that waits for an answer."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()

    def wait(self, future: Future[T]) -> T:
        future.add_done_callback(lambda _: self.jobs.put(None))
        try:
            while (job := self.jobs.get()) is not None:
                job()
            if future.cancelled():
                raise _closed()
            return future.result()
        except BaseException:  # an interrupt, too
            future.cancel()
            raise


class _Upload(httpx.AsyncByteStream):
    """The chunks of a body, taken one by one in the thread that sends the request."""

    def __init__(self, chunks: Iterator[bytes], errand: _Errand) -> None:
        self._chunks = chunks
        self._errand = errand

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await asyncio.wrap_future(self._next()):
            yield chunk[0]

    def _next(self) -> Future[tuple[bytes, ...]]:
        """One chunk, whatever it is; none at the end."""
        answer: Future[tuple[bytes, ...]] = Future()

        def job() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(tuple(itertools.islice(self._chunks, 1)))
            except Exception as error:
                answer.set_exception(error)

        self._errand.jobs.put(job)
        return answer


class _Download(httpx.SyncByteStream):
    def __init__(self, start: Callable[[Coroutine[Any, Any, Any]], Future[Any]], content: Any) -> None:
        self._start = start
        self._content = content
        self._parts: AsyncIterator[bytes] = content.__aiter__()

    def __iter__(self) -> Iterator[bytes]:
        while (part := _Errand().wait(self._start(self._part()))) is not None:
            yield part

    async def _part(self) -> bytes | None:
        return await anext(self._parts, None)

    def close(self) -> None:
        # Where the client is closed, so is the connection; that of another process is not ours to close.
        with contextlib.suppress(httpx.TransportError, ConfigurationError, CancelledError):
            self._start(self._content.aclose()).result()
