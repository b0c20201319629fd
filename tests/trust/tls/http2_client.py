"""An HTTP/2 client for the tests: frames as they are told, right or wrong, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from tests.trust.tls.parts import AGENT, FORGE, SERVERS, port_of, until
from trust.credentials import Credentials
from trust.tls import client_context

E = TypeVar("E", bound=h2.events.Event)


class H2Client:
    """One connection. What the server sends is in `events`; `closed` is set when it has closed the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self._of: dict[int | None, list[h2.events.Event]] = {}  # by stream
        self.acknowledge = True  # whether windows are opened for what comes
        self.closed = False

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def read(self) -> None:
        with contextlib.suppress(OSError, ProtocolError):  # after GOAWAY this side may still have said something
            while data := await self.reader.read(65536):
                for event in self.h2.receive_data(data):
                    self.events.append(event)
                    self._of.setdefault(getattr(event, "stream_id", None), []).append(event)
                    if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.flush()
        self.closed = True

    # Requests.

    def open(
        self, path: str = "/", *extra: tuple[str, str], method: str = "GET", scheme: str = "https", end: bool = True
    ) -> int:
        stream = self.h2.get_next_available_stream_id()
        target = [] if method == "CONNECT" else [(":scheme", scheme), (":path", path)]
        self.h2.send_headers(
            stream, [(":method", method), (":authority", "localhost"), *target, *extra], end_stream=end
        )
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream, ErrorCodes.CANCEL)
        self.flush()

    # Answers.

    def of(self, stream: int | None, kind: type[E]) -> list[E]:
        return [event for event in self._of.get(stream, ()) if isinstance(event, kind)]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(stream, h2.events.DataReceived))

    def status(self, stream: int) -> str | None:
        for event in self.of(stream, h2.events.ResponseReceived):
            return str(dict(event.headers)[":status"])
        return None

    def was_reset(self, stream: int) -> Any:
        for event in self.of(stream, h2.events.StreamReset):
            return event.error_code
        return None

    def goodbye(self) -> Any:
        for event in self.of(None, h2.events.ConnectionTerminated):
            return event.error_code
        return None

    async def ended(self, stream: int) -> str | None:
        """Wait for a whole answer, and say its status."""
        await self.sees(lambda: self.of(stream, h2.events.StreamEnded))
        return self.status(stream)

    async def sees(self, condition: Callable[[], Any]) -> None:
        await until(lambda: condition() or self.closed)
        assert condition(), f"the server closed the connection: {self.goodbye()!r}"


@contextlib.asynccontextmanager
async def h2_client(url: str, credentials: Credentials = AGENT) -> AsyncIterator[H2Client]:
    context = client_context(credentials, FORGE.bundles, SERVERS)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url), ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    agent = H2Client(reader, writer)
    agent.h2.initiate_connection()
    agent.flush()
    reading = asyncio.ensure_future(agent.read())
    try:
        yield agent
    finally:
        reading.cancel()
        writer.transport.abort()
        await asyncio.gather(reading, return_exceptions=True)
