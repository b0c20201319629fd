"""One request and its answer: what is sent, what may be sent again, and when a connection is of no more use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from trust.tls.http1 import PIECE_BYTES, Exchange, request_head

URL = "https://server.example/a?b=c"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


class Wire:
    """The bytes that a server would see, and those that it answers, one piece for each read; b"" is the end."""

    def __init__(self, *answers: bytes, sound: bool = True) -> None:
        self.sent = b""
        self.done: list[bool] = []
        self._answers = list(answers)
        self._sound = sound

    def write(self, data: bytes | memoryview) -> None:
        self.sent += data

    async def drain(self, seconds: float | None) -> None:
        assert len(self.sent) >= 1

    async def read(self, seconds: float | None) -> bytes:
        return self._answers.pop(0)

    def rests(self) -> bool:
        return self._sound

    def exchange(self, request: httpx.Request) -> Exchange:
        return Exchange(self, request, request_head(request), self.done.append)

    def ask(self, request: httpx.Request | None = None) -> httpx.Response:
        async def main() -> httpx.Response:
            response = await self.exchange(request or httpx.Request("GET", URL)).run()
            await response.aread()
            return response

        return asyncio.run(main())


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def post(content: Any, **headers: str) -> httpx.Request:
    return httpx.Request("POST", URL, content=content, headers=headers)


@pytest.mark.parametrize(
    ("httpx_request", "end"),
    [
        (httpx.Request("GET", URL), b"\r\n\r\n"),
        (post(b"abc"), b"Content-Length: 3\r\n\r\nabc"),
        (post(b""), b"Content-Length: 0\r\n\r\n"),
        (post(chunks(b"ab", b"", b"c")), b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (post(chunks(b"ab", b"c"), **{"content-length": "3"}), b"content-length: 3\r\n\r\nabc"),
        (post(b"x" * PIECE_BYTES * 3), b"\r\n\r\n" + b"x" * PIECE_BYTES * 3),
    ],
    ids=["no body", "a body", "an empty body", "chunks", "a stream of known length", "pieces"],
)
def test_what_is_sent(httpx_request: httpx.Request, end: bytes) -> None:
    wire = Wire(OK)
    wire.ask(httpx_request)
    assert wire.sent.startswith(httpx_request.method.encode() + b" /a?b=c HTTP/1.1\r\nHost: server.example\r\n")
    assert wire.sent.endswith(end) and wire.done == [True]


def raw(method: str = "GET", url: str = URL, **headers: str) -> httpx.Request:
    return httpx.Request(method, url, headers=headers)


NOT_ONE_REQUEST: list[tuple[str, httpx.Request]] = [
    ("two requests in the method", raw("GET / HTTP/1.1\r\nhost: x\r\n\r\nGET")),
    ("a space in the method", raw("GE T")),
    ("a method outside ASCII", raw("GÉT")),
    ("CONNECT", raw("CONNECT")),
    ("two lines in a header", raw(x="a\r\nhost: other")),
    ("LF in a header", raw(x="a\nb")),
    ("NUL in a header", raw(x="a\0b")),
    ("two lines in the name of a header", raw(**{"x: y\r\nz": "a"})),
    ("a colon in the name of a header", raw(**{"x:y": "a"})),
    ("no name of a header", raw(**{"": "a"})),
    ("a length and chunks", raw("POST", **{"content-length": "3", "transfer-encoding": "chunked"})),
    ("another coding", raw("POST", **{"transfer-encoding": "gzip"})),
    ("a length that is none", raw("POST", **{"content-length": "3x"})),
    ("a negative length", raw("POST", **{"content-length": "-3"})),
    ("another protocol", raw(upgrade="websocket")),
    ("two hosts", httpx.Request("GET", URL, headers=[("host", "a"), ("host", "b")])),
    ("two lengths", httpx.Request("GET", URL, headers=[("content-length", "0"), ("content-length", "0")])),
]


@pytest.mark.parametrize(("case", "request_"), NOT_ONE_REQUEST, ids=[c[0] for c in NOT_ONE_REQUEST])
def test_what_is_not_one_request_is_not_sent(case: str, request_: httpx.Request) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="cannot be sent"):
        request_head(request_)


def test_no_host() -> None:
    request = raw()
    del request.headers["host"]
    with pytest.raises(httpx.LocalProtocolError, match="one Host"):
        request_head(request)


def test_a_refused_header_is_not_repeated_in_the_error() -> None:
    with pytest.raises(httpx.LocalProtocolError) as caught:
        request_head(raw(authorization="Bearer secret\r\nx: y"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("parts", [(b"ab",), (b"ab", b"cd"), ()], ids=["too short", "too long", "nothing"])
def test_a_body_of_another_length_than_said(parts: tuple[bytes, ...]) -> None:
    """The rest would be taken for the next request, or the next request for the rest."""
    with pytest.raises(httpx.LocalProtocolError, match="length of the body"):
        request_head(post(b"".join(parts), **{"content-length": "3"}))
    wire = Wire(OK)
    with pytest.raises(httpx.LocalProtocolError, match="length of the body"):
        wire.ask(post(chunks(*parts), **{"content-length": "3"}))
    assert wire.done == [False] and b"abcd" not in wire.sent


def test_an_answer_in_many_pieces() -> None:
    wire = Wire(*(bytes([byte]) for byte in OK))
    response = wire.ask()
    assert (response.status_code, response.content, response.reason_phrase) == (200, b"abc", "OK")
    assert (response.http_version, response.extensions["network_stream"], wire.done) == ("HTTP/1.1", wire, [True])


@pytest.mark.parametrize(
    ("wire", "again"),
    [
        (Wire(OK), True),
        (Wire(OK[:-1], OK[-1:]), True),
        (Wire(OK + b"HTTP/1.1 200 OK\r\n"), False),
        (Wire(OK, sound=False), False),
        (Wire(b"HTTP/1.1 200 OK\r\n\r\nabc", b""), False),
    ],
    ids=["whole", "in parts", "more behind it", "the stream has more", "up to the end"],
)
def test_whether_a_connection_carries_another(wire: Wire, again: bool) -> None:
    assert wire.ask().content == b"abc"
    assert wire.done == [again]


def test_an_answer_that_is_not_read_to_its_end() -> None:
    async def main() -> None:
        wire = Wire(OK[:-1], OK[-1:])
        response = await wire.exchange(httpx.Request("GET", URL)).run()
        await response.aclose()
        await response.aclose()
        assert wire.done == [False]

    asyncio.run(main())


def test_a_body_that_breaks_off_in_the_middle() -> None:
    wire = Wire(OK[:-1], b"")
    with pytest.raises(httpx.RemoteProtocolError, match="in the middle"):
        wire.ask()
    assert wire.done == [False]


def test_an_error_of_the_body_that_is_sent() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ZeroDivisionError

    wire = Wire(OK)
    with pytest.raises(ZeroDivisionError):
        wire.ask(post(failing()))
    assert wire.done == [False]


class Broken(Wire):
    """Takes no more than the head, and has answered that already."""

    def write(self, data: bytes | memoryview) -> None:
        if self.sent:
            raise httpx.WriteError("gone")
        super().write(data)


def test_an_answer_before_the_request_was_sent() -> None:
    """Such as 413: it says more than that the rest could not be sent."""
    wire = Broken(OK)
    assert wire.ask(post(chunks(b"abc"))).content == b"abc"
    assert wire.done == [False]


@pytest.mark.parametrize(
    ("method", "content", "begun", "repeatable"),
    [
        ("GET", b"", b"", True),
        ("PUT", b"abc", b"", True),
        ("POST", b"abc", b"", False),
        ("PATCH", b"abc", b"", False),
        ("PUT", chunks(b"abc"), b"", False),
        ("GET", b"", b"HTTP", False),
    ],
    ids=["GET", "PUT", "POST", "PATCH", "a stream", "an answer has begun"],
)
def test_what_may_be_sent_again(method: str, content: Any, begun: bytes, repeatable: bool) -> None:
    async def main() -> None:
        wire = Wire(*([begun] if begun else []), b"")
        exchange = wire.exchange(httpx.Request(method, URL, content=content))
        with pytest.raises(httpx.RemoteProtocolError):
            await exchange.run()
        assert exchange.repeatable() is repeatable

    asyncio.run(main())
