"""The client's end of one TLS connection on asyncio: bytes written and read, and its end together with its trust.

The TLS of `trust.tls.connection` runs over a plain TCP transport, so what it raises reaches the caller as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from collections.abc import Callable
from typing import Any, cast

import httpx

from trust.authorize import Authorizer
from trust.errors import HandshakeFailed, HandshakeRefused, TransportError, TrustError
from trust.identity import PeerIdentity
from trust.tls.connection import RECORD_BYTES
from trust.tls.engine import TrustContext
from trust.tls.sslobject import SslObject

MAX_UNREAD_BYTES = 256 * 1024  # ciphertext that waits for a reader; the server is held up until it is taken
RECORDS_AT_ONCE = 4  # for one call of `read`
BUSY_SECONDS = 0.01  # of work for one call of `read`, before others get their turn; a record takes a thousandth of it
TRUST_CHECK_SECONDS = 0.5  # how often a reader that waits for a silent server asks whether it is trusted still


class TlsStream(asyncio.Protocol):
    """One connection to one server. A single task reads and writes it.

    Args:
        rule: who this server may be, besides what the context allows.
        live: where the stream is for as long as its TCP connection is open.

    Attributes:
        peer: the server, from the end of the handshake on, and after the end of the connection.
    """

    def __init__(
        self,
        context: TrustContext,
        server_name: str,
        rule: Authorizer | None,
        live: set[TlsStream],
    ) -> None:
        self._context = context
        self._tls = context.connection(server_name, rule=rule)
        self._tls.on_distrust = self._distrusted
        self._loop = asyncio.get_running_loop()
        self._live = live
        self._raw: asyncio.Transport | None = None
        self._object: SslObject | None = None
        self.peer: PeerIdentity | None = None
        self._reader: asyncio.Future[bool] | None = None
        self._writer: asyncio.Future[bool] | None = None
        self._full = False  # the transport's buffer: `drain` waits
        self._held = False  # whether we stopped reading from the transport
        self._unread = 0
        self._left = False  # it is we who end it
        self._ended = False
        self._reason: Exception | None = None  # of the end, where TCP has one
        self.on_surprise: Callable[[], None] | None = None  # while no request is under way: nothing should come

    # From the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._live.add(self)

    def data_received(self, data: bytes) -> None:
        self._tls.receive(data)
        if self.on_surprise is not None:
            self.on_surprise()
            return
        self._unread += len(data)
        if self._unread > MAX_UNREAD_BYTES and not self._held and self._raw is not None:
            self._held = True
            self._raw.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._tls.receive_eof()
        _wake(self._reader)
        if self.on_surprise is not None:
            self.on_surprise()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._reason = True, exc
        self._full = False
        _wake(self._reader)
        _wake(self._writer)
        if self.on_surprise is not None:
            self.on_surprise()
        self._live.discard(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._writer)

    # For the one who uses it.

    async def handshake(self) -> None:
        """Prove to each other who we are.

        Raises:
            PeerError, HandshakeRefused, HandshakeFailed: as `Connection.handshake`.
        """
        while True:
            done = False
            try:
                done = self._tls.handshake()
            finally:
                self._flush()  # after a failure it is the alert: the server should know why, too
            if done:
                self.peer = self._tls.peer
                return
            if self._ended:
                raise self._tls.fail(HandshakeFailed("connection was lost in the handshake", got=self._reason))
            await self._wait_for_data(None)

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`; `drain` says when it has gone.

        Raises:
            TrustError: the server lost its trust; nothing was sent.
            httpx.WriteError: the connection is broken; reading says why.
        """
        self._check_trust()
        if self._ended or self._raw is None or self._raw.is_closing():
            raise httpx.WriteError("connection was closed by the server")
        try:
            self._tls.write(data)
        except TransportError as error:
            raise httpx.WriteError(str(error)) from None
        self._flush()

    async def drain(self, seconds: float | None) -> None:
        """Wait until there is room for more, for so long at most: the server takes too little of what was written."""
        if not self._tls.heard:
            # In TLS 1.3 the server judges our certificate while we send already. A refusal is looked for all the way
            # through a large request: the reset that follows it would destroy the alert that says why.
            await asyncio.sleep(0)
        if not self._full:
            return
        self._writer = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, _wake, self._writer, False)
        try:
            if not await self._writer:
                raise httpx.WriteTimeout(f"server did not take the request: waited {seconds:g} s")
        finally:
            self._writer = None
            if timer:
                timer.cancel()

    async def read(self, seconds: float | None) -> bytes:
        """Decrypted bytes; b"" when the server has closed the connection properly.

        Raises:
            TrustError: the server lost its trust: what comes after is not the answer of a trusted agent.
            HandshakeRefused: the server ended the connection before it said anything, with or without an alert.
            httpx.ReadError: the connection was cut or tampered with.
            httpx.ReadTimeout: nothing came for so long.
        """
        deadline = None if seconds is None else self._loop.time() + seconds
        while True:
            until = self._loop.time() + BUSY_SECONDS
            data = self._decrypt(until)
            if data is not None:
                if self._loop.time() > until:  # a server may put hundreds of TLS's own messages before each byte
                    await asyncio.sleep(0)
                return data
            self._flush()  # reading may have made TLS answer
            self._take_more()
            if self._ended:
                self._check_trust()
                if not (self._tls.heard or self._left):
                    raise refused(self._reason)
                raise httpx.ReadError(str(self._reason or "") or "connection was closed")
            wait = TRUST_CHECK_SECONDS if deadline is None else min(TRUST_CHECK_SECONDS, deadline - self._loop.time())
            if wait <= 0:
                raise httpx.ReadTimeout(f"no answer for {seconds:g} s")
            if not await self._wait_for_data(wait):
                self._check_trust()

    def rests(self) -> bool:
        """Whether the connection is sound and nothing unasked for has come over it."""
        try:
            silent = self._tls.drained or self._tls.read(RECORD_BYTES) is None
        except TrustError:
            return False
        self._flush()
        self._take_more()
        return silent and not self._ended and self._raw is not None and not self._raw.is_closing()

    def usable(self) -> bool:
        """Whether another request may be sent on it: it rests, its trust is not about to end, and no end is waiting."""
        if self._context.stale(self._tls) or self._raw is None or self._raw.is_closing():
            return False
        # What the loop has not seen yet: most often the server's end of an idle connection.
        return not _readable(self._raw.get_extra_info("socket"))

    def close(self) -> None:
        """Say close_notify if it can be sent at once: a dead server must not hold up the client."""
        if self._raw is None or self._raw.is_closing():
            return
        self._left = True
        self._tls.close()
        self._flush()
        if self._raw.get_write_buffer_size():
            self._raw.abort()
        else:
            self._raw.close()

    def abort(self) -> None:
        self._left = True
        if self._raw is not None:
            self._raw.abort()

    def get_extra_info(self, name: str) -> Any:
        """As httpcore's network streams: `ssl_object`, `client_addr`, `server_addr`, `socket`; and `peer`."""
        if name == "peer":
            return self.peer
        if name == "ssl_object":
            if self._object is None:
                self._object = SslObject(self._context, self._tls, ssl.MemoryBIO(), ssl.MemoryBIO())
            return self._object
        known = {"client_addr": "sockname", "server_addr": "peername", "socket": "socket"}
        return self._raw.get_extra_info(known[name]) if name in known and self._raw is not None else None

    # Below.

    def _decrypt(self, until: float) -> bytes | None:
        """What is here, of a few records, and of one at least; None for nothing."""
        if self._tls.drained:
            return None
        self._check_trust()
        parts: list[bytes] = []
        try:
            while (data := self._tls.read(RECORD_BYTES)) and len(parts) < RECORDS_AT_ONCE and self._loop.time() < until:
                parts.append(data)
        except HandshakeRefused:
            raise
        except TransportError as error:
            if not self._tls.heard:
                raise refused(error) from None
            if not parts:
                raise httpx.ReadError(str(error)) from None
            return b"".join(parts)  # the next call raises it again
        if data:
            parts.append(data)
        if parts:
            return b"".join(parts)
        if data == b"" and not self._tls.heard:
            raise refused(None)
        return data

    def _take_more(self) -> None:
        self._unread = 0
        if self._held and self._raw is not None and not self._raw.is_closing():
            self._held = False
            self._raw.resume_reading()

    async def _wait_for_data(self, seconds: float | None) -> bool:
        self._reader = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, _wake, self._reader, False)
        try:
            return await self._reader
        finally:
            self._reader = None
            if timer:
                timer.cancel()

    def _flush(self) -> None:
        data = self._tls.output()
        if data and self._raw is not None and not self._raw.is_closing():
            self._raw.write(data)

    def _check_trust(self) -> None:
        self._tls.recheck()
        if self._tls.distrusted:
            raise self._tls.distrusted

    def _distrusted(self, _: TrustError) -> None:
        """The server lost its trust: end the connection now, also for a reader that waits. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self.abort)


def refused(cause: Exception | None) -> HandshakeRefused:
    """What a server meant that ended a connection without a word: most often that it does not want us."""
    return HandshakeRefused(
        "server ended the connection before it answered",
        got=str(cause or "") or "the end of the connection",
        expected="an answer",
        do="check this agent's certificate and the server's list of who may connect",
    )


def _wake(waiter: asyncio.Future[bool] | None, ready: bool = True) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(ready)


def _readable(socket: Any) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([socket], [], [], 0)[0])  # Windows, where any number of a socket will do
