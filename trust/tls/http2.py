"""HTTP/2 for the uvicorn server: one connection of one verified peer, many requests at once (RFC 9113).

Frames, header compression and the states of streams are those of the `h2` library. What is here is what it leaves to a
server: the application's side of a request, flow control that follows the application, and bounds.

Why not hypercorn, which is built on `h2` as well (0.18): a body that one application does not read stops every other
request of its connection; an answer that comes before the end of a request's body, a path that is not ASCII, or some
PRIORITY frames end all of them; and 900 requests that are reset at once are 900 calls of the application, for a limit
of 100. None of it can be repaired from outside.

What one connection may take:

- `STREAMS` requests at once, `RUNNING` calls of the application: those of requests that were cancelled are included, so
  a client that opens and resets (CVE-2023-44487) soon has no more of them, and then no connection.
- 64 KiB for the headers of a request; not decoded yet, 64 frames of 16 KiB. No frame may have more. A response's
  headers are compressed with the 4 KiB of memory that every client has, however much a client offers.
- `BODY_BYTES` of bodies that the application has not read, 64 KiB of them for one request.
- `CHATTER` frames that ask for nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones. They are
  earned again by requests, by answers, and slowly by time. A reset is dearer.
- The time that `Deadlines` has for the first request, for a body, and for an answer to be taken. A request that takes
  longer ends alone; what breaks the protocol ends the connection.

Not done: WebSockets and CONNECT (the client is told to take HTTP/1.1, which the same port speaks), push, priorities,
trailers in either direction. Trailers of a request are dropped, and never become headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.settings
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from trust.tls.http2_request import App, Request
from trust.tls.protocols import MAX_HEAD_BYTES
from trust.tls.transport import Deadlines

STREAMS = 100  # RFC 9113 section 6.5.2: fewer would not be useful
RUNNING = 2 * STREAMS  # an application may need a while to notice that its client has gone
BODY_BYTES = 1 << 20
ENCODER_BYTES = 4096  # RFC 9113 section 6.5.2: what HEADER_TABLE_SIZE is at first
FRAME_BYTES = 9 + 16384  # RFC 9113 section 6.5.2: the least that a server has to take, and we do not offer more
CLOSED_STREAMS = 1000  # remembered to tell late frames from wrong ones; h2 has 65,536, which are megabytes

CHATTER = 1000.0
CHATTER_EACH_SECOND = 100.0
CHATTER_EACH_REQUEST = 20.0
WORTHWHILE_BYTES = 64  # DATA with fewer earns nothing
CHATTER_EACH_DATA = 3.0  # a client may answer it with WINDOW_UPDATE for the stream and the connection, and with PING
RESET_COSTS = 10.0

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[!-\"$-~]*|\*")  # RFC 9113 section 8.3.1: printable ASCII, without a fragment

logger = logging.getLogger("uvicorn.error")


class Http2(asyncio.Protocol):
    """An HTTP protocol class of uvicorn, for connections on which TLS agreed on "h2"."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        deadlines: Deadlines,
    ) -> None:
        self.config = config
        self.app: App = config.loaded_app
        self.app_state = app_state
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.deadlines = deadlines
        self.h2 = _Frames()
        self.transport: asyncio.Transport
        self.flow: FlowControl
        self.requests: dict[int, Request] = {}  # until both the request and its answer are whole, or it was reset
        self._running = 0
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None  # there while nobody asks anything
        self._chatter, self._counted = CHATTER, self.loop.time()

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self.transport = transport
        self.flow = FlowControl(transport)
        self.client, self.server = get_remote_addr(transport), get_local_addr(transport)
        self.server_state.connections.add(self)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(BODY_BYTES - self.h2.inbound_flow_control_window)
        self.flush()
        self._idle(self.deadlines.request_head)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            logger.warning("Invalid HTTP/2 received: %s", type(error).__name__)
            self.flush()  # GOAWAY
            self.transport.close()
            return
        for event in events:
            self._take(event)
            if self.transport.is_closing():
                return
        self.flush()
        if len(self.h2.incoming_buffer._data) > FRAME_BYTES:  # `h2` looks at a frame's size once it has all of it
            self._say_goodbye(ErrorCodes.FRAME_SIZE_ERROR)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._busy()
        self.server_state.connections.discard(self)
        for request in list(self.requests.values()):
            request.lose()
        self.requests.clear()
        self.flow.resume_writing()

    def pause_writing(self) -> None:
        """The client does not take what we send: nothing is read from it either that would have to be answered."""
        self.flow.pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """No further request; those in flight finish, event streams are cut.

        GOAWAY is the last word and not the first: clients that are in use (httpcore) give up what is in flight when
        they read it. Until then a new request is refused in the way that lets it be sent again elsewhere.
        """
        self._stopping = True
        for request in list(self.requests.values()):
            if request.event_stream:
                request.end_early()
        if not self.requests:
            self._say_goodbye()

    # From the client.

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self._body(event)
        elif isinstance(event, h2.events.StreamEnded):
            if (request := self.requests.get(event.stream_id)) is not None:
                request.body_ended()
        elif isinstance(event, h2.events.StreamReset):
            self._pay(RESET_COSTS)
            if (request := self.requests.get(event.stream_id)) is not None:
                request.lose()
                self.finished(request)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.transport.close()  # `h2` lets nothing be answered after it
        elif not isinstance(event, h2.events.TrailersReceived):
            self._pay(1)
            if isinstance(event, h2.events.RemoteSettingsChanged):
                # Its table holds what our answers said: with one of the size that a client chooses, all of it.
                self.h2.encoder.header_table_size = min(self.h2.remote_settings.header_table_size, ENCODER_BYTES)
            if isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
                for request in self.requests.values():
                    request.room.set()

    def _begin(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        limit = self.config.limit_concurrency
        if self._stopping or self._running >= RUNNING or (limit is not None and len(self.server_state.tasks) >= limit):
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)  # RFC 9113 section 8.7: it may be sent again
            return
        scope = self._scope(headers)
        if isinstance(scope, ErrorCodes):
            self._pay(RESET_COSTS)
            self._reset(stream_id, scope)
            return
        self._busy()
        self._running += 1
        request = Request(self, stream_id, scope)
        self.requests[stream_id] = request
        context = contextvars.Context() if self.config.reset_contextvars else None
        task = self.loop.create_task(request.run(self.app), context=context)
        self.server_state.tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        self.server_state.tasks.discard(task)

    def _scope(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any] | ErrorCodes:
        """What the application sees of a request; or why its stream is reset."""
        pseudo: dict[bytes, bytes] = {}
        fields: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            if name.startswith(b":"):
                pseudo[name] = value
            elif name == b"host":
                pseudo.setdefault(b":authority", value)  # `h2` has seen to it that they are the same
            else:
                fields.append((name, value))
        method, target = pseudo[b":method"], pseudo.get(b":path", b"")
        if method == b"CONNECT":
            return ErrorCodes.HTTP_1_1_REQUIRED
        if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(target)) or pseudo[b":scheme"] != b"https":
            return ErrorCodes.PROTOCOL_ERROR  # RFC 9113 section 8.1.1: malformed
        path, _, query = target.partition(b"?")
        root = self.config.root_path
        return {
            "type": "http",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": "2",
            "server": self.server,
            "client": self.client,
            "scheme": "https",
            "method": method.decode(),
            "root_path": root,
            "path": root + unquote(path.decode()),
            "raw_path": root.encode() + path,
            "query_string": query,
            "headers": [(b"host", pseudo[b":authority"]), *fields],
            "state": self.app_state.copy(),
            "extensions": {},
        }

    def _body(self, event: h2.events.DataReceived) -> None:
        request = self.requests.get(event.stream_id)
        if not event.data:
            self._pay(1)
        elif len(event.data) >= WORTHWHILE_BYTES:
            self._pay(-1)
        if request is None or request.complete:
            self.took(event.stream_id, event.flow_controlled_length)
        else:
            request.body_came(event.data, event.flow_controlled_length)

    def _pay(self, price: float) -> None:
        """Take the price of a frame from what the client has left; what is negative is earned."""
        now = self.loop.time()
        earned = (now - self._counted) * CHATTER_EACH_SECOND
        self._chatter, self._counted = min(self._chatter + earned, CHATTER) - price, now
        if self._chatter < 0 and not self.transport.is_closing():
            logger.warning("HTTP/2 client asks for nothing, again and again.")
            self._say_goodbye(ErrorCodes.ENHANCE_YOUR_CALM)

    # From the requests.

    @property
    def stopping(self) -> bool:
        return self._stopping

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def took(self, stream_id: int, size: int) -> None:
        """So many bytes of a body are not in our memory any more: as many may come."""
        with contextlib.suppress(ProtocolError):
            self.h2.acknowledge_received_data(size, stream_id)
        self.flush()

    def sent(self) -> None:
        self._pay(-CHATTER_EACH_DATA)

    def cancel(self, request: Request, code: ErrorCodes) -> None:
        request.lose()
        self._reset(request.stream_id, code)
        self.finished(request)

    def answered(self) -> None:
        self.server_state.total_requests += 1
        self._pay(-CHATTER_EACH_REQUEST)

    def finished(self, request: Request) -> None:
        """Nothing comes for it any more, and nothing goes."""
        if self.requests.pop(request.stream_id, None) is None or self.requests or self.transport.is_closing():
            return
        if self._stopping:
            self._say_goodbye()
        else:
            self._idle(self.config.timeout_keep_alive)

    # The connection.

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with contextlib.suppress(ProtocolError):  # it is closed already
            self.h2.reset_stream(stream_id, code)
        self.flush()

    def _idle(self, seconds: float) -> None:
        self._busy()
        self._timer = self.loop.call_later(seconds, self._say_goodbye)

    def _busy(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say_goodbye(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        with contextlib.suppress(ProtocolError):
            self.h2.close_connection(code)
        self.flush()
        self.transport.close()


class _Frames(h2.connection.H2Connection):
    """The other library's half of the connection, with our bounds."""

    MAX_CLOSED_STREAMS = CLOSED_STREAMS

    def __init__(self) -> None:
        super().__init__(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        self.decoder.max_header_list_size = MAX_HEAD_BYTES
