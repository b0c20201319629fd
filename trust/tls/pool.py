"""The open connections of a client: used again while they rest, bounded in number, closed when they are of no use."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import httpx

from trust.errors import ConfigurationError
from trust.tls.destinations import Origin
from trust.tls.http1 import Exchange, Head
from trust.tls.stream import TlsStream

MAX_CONNECTIONS = 100  # at once, to all servers
MAX_IDLE_CONNECTIONS = 20
IDLE_SECONDS = 4.0  # below the 5 s after which uvicorn closes an idle connection: a request must not meet its end
CLOSING_TURNS = 100  # of the loop, which may be closed next: its sockets have to be gone by then


class PooledConnection:
    """One connection to an origin, for one exchange at a time.

    Attributes:
        reused: whether it carried an exchange before.
    """

    def __init__(self, pool: Pool, origin: Origin, stream: TlsStream) -> None:
        self.origin = origin
        self.stream = stream
        self.reused = False
        self.timer: asyncio.TimerHandle | None = None  # while it is idle
        self._pool = pool

    def exchange(self, request: httpx.Request, head: Head) -> Exchange:
        return Exchange(self.stream, request, head, self._done)

    def _done(self, again: bool) -> None:
        self._pool.release(self, again=again)


class Pool:
    """The connections of one event loop.

    Args:
        connect: opens one, within so many seconds; its stream is in the set for as long as it is open.
    """

    def __init__(self, connect: Callable[[Origin, float | None, set[TlsStream]], Awaitable[TlsStream]]) -> None:
        self._connect = connect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forget()

    def _forget(self) -> None:
        self._idle: dict[Origin, list[PooledConnection]] = {}
        self._streams: set[TlsStream] = set()
        self._open = 0  # connections, those that are being made included
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closings = 0  # a connection that was begun before the last one is not wanted any more

    def __len__(self) -> int:
        return self._open

    async def acquire(
        self, origin: Origin, *, connect: float | None, wait: float | None, fresh: bool = False
    ) -> PooledConnection:
        """A connection for one exchange.

        Args:
            connect: seconds for a new connection, from name resolution to a verified server.
            wait: seconds for one of `MAX_CONNECTIONS` to become free.
            fresh: none that carried an exchange before.

        Raises:
            httpx.PoolTimeout: none became free.
            httpx.ConnectError: the pool was closed meanwhile.
        """
        self._stay_in_this_loop()
        if self._waiting or not self._room(origin, fresh):
            await self._turn(origin, fresh, wait)
        if not fresh and (connection := self._resting(origin)):
            return connection
        self._open += 1
        closings = self._closings
        try:
            stream = await self._connect(origin, connect, self._streams)
        except BaseException as error:  # a cancelled call, too
            self._leave()
            if isinstance(error, Exception) and self._closings != closings:
                raise _closed() from None
            raise
        connection = PooledConnection(self, origin, stream)
        if self._closings != closings:
            self._close(connection)
            raise _closed()
        return connection

    def release(self, connection: PooledConnection, *, again: bool) -> None:
        """The exchange is over; `again`: the connection may carry another."""
        if not again or sum(map(len, self._idle.values())) >= MAX_IDLE_CONNECTIONS:
            self._close(connection)
            return
        connection.reused = True
        connection.timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._discard, connection)
        connection.stream.on_surprise = lambda: None if connection.stream.rests() else self._discard(connection)
        self._idle.setdefault(connection.origin, []).append(connection)
        self._wake()

    async def aclose(self) -> None:
        """Close every connection, those with an exchange under way included. Nobody waits for one any more."""
        self._closings += 1
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_closed())
        for connection in [c for resting in self._idle.values() for c in resting]:
            self._discard(connection)
        for stream in list(self._streams):
            stream.close()
        for _ in range(CLOSING_TURNS):
            if not self._streams:
                return
            await asyncio.sleep(0)

    def _resting(self, origin: Origin) -> PooledConnection | None:
        """The one that was used last, if it is still of use: the others may then expire."""
        while resting := self._idle.get(origin):
            connection = resting[-1]
            self._take(connection)
            if connection.stream.usable():
                return connection
            self._close(connection)
        return None

    def _take(self, connection: PooledConnection) -> None:
        resting = self._idle[connection.origin]
        resting.remove(connection)
        if not resting:
            del self._idle[connection.origin]
        connection.stream.on_surprise = None
        if connection.timer is not None:
            connection.timer.cancel()

    def _discard(self, connection: PooledConnection) -> None:
        if connection in self._idle.get(connection.origin, ()):
            self._take(connection)
            self._close(connection)

    def _close(self, connection: PooledConnection) -> None:
        connection.stream.close()
        self._leave()

    def _leave(self) -> None:
        self._open -= 1
        self._wake()

    def _room(self, origin: Origin, fresh: bool) -> bool:
        """Whether a connection rests or may be opened; an idle one of another origin makes room for it."""
        if self._open < MAX_CONNECTIONS or (not fresh and origin in self._idle):
            return True
        for resting in self._idle.values():
            self._discard(resting[0])
            return True
        return False

    async def _turn(self, origin: Origin, fresh: bool, seconds: float | None) -> None:
        """Wait for room, in the order of coming."""
        queue = self._waiting.append
        try:
            async with asyncio.timeout(seconds):
                while True:
                    waiter = asyncio.get_running_loop().create_future()
                    queue(waiter)
                    await waiter
                    if self._room(origin, fresh):
                        return
                    queue = self._waiting.appendleft  # somebody was faster
        except BaseException as error:  # a cancelled call, too
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._wake()  # it was our turn, and we do not take it
            if isinstance(error, TimeoutError):
                raise httpx.PoolTimeout(f"none of {MAX_CONNECTIONS} connections became free in {seconds} s") from None
            raise

    def _wake(self) -> None:
        while self._waiting and (self._idle or self._open < MAX_CONNECTIONS):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _stay_in_this_loop(self) -> None:
        """Connections belong to the event loop that they were made in. Those of a closed loop are gone with it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "client runs on asyncio", got="another event loop", do="see `trust.tls.client` for others"
            ) from None
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_closed():
            self._forget()
        elif self._open:
            raise ConfigurationError("client belongs to another event loop", do="make one client for each event loop")
        self._loop = loop


def _closed() -> httpx.ConnectError:
    return httpx.ConnectError("client was closed")
