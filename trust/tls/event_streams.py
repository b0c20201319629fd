"""Event streams end when their connection is told to end; they would go on for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any


def ending(protocol: Any) -> Any:
    """An HTTP protocol class of uvicorn that ends an event stream when it is told to shut down.

    uvicorn lets every answer come to its end when the server stops, and so do we when a peer lost its trust. But an
    answer of the type text/event-stream has no end. It is given one: the client sees a whole answer, and the
    application a client that went away. What the application raises because of that is of no interest to anybody.
    """

    class Ending(protocol):  # type: ignore[misc]
        app: Callable[..., Any]

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._streams = _Streams(self.app)
            self.app = self._streams

        def shutdown(self) -> None:
            super().shutdown()
            self._streams.told = True
            if self._streams.open is not None:
                task = self.loop.create_task(_end(self._streams.open))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    return Ending


class _Streams:
    """The application of one connection, and the event stream that is open there. It does not hold the connection."""

    def __init__(self, app: Callable[..., Any]) -> None:
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
                await _end(request)

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


async def _end(request: Any) -> None:
    try:
        await request.send({"type": "http.response.body", "body": b""})
    except Exception:  # one of a fixed length cannot be ended before it
        request.transport.close()
    request.disconnected = True
    request.message_event.set()


def is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer with these headers has no end of its own."""
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
    )
