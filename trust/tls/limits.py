"""What a client of a uvicorn server may take: bytes of a request head, and time for a request to come to its end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from trust.tls.transport import Deadlines

# 64 KiB: a head with a token, a signature with its chain and the largest cookies has a quarter of it. Without a limit
# (httptools has none) a head without an end fills the memory.
MAX_HEAD_BYTES = 64 * 1024


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
