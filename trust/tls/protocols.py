"""What uvicorn's protocol classes lack: the peer of a connection, bounds, deadlines, and an end for event streams.

Each function here takes a protocol class of uvicorn, and makes one of it that has what the function is named for.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from trust.identity import GROUP_EXTENSION, PEER_EXTENSION, PRESENTED_EXTENSION
from trust.tls.connection import Connection
from trust.tls.forwarded import described
from trust.tls.transport import Deadlines

App = Callable[..., Any]

# 64 KiB: a head with a token, a signature with its chain and the largest cookies has a quarter of it. Without a limit
# (httptools has none) a head without an end fills the memory.
MAX_HEAD_BYTES = 64 * 1024
# Requests that wait behind the one that is answered. They are few bytes each, and some kilobytes once they are parsed:
# what is read at once (256 KiB) would become 13 MiB.
MAX_PIPELINED = 100

_CIPHER_SUITES = {  # RFC 8446 appendix B.4
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
}
_TLS_1_3 = 0x0304

_logger = logging.getLogger("uvicorn.error")

_BAD_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def identified(protocol: Any) -> Any:
    """A protocol class of uvicorn whose application finds the peer in its scope, and no request that could be two."""

    class Identified(protocol):  # type: ignore[misc]
        app: App

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            connection = transport.get_extra_info("ssl_object")
            self.app = _with_peer(self.app, connection, tls_extensions(connection))

    return Identified


def tls_extensions(connection: Connection) -> dict[str, Any]:
    """What a verified connection adds to `scope["extensions"]`: ASGI's "tls", and our own."""
    peer = connection.peer
    cipher, ours = connection.cipher, connection.credentials
    extensions: dict[str, Any] = {
        "tls": {
            "server_cert": ssl.DER_cert_to_PEM_cert(ours.chain_der[0]) if ours else None,
            **described(peer),
            "client_cert_error": None,  # a client certificate with an error ends the handshake
            "tls_version": _TLS_1_3,
            "cipher_suite": _CIPHER_SUITES.get(cipher[0]) if cipher else None,
        },
        GROUP_EXTENSION: connection.group,
    }
    if peer is not None:
        extensions[PEER_EXTENSION] = peer
    if ours is not None:
        extensions[PRESENTED_EXTENSION] = ours.thumbprint
    return extensions


