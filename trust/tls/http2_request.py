"""One request over HTTP/2 and its answer, as ASGI has them; part of `trust.tls.http2`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from uvicorn.protocols.utils import ClientDisconnected, get_client_addr, get_path_with_query_string

from trust.tls.protocols import is_stream

if TYPE_CHECKING:
    from trust.tls.http2 import Http2

App = Callable[..., Awaitable[Any]]

CHUNK_BYTES = 64 * 1024  # of an answer, before others have their turn

# RFC 9113 section 8.2.2. What HTTP/1.1 says with them, frames say here.
_CONNECTION_SPECIFIC = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_VALUE = re.compile(rb"[^\x00\r\n]*")  # RFC 9113 section 8.2.1; `h2` looks at what it receives only

logger = logging.getLogger("uvicorn.error")
access_logger = logging.getLogger("uvicorn.access")


class Request:
    """One request and its answer, as ASGI has them."""

    def __init__(self, connection: Http2, stream_id: int, scope: dict[str, Any]) -> None:
        self.stream_id = stream_id
        self.room = asyncio.Event()  # the client may have opened a window
        self.complete = False  # the answer is
        self.event_stream = False  # an answer without an end
        self._connection = connection
        self._scope = scope
        self._came = asyncio.Event()
        self._body = bytearray()
        self._unread = 0  # bytes of flow control that the body and its padding took
        self._more_body = True
        self._told_end = False
        self._gone = False  # nobody is there any more to be answered
        self._started = False
        self._bodyless = False
        self._left: int | None = None  # of the Content-Length that was promised
        self._timer: asyncio.TimerHandle | None = None
        self._progress = False
        self._expect_body()

    async def run(self, app: App) -> None:
        try:
            await app(self._scope, self.receive, self.send)
            if not (self.complete or self._gone):
                logger.error("ASGI callable returned without completing its response.")
        except (Exception, asyncio.CancelledError) as error:
            if not self._gone:  # of a client that went away, or was sent away, nobody wants to hear
                logger.error("Exception in ASGI application\n", exc_info=error)
        if self.complete or self._gone:
            return
        if not self._started:
            with contextlib.suppress(ProtocolError, ClientDisconnected):
                await self.send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
                await self.send({"type": "http.response.body"})
                return
        self._connection.cancel(self, ErrorCodes.INTERNAL_ERROR)

    # From the client.

    def body_came(self, data: bytes, size: int) -> None:
        self._body += data
        self._unread += size
        self._progress = True
        self._came.set()

    def body_ended(self) -> None:
        self._more_body = False
        self._stop_waiting()
        self._came.set()
        if self.complete:
            self._connection.finished(self)

    def lose(self) -> None:
        """The stream or the connection is closed."""
        self._gone = True
        self._stop_waiting()
        self._took()
        self._body.clear()
        self._came.set()
        self.room.set()

    # For the application.

    async def receive(self) -> dict[str, Any]:
        while not (self._gone or self.complete or self._body or not (self._more_body or self._told_end)):
            self._came.clear()
            await self._came.wait()
        if self._gone or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._told_end = not self._more_body
        self._progress = True  # more could come only now
        self._took()
        return {"type": "http.request", "body": body, "more_body": self._more_body}

    async def send(self, message: Any) -> None:
        if self._gone:
            raise ClientDisconnected  # ASGI 2.4: it ends an application that only sends, such as an event stream
        kind = message["type"]
        if not self._started and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif self._started and not self.complete and kind == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}.")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        connection = self._connection
        fields = [(b":status", b"%d" % status)]
        for name, value in (*connection.server_state.default_headers, *headers):
            lowered = name.lower()
            if lowered == b"content-length":
                self._left = int(value)
            if not _VALUE.fullmatch(value):  # a proxy might make lines of it, for HTTP/1.1
                raise RuntimeError("Invalid HTTP header value.")
            if lowered not in _CONNECTION_SPECIFIC:
                fields.append((lowered, value))
        if self._scope["method"] == "HEAD" or status in (204, 304):
            self._bodyless = True
        connection.h2.send_headers(self.stream_id, fields)
        connection.flush()
        self._started = True
        self.event_stream = is_stream(headers)
        if connection.config.access_log and access_logger.hasHandlers():
            scope: Any = self._scope
            access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                *(get_client_addr(scope), scope["method"], get_path_with_query_string(scope), "2", status),
            )
        if self.event_stream and connection.stopping:
            self.end_early()

    async def _send_body(self, data: bytes, more: bool) -> None:
        if self._bodyless:
            data = b""
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("Response body does not have its Content-Length.")
        frames, start = self._connection.h2, 0
        while start < len(data):
            part = bytes(data[start : start + await self._window()])
            start += len(part)
            frames.send_data(self.stream_id, part, end_stream=not more and start == len(data))
            self._connection.flush()
            self._connection.sent()
        if not more:
            if not data:
                frames.end_stream(self.stream_id)
                self._connection.flush()
            self._finish()

    async def _window(self) -> int:
        """How much may be sent now, once anything may."""
        connection = self._connection
        while True:
            await connection.flow.drain()
            if self._gone:
                raise ClientDisconnected
            frames = connection.h2
            size = min(frames.local_flow_control_window(self.stream_id), frames.max_outbound_frame_size, CHUNK_BYTES)
            if size > 0:
                return size
            self.room.clear()
            try:
                async with asyncio.timeout(connection.deadlines.stall):
                    await self.room.wait()
            except TimeoutError:
                connection.cancel(self, ErrorCodes.CANCEL)

    def _finish(self) -> None:
        """The answer is whole. The rest of the request is dropped: a client may want to send all of it first."""
        self.complete = True
        self._came.set()
        self._took()
        self._connection.answered()
        if self._more_body:
            self._stop_waiting()
            # RFC 9113 section 8.1: the answer holds although the request does not.
            self._timer = self._connection.loop.call_later(
                self._connection.deadlines.close, self._connection.cancel, self, ErrorCodes.NO_ERROR
            )
        else:
            self._connection.finished(self)

    def end_early(self) -> None:
        """Cut an event stream: the client must not take it for whole. For the application the client went away."""
        if not self.complete:
            self._connection.cancel(self, ErrorCodes.CANCEL)

    # Flow control and time.

    def _took(self) -> None:
        if self._unread:
            size, self._unread = self._unread, 0
            self._connection.took(self.stream_id, size)

    def _expect_body(self) -> None:
        self._progress = False
        self._timer = self._connection.loop.call_later(self._connection.deadlines.stall, self._check_body)

    def _check_body(self) -> None:
        if self._progress or self._body:  # or it is the application that takes its time
            self._expect_body()
        else:
            self._connection.cancel(self, ErrorCodes.CANCEL)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
