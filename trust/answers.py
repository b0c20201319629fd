"""An answer on its way out, for as long as its caller may have it.

To a signed request it goes out whole, so that its head can carry the signature, or event by event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import NamedTuple, TypedDict

from starlette.types import Message, Scope, Send

from trust.clock import Clock
from trust.credentials import Credentials, CredentialSource
from trust.errors import ConfigurationError, ResponseTooLarge, StreamNotSigned, TrustError
from trust.extension import echoed
from trust.identity import PRESENTED_EXTENSION, peer_of
from trust.signing.envelope import VerifiedMessage
from trust.signing.events import is_event_stream
from trust.signing.http import HEADER, MAX_RESPONSE_BYTES, RequestReference, content_type_of, new_message_id
from trust.signing.streams import StreamSigner

Signed = VerifiedMessage | RequestReference
Headers = list[tuple[bytes, bytes]]

CHECK_SECONDS = 1.0  # between two questions of one stream

_NOT_OF_A_STREAM = (b"content-length", HEADER.lower().encode())


class _Facts(TypedDict):
    credentials: Credentials
    chain: bool
    now: datetime


def presented_to(scope: Scope, request: Signed) -> str | None:
    """Which certificate of ours whoever asked knows from the connection, by its thumbprint; it may be renewed since.

    Empty for an agent behind a proxy that ends TLS: its request is signed by another certificate than the connection's.
    None where the server does not say.
    """
    peer = peer_of(scope)
    if isinstance(request, VerifiedMessage) and peer is not None and request.header["x5t#S256"] != peer.thumbprint:
        return ""
    presented: str | None = (scope.get("extensions") or {}).get(PRESENTED_EXTENSION)
    return presented


class WhileAllowed:
    """An ASGI `send` that asks again, while a long answer goes out, whether its caller may have the rest.

    What begins and ends with one message of a body goes out; so does a stream, for `CHECK_SECONDS` without a question.
    While it is asked, everybody waits who sends. Once `check` has refused, nothing is sent any more, and the server
    cuts the stream.

    Args:
        check: raises a TrustError where the caller may have no more. With any other error there was no answer: whoever
            sends gets that, and the next message is asked for again.
        denied: is told so, once.

    Attributes:
        refused: what `check` has raised.
    """

    def __init__(self, send: Send, check: Callable[[], Awaitable[None]], denied: Callable[[TrustError], None]) -> None:
        self.refused: TrustError | None = None
        self._send = send
        self._check = check
        self._denied = denied
        self._begun = False
        self._next = time.monotonic() + CHECK_SECONDS

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            is_whole = not (self._begun or message.get("more_body", False))
            if not is_whole and self.refused is None and time.monotonic() >= self._next:
                await self._ask()
            self._begun = True
        if self.refused is not None:
            raise self.refused
        await self._send(message)

    async def _ask(self) -> None:
        try:
            await self._check()
        except TrustError as error:
            if self.refused is None:  # of several that asked at once, the first
                self._denied(error)  # before it counts as told: a trail that fails is the sender's to hear of
                self.refused = error
        else:
            # Only now: who is cancelled while it waits has not asked, and nobody goes past one who waits.
            self._next = time.monotonic() + CHECK_SECONDS


def echoing(request: Collection[tuple[bytes, bytes]], send: Send) -> Send:
    """An ASGI `send` that names the extension as activated, in an answer to a signed request that named it.

    Args:
        request: the headers of the request.
    """

    async def send_echoing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": echoed(message.get("headers", ()), request)}
        await send(message)

    return send_echoing


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Collected:
    """Takes the application's answer, so that it can be signed before its head is sent; event streams apart.

    Args:
        deliver: sends the whole answer.
        stream: makes what sends an event stream.
        streams: False where the answer has no body.
    """

    def __init__(
        self, deliver: Callable[[Answer], Awaitable[None]], stream: Callable[[], SignedStream], *, streams: bool
    ) -> None:
        self.sent = False
        self._deliver = deliver
        self._make_stream = stream
        self._streams = streams
        self._stream: SignedStream | None = None
        self._status = 500
        self._headers: Headers = []
        self._body = bytearray()

    @property
    def streaming(self) -> bool:
        """Whether the head of a stream has gone out, so that there is no other answer any more."""
        return self._stream is not None

    async def send(self, message: Message) -> None:
        if self.sent:
            return  # what comes after the end of an answer is no part of it
        more = message.get("more_body", False)
        if message["type"] == "http.response.start":
            if self._stream is not None:  # another signer would begin another stream under the same head
                raise ConfigurationError("application answers twice", expected="one http.response.start")
            self._status = message["status"]
            self._headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
            content_type = content_type_of(self._headers, ConfigurationError)  # several, or none at all: not signed
            if self._streams and is_event_stream(content_type):
                stream = self._make_stream()
                head = stream.head(self._status, self._headers, content_type)
                self._stream = stream
                await stream.send(head)
        elif message["type"] != "http.response.body":
            raise ConfigurationError("answer cannot be signed", got=message["type"], expected="a head and a body")
        elif self._stream is not None:
            await self._stream.go_on(message.get("body", b""))
            self.sent = not more
        else:
            self._body += message.get("body", b"")
            if len(self._body) > MAX_RESPONSE_BYTES:
                raise ResponseTooLarge("answer is too large to sign", expected=f"at most {MAX_RESPONSE_BYTES} bytes")
            if not more:
                self.sent = True
                await self._deliver(Answer(self._status, self._headers, bytes(self._body)))

    async def end(self) -> None:
        """To be called when the application has returned: only then is the end of a stream known to be its own.

        Some middleware ends the body first, and raises the error of the application that it holds afterwards.
        """
        if self._stream is not None and self.sent:
            await self._stream.end()


class SignedStream:
    """Sends an event stream as the application makes it, each event signed (`trust.signing.streams`).

    Args:
        request: what the stream answers.
        resumes: `named_event` of the request.
        presented: `presented_to` whoever asked; where it is another than ours, that has to come along.
    """

    def __init__(
        self,
        send: Send,
        *,
        request: Signed,
        resumes: str | None,
        source: CredentialSource,
        presented: str | None,
        clock: Clock,
    ) -> None:
        self.send = send
        self._request = request
        self._resumes = resumes
        self._source = source
        self._presented = presented
        self._clock = clock
        self._order = asyncio.Lock()  # a keepalive of another task must not come between two signed events
        self._signer: StreamSigner

    def head(self, status: int, headers: Headers, content_type: str) -> Message:
        """What to send first.

        Raises:
            StreamNotSigned: events of such a stream cannot be signed.
        """
        encodings = [value for name, value in headers if name.lower() == b"content-encoding"]
        if encodings not in ([], [b"identity"]):
            raise StreamNotSigned("event stream is encoded", got=encodings, expected="identity", do="compress none")
        self._signer = StreamSigner(
            request=self._request,
            status=status,
            content_type=content_type,
            stream_id=new_message_id(),
            resumes=self._resumes,
        )
        headers = [(name, value) for name, value in headers if name.lower() not in _NOT_OF_A_STREAM]
        return {"type": "http.response.start", "status": status, "headers": headers}

    async def go_on(self, body: bytes) -> None:
        async with self._order:
            if text := self._signer.sign(body, **self._facts()):
                await self.send({"type": "http.response.body", "body": text, "more_body": True})

    async def end(self) -> None:
        async with self._order:
            await self.send({"type": "http.response.body", "body": self._signer.end(**self._facts())})

    def _facts(self) -> _Facts:
        credentials = self._source.current()
        chain = self._presented not in (None, credentials.thumbprint)
        return {"credentials": credentials, "chain": chain, "now": self._clock()}