def _with_peer(app: App, connection: Connection, extensions: dict[str, Any]) -> App:
    def asked(scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[Any]:
        # The connection is closed when the peer loses its trust. A request that was in the buffers by then, perhaps
        # pipelined behind another, must not be served all the same.
        if connection.distrusted:
            return _turn_away(scope, send, connection.distrusted.status)
        if not _framed(scope):
            _logger.warning("Invalid HTTP request received.")
            return _turn_away(scope, send, 400)
        present = scope.get("extensions") or {}
        for ours in (PEER_EXTENSION, PRESENTED_EXTENSION, GROUP_EXTENSION):
            present.pop(ours, None)
        scope["extensions"] = {**present, **extensions}
        answered: Awaitable[Any] = app(scope, receive, send)
        return answered

    return asked


async def _turn_away(scope: MutableMapping[str, Any], send: Any, status: int) -> None:
    kind = "websocket.http" if scope["type"] == "websocket" else "http"
    headers = [(b"connection", b"close"), (b"content-length", b"0")]
    await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": b""})


def _framed(scope: MutableMapping[str, Any]) -> bool:
    """Whether everybody who reads a request finds the same host, and the same end of its body.

    RFC 9112 sections 3.2, 6.1 and 6.3: one Host (in HTTP/1.0, one at most); no transfer coding but chunked, none in
    HTTP/1.0 or what calls itself otherwise, and none beside Content-Length. The parsers see to the rest.
    """
    names = [name for name, _ in scope["headers"]]
    hosts, coded = names.count(b"host"), b"transfer-encoding" in names
    if hosts == 1 and not coded:  # as most are
        return True
    if scope["http_version"] not in ("1.1", "2"):
        return not (hosts or coded)
    codings = [value.strip().lower() for name, value in scope["headers"] if name == b"transfer-encoding"]
    return hosts == 1 and codings == [b"chunked"] and b"content-length" not in names


def answering(protocol: Any) -> Any:
    """A WebSocket protocol class of uvicorn that answers every handshake.

    uvicorn hands it the whole head of a request, within our bounds. The libraries have stricter ones (8 KiB for a line,
    128 headers, no body): with a request beyond them that over `websockets` does nothing, and nobody ends it.
    """

    class Answering(protocol):  # type: ignore[misc]
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not getattr(self, "handshake_initiated", True) and not self.transport.is_closing():
                self.transport.write(_BAD_HANDSHAKE)
                self.transport.close()

    return Answering


def bounded(protocol: Any) -> Any:
    """uvicorn's protocol over httptools, with the bounds that h11 has by itself.

    What the parser takes in without coming to the end of a head or to a byte of a body is bounded: heads, trailers,
    chunk extensions. Trailers do not become headers behind the back of whoever has judged the headers (RFC 9110 section
    6.5.1); they are ignored.
    """

    class Bounded(protocol):  # type: ignore[misc]
        _taken = 0  # bytes since the last end of a head, or byte of a body; up to one read less

        def data_received(self, data: bytes) -> None:
            self._taken += len(data)
            super().data_received(data)
            if self._taken > MAX_HEAD_BYTES:
                self.logger.warning("Request head too large.")
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._taken = 0
            self.scope["headers"] = self.headers.copy()  # the parser goes on to fill `headers`
            super().on_headers_complete()
            if len(self.pipeline) > MAX_PIPELINED:
                self.transport.abort()

        def on_body(self, body: bytes) -> None:
            self._taken = 0
            super().on_body(body)

    return Bounded


def timed(protocol: Any, deadlines: Deadlines) -> Any:
    """An HTTP protocol class of uvicorn that cuts off a client whose request does not come to its end.

    uvicorn bounds the time between two requests, but not the time that a half request head may take, or a body of which
    nothing more comes. And it reads on, without a limit, what is pipelined behind a request that is being answered.
    """

    class Timed(protocol):  # type: ignore[misc]
        _head_timer: asyncio.TimerHandle | None = None
        _body_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.flow = _Flow(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            self.flow.progress = True
            if self._answering():
                self.flow.hold()
            super().data_received(data)
            if self._idle() and self.transport.get_protocol() is self:
                self._expect_head()
            else:
                if self._head_timer is not None:
                    self._head_came()
                if self._body_timer is None and self._receiving():
                    self._expect_body()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._answering():
                self.flow.release()
                if self._body_timer is None and self._receiving():  # the next request has begun already
                    self._expect_body()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            if self._body_timer is not None:
                self._body_timer.cancel()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _receiving(self) -> bool:
            cycle = self.cycle
            return cycle is not None and cycle.more_body and not cycle.response_complete

        def _answering(self) -> bool:
            """Whether the request is whole and its answer is not: what comes now belongs to the next request."""
            cycle = self.cycle
            return cycle is not None and not cycle.more_body and not cycle.response_complete

        def _expect_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(deadlines.request_head, self.transport.abort)

        def _head_came(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _expect_body(self) -> None:
            self.flow.progress = False
            self._body_timer = self.loop.call_later(deadlines.stall, self._check_body)

        def _check_body(self) -> None:
            self._body_timer = None
            if self._receiving():
                if self.flow.progress or self.flow.read_paused:  # or it is the application that takes its time
                    self._expect_body()
                else:
                    self.transport.abort()

    return Timed


class _Flow(FlowControl):
    """uvicorn's flow control, with a hold that the application does not lift by asking for more of its request."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = False
        self.progress = False  # whether anything came, or could have come only just now

    def hold(self) -> None:
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        if self._held:
            self._held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        if not self._held:
            self.progress = True
            super().resume_reading()


def ending(protocol: Any) -> Any:
    """An HTTP protocol class of uvicorn that cuts an event stream when it is told to shut down.

    uvicorn lets every answer come to its end when the server stops, and so do we when a peer lost its trust. But an
    answer of the type text/event-stream has no end. It is cut, so that the client knows that it did not see all of it;
    for the application the client went away. What the application raises because of that is of no interest to anybody.
    """

    class Ending(protocol):  # type: ignore[misc]
        app: App

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._streams = _Streams(self.app)
            self.app = self._streams

        def shutdown(self) -> None:
            super().shutdown()
            self._streams.told = True
            if self._streams.open is not None:
                _cut(self._streams.open)

    return Ending


class _Streams:
    """The application of one connection, and the event stream that is open there. It does not hold the connection."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.open: Any = None  # of uvicorn: the request whose answer is an event stream
        self.told = False  # to shut down

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = send.__self__

        def sending(message: Any) -> Any:  # no coroutine of its own: most answers are no streams
            if self.open is request:
                return going_on(message)
            if message["type"] == "http.response.start" and is_stream(message.get("headers", ())):
                return beginning(message)
            return send(message)

        async def beginning(message: Any) -> None:
            await send(message)
            self.open = request
            if self.told:
                _cut(request)

        async def going_on(message: Any) -> None:
            await send(message)
            if request.disconnected:
                raise ConnectionResetError("the event stream was ended")  # ASGI HTTP 2.4: an OSError

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if self.open is not request or not request.disconnected:
                raise
        finally:
            if self.open is request:
                self.open = None


def _cut(request: Any) -> None:
    request.transport.cut()
    request.disconnected = True
    request.message_event.set()


def is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer with these headers has no end of its own."""
    for name, value in headers:  # no `any`: it takes twice as long, for every answer
        if name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream"):
            return True
    return False
