"""HTTP/1.1 on one connection: a request out, its answer in.

What was not sent or read to its end, and what says more than it should, ends the connection.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import httpx

from trust.tls.answer import Answer

PIECE_BYTES = 64 * 1024  # of a body to be sent: after each, a refusal of our certificate is looked for
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110 section 9.2.2

# RFC 9110 sections 5.6.2 and 5.5, RFC 9112 section 3.2. What does not fit could end a line, and begin another request.
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Head = tuple[bytes, int | None]


class Stream(Protocol):
    """What carries the bytes; see `TlsStream` for what each raises."""

    def write(self, data: bytes | memoryview) -> None: ...
    async def drain(self, seconds: float | None) -> None: ...
    async def read(self, seconds: float | None) -> bytes: ...
    def rests(self) -> bool: ...


class Exchange:
    """One request and its answer.

    Args:
        head: of the request, by `request_head`.
        on_done: called once when the exchange is over, with whether the connection may carry another one.
    """

    def __init__(self, stream: Stream, request: httpx.Request, head: Head, on_done: Callable[[bool], None]) -> None:
        self._stream = stream
        self._request = request
        self._head = head
        self._on_done: Callable[[bool], None] | None = on_done
        self._timeouts = request.extensions.get("timeout", {})
        self._answer = Answer(request.method)
        self._sent = False

    async def run(self) -> httpx.Response:
        """Send the request, and return its answer with the body to be read.

        Raises:
            TrustError, httpx.TransportError: as the stream; `httpx.RemoteProtocolError` for what is no HTTP, and
                `httpx.LocalProtocolError` for a stream that is not as long as the head says.
        """
        answer = self._answer
        try:
            with contextlib.suppress(httpx.WriteError):  # the answer, or the reason for its absence, says more
                await self._send()
            while not answer.head:
                await self._receive()
            whole = answer.complete  # as most are: the connection is free before anybody reads the answer
            if whole:
                self._finish()
        except BaseException:  # a cancelled call, too
            self.close()
            raise
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=httpx.ByteStream(b"".join(answer.parts)) if whole else _Body(self),
            extensions={
                "http_version": b"HTTP/" + answer.version,
                "reason_phrase": answer.reason,
                "network_stream": self._stream,
            },
        )

    def repeatable(self) -> bool:
        """Whether the request may be sent once more: no byte of an answer came, and it is as good twice as once."""
        repeatable = self._request.method in REPEATABLE and isinstance(self._request.stream, httpx.ByteStream)
        return repeatable and not self._answer.begun

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the answer."""
        answer = self._answer
        try:
            while True:
                if answer.complete:
                    self._finish()
                if answer.parts:
                    data = b"".join(answer.parts)
                    answer.parts.clear()
                    yield data
                if answer.complete:
                    return
                await self._receive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nothing more of this exchange is of interest."""
        self._done(False)

    async def _send(self) -> None:
        head, length = self._head
        stream = self._request.stream
        if isinstance(stream, httpx.ByteStream):
            body = b"".join(stream)
            if len(head) + len(body) <= PIECE_BYTES:
                self._stream.write(head + body)
            else:
                await self._write(head + body)
        else:
            await self._write(head)
            sent = 0
            async for chunk in stream:  # type: ignore[union-attr]
                sent += len(chunk)
                if length is not None and sent > length:
                    break
                if chunk:
                    await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if length is None else chunk)
            if length is None:
                await self._write(b"0\r\n\r\n")
            elif sent != length:
                raise _not_sent("length of the body", f"{sent} bytes", str(length))
        self._sent = True

    async def _write(self, data: bytes) -> None:
        whole = memoryview(data)
        for start in range(0, len(data), PIECE_BYTES):
            self._stream.write(whole[start : start + PIECE_BYTES])
            await self._stream.drain(self._timeouts.get("write"))

    async def _receive(self) -> None:
        data = await self._stream.read(self._timeouts.get("read"))
        if data:
            self._answer.feed(data)
        else:
            self._answer.end()

    def _finish(self) -> None:
        self._done(self._sent and self._answer.again and self._stream.rests())

    def _done(self, again: bool) -> None:
        if self._on_done is not None:
            done, self._on_done = self._on_done, None
            done(again)


class _Body(httpx.AsyncByteStream):
    """A body of which more is to come. Closed before its end, it takes the connection with it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.body()

    async def aclose(self) -> None:
        self._exchange.close()


def request_head(request: httpx.Request) -> Head:
    """The head of a request, and how long its body is; None for chunks until the last.

    Raises:
        httpx.LocalProtocolError: it is not one request, or not one that this client can send.
    """
    method = request.method.encode("ascii", "replace")
    target = request.url.raw_path
    if not _TOKEN.fullmatch(method) or method == b"CONNECT" or not _TARGET.fullmatch(target):
        raise _not_sent("request line", repr(method + b" " + target), "a method other than CONNECT, and a path")
    lines = [method + b" " + target + b" HTTP/1.1"]
    lengths, codings, hosts = [], [], 0
    for name, value in request.headers.raw:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _not_sent("header", repr(name), "one line of printable characters")  # the value may be a secret
        lines.append(name + b": " + value)
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            codings.append(value.lower())
        elif lower == b"host":
            hosts += 1
        elif lower == b"upgrade":
            raise _not_sent("header", "Upgrade", "a request of HTTP")
    if hosts != 1 or len(lengths) + len(codings) > 1 or codings not in ([], [b"chunked"]):
        raise _not_sent("headers", "other framing", "one Host, and a Content-Length or chunks")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise _not_sent("Content-Length", repr(lengths[0]), "a number")
    length = None if codings else int(lengths[0]) if lengths else 0
    if isinstance(request.stream, httpx.ByteStream):
        size = sum(map(len, request.stream))
        if size != (length or 0):
            raise _not_sent("length of the body", f"{size} bytes", f"{length or 0}")
    lines += (b"", b"")
    return b"\r\n".join(lines), length


def _not_sent(what: str, got: str, expected: str) -> httpx.LocalProtocolError:
    return httpx.LocalProtocolError(f"request cannot be sent: {what}: got {got}, expected {expected}")
