"""The client's edge of signed streams: what ends them, what is closed, and that the head waits for the first event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.event_streams import BILLING, EVENTS, FORGE, PLANNER, event, signer
from tests.forge import NOW
from trust.errors import (
    ResponseMismatch,
    ResponseNotSigned,
    SignatureWrong,
    StreamEventLost,
    StreamTruncated,
    TrustError,
)
from trust.signing.http import MessageSigner, SigningTransport, reference_of
from trust.signing.streams import named_event

URL = "https://billing.example/a2a"
Step = bytes | Exception
FACTS: dict[str, Any] = {"credentials": BILLING, "chain": True, "now": NOW}


class Billing(httpx.AsyncBaseTransport):
    """The agent that is called: `steps` makes what it sends from the frames of a good stream."""

    def __init__(
        self,
        steps: Callable[[list[bytes]], list[Step]] = lambda frames: list(frames),
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.steps, self.status = steps, status
        self.headers = {"content-type": "text/event-stream", **(headers or {})}
        self.sent = 0
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        received = (request.method, str(request.url))
        reference = reference_of(request.headers.raw, PLANNER.agent_id, received=received)
        assert reference is not None
        stream = signer(request=reference, resumes=named_event(request.headers.raw))
        frames = [*(stream.sign(event(text), **FACTS) for text in EVENTS), stream.end(**FACTS)]
        return httpx.Response(self.status, headers=self.headers, stream=_Body(self, self.steps(frames)))


class _Body(httpx.AsyncByteStream):
    def __init__(self, server: Billing, steps: list[Step]) -> None:
        self.server, self.steps = server, steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if callable(step):
                step()
                continue
            self.server.sent += 1
            yield step

    async def aclose(self) -> None:
        self.server.closed = True


def client(server: Billing) -> httpx.AsyncClient:
    by = MessageSigner(PLANNER, audience=BILLING.agent_id, bundles=FORGE.bundles, clock=lambda: NOW)
    return httpx.AsyncClient(transport=SigningTransport(server, by))


def read(server: Billing, **options: Any) -> list[bytes]:
    got: list[bytes] = []

    async def run() -> None:
        async with client(server) as agent, agent.stream("POST", URL, **options) as response:
            async for part in response.aiter_raw():
                got.append(part)

    try:
        asyncio.run(run())
    finally:
        assert server.closed
    return got


WHOLE = [event(text) for text in EVENTS]


@pytest.mark.parametrize(
    "steps",
    [
        lambda frames: frames,
        lambda frames: [b"".join(frames)],
        lambda frames: [b"".join(frames)[i : i + 100] for i in range(0, len(b"".join(frames)), 100)],
        lambda frames: [b":\n\n", *frames, b":\n\n"],
        lambda frames: [*frames, httpx.ReadError("reset")],  # nothing is missing, however the connection ends
        lambda frames: [*frames, httpx.RemoteProtocolError("incomplete chunked read")],
    ],
    ids=["frames", "at once", "in pieces", "keepalives", "reset behind the end", "no last chunk"],
)
def test_a_whole_stream(steps: Any) -> None:
    assert read(Billing(steps)) == WHOLE


@pytest.mark.parametrize(
    ("steps", "expected", "got"),
    [
        (lambda frames: [*frames[:2], httpx.ReadError("reset")], StreamTruncated, 2),
        (lambda frames: [*frames[:2], httpx.RemoteProtocolError("incomplete")], StreamTruncated, 2),
        (lambda frames: frames[:2], StreamTruncated, 2),
        (lambda frames: [], StreamTruncated, 0),
        (lambda frames: [httpx.ReadError("reset")], StreamTruncated, 0),
        (lambda frames: [frames[0], frames[2]], StreamEventLost, 1),
        (lambda frames: [frames[0] + frames[1].replace(b'"n":1', b'"n":2')], SignatureWrong, 1),
        (lambda frames: [event("{}")], ResponseNotSigned, 0),
    ],
    ids=["reset", "no last chunk", "ended", "nothing", "reset at once", "lost", "changed", "unsigned"],
)
def test_a_stream_that_is_not_whole(steps: Any, expected: type[TrustError], got: int) -> None:
    server, seen = Billing(steps), []

    async def run() -> None:
        async with client(server) as agent, agent.stream("POST", URL) as response:
            async for part in response.aiter_raw():
                seen.append(part)

    with pytest.raises(TrustError) as caught:
        asyncio.run(run())
    assert type(caught.value) is expected
    assert seen == WHOLE[:got]
    assert server.closed


def test_a_stream_that_failed_does_not_end_well_when_it_is_read_again() -> None:
    async def run() -> None:
        server = Billing(lambda frames: [frames[0], *frames[2:]])
        async with client(server) as agent, agent.stream("POST", URL) as response:
            for _ in range(2):
                with pytest.raises(StreamEventLost):
                    async for _part in response.stream:  # type: ignore[union-attr]
                        pass

    asyncio.run(run())


def test_whoever_sends_without_a_pause_keeps_nobody_else_from_running() -> None:
    async def run() -> None:
        others: list[int] = []
        server = Billing(lambda frames: [*[b":\n"] * 10, lambda: others.append(0), *frames])  # type: ignore[list-item]

        async def other() -> None:
            while True:
                others.append(1)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        async with client(server) as agent:
            await agent.post(URL)
        task.cancel()
        assert others.index(0) >= 10

    asyncio.run(run())


def test_how_the_connection_ended_is_told() -> None:
    with pytest.raises(StreamTruncated) as caught:
        read(Billing(lambda frames: [frames[0], httpx.ReadError("reset")]))
    assert isinstance(caught.value.__cause__, httpx.ReadError)
    assert caught.value.last_event_id.endswith("-0")


def test_a_stream_that_is_late_is_not_cut() -> None:
    """It may go on: the client has asked for no more patience than this."""
    with pytest.raises(httpx.ReadTimeout):
        read(Billing(lambda frames: [frames[0], httpx.ReadTimeout("late")]))


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Billing(status=403), ResponseMismatch),
        (Billing(headers={"content-type": "text/event-stream; charset=utf-8"}), ResponseMismatch),
        (Billing(headers={"content-type": "text/event-stream; charset=utf-16"}), ResponseMismatch),
        (Billing(headers={"content-encoding": "gzip"}), ResponseMismatch),
    ],
    ids=["status", "type", "charset", "encoding"],
)
def test_a_head_that_is_not_the_signed_one_is_not_handed_on(server: Billing, expected: type[TrustError]) -> None:
    async def run() -> None:
        async with client(server) as agent:
            await agent.send(agent.build_request("POST", URL), stream=True)

    with pytest.raises(TrustError) as caught:
        asyncio.run(run())
    assert type(caught.value) is expected
    assert server.closed


def test_no_more_is_read_than_is_asked_for() -> None:
    server = Billing()

    async def run() -> None:
        async with client(server) as agent, agent.stream("POST", URL) as response:
            assert server.sent == 1  # the head waited for it
            parts = response.aiter_raw()
            assert [await anext(parts), await anext(parts)] == WHOLE[:2]
            assert server.sent == 2

    asyncio.run(run())
    assert server.closed


def test_a_call_that_is_cancelled_before_the_first_event_closes_the_answer() -> None:
    class Silent(Billing):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers=self.headers, stream=_Silence(self, []))

    class _Silence(_Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b":\n\n"
            self.server.sent += 1
            await asyncio.Event().wait()

    server = Silent()

    async def run() -> None:
        async with client(server) as agent:
            call = asyncio.ensure_future(agent.post(URL))
            while not server.sent:
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())
    assert server.closed
