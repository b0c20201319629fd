"""Signed HTTP. The functions for one exchange are those of `trust.signing.exchange`; the edge for clients is here.

`MessageSigner` signs requests and verifies answers with the current credentials, the clock and fresh identifiers;
`SigningTransport` puts it around any `httpx` transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx

from trust.errors import (
    ConfigurationError,
    ResponseMismatch,
    ResponseNotSigned,
    ResponseTooLarge,
    SignatureMissing,
    StreamTruncated,
)
from trust.extension import HEADER as EXTENSIONS
from trust.extension import URI, named
from trust.identity import PeerIdentity
from trust.signing.envelope import VerifiedMessage
from trust.signing.events import is_event_stream
from trust.signing.exchange import (
    HEADER,
    RequestReference,
    SignedRequest,
    authenticate_request,
    content_type_of,
    reference_of,
    sign_request,
    sign_response,
    signature_of,
    verify_request,
    verify_response,
)
from trust.signing.signer import MessageSigner, new_message_id
from trust.signing.streams import StreamVerifier, named_event
from trust.signing.targets import target_uri

__all__ = [
    "HEADER",
    "MAX_RESPONSE_BYTES",
    "MessageSigner",
    "RequestReference",
    "SignedRequest",
    "SigningTransport",
    "VerifiedMessage",
    "authenticate_request",
    "content_type_of",
    "new_message_id",
    "reference_of",
    "sign_request",
    "sign_response",
    "signature_of",
    "target_uri",
    "verify_request",
    "verify_response",
]

MAX_RESPONSE_BYTES = 16 << 20  # held in memory until it is verified; a message with a large inline file


class SigningTransport(httpx.AsyncBaseTransport):
    """Signs every request of an `httpx.AsyncClient`, and lets no answer through that is not signed for it.

    Each request names the extension for signed messages in A2A-Extensions.

    The answer's bytes are verified as they came over the wire, before anything decodes or parses them, and handed on
    unchanged. Signed requests ask for `identity`, so that no proxy compresses the answer on its way. An answer larger
    than `MAX_RESPONSE_BYTES` is refused.

    Of an event stream, each event is verified before it is handed on, in one form (`signing.events`): without its
    signature, comments and `retry`. The answer is there with its first event, which binds its head. When the stream
    ends otherwise than by its signed end, the reader gets an error there. A read that was cancelled ends `httpx`'s own
    iterators without one: after it, close the stream, and take nothing for whole.

    Raises (from the client's calls, and from reading a stream):
        ResponseNotSigned: the answer has no signature; its status is in the message.
        StreamError: the stream, by what is wrong with it (`signing.streams`).
        SignatureError, PeerError: the answer's signature or signer, by the check that failed.
        ConfigurationError: the request cannot be signed; it was not sent.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, signer: MessageSigner) -> None:
        self._inner = inner
        self._signer = signer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        signed, response = await self._send(request, body)
        if response.status_code == 401 and _signed_by_another(signed, response):
            # Our certificate was renewed after the request was signed and before it found a connection. The server
            # knows the signer by the certificate of the connection, and cannot have verified it. It is signed and sent
            # once more, as the same message: whoever it was that answered, no server acts on both.
            await response.aclose()
            signed, response = await self._send(request, body, again=signed)
        return await self._trusted(request, signed, response)

    async def _send(
        self, request: httpx.Request, body: bytes, again: SignedRequest | None = None
    ) -> tuple[SignedRequest, httpx.Response]:
        if URI not in named(request.headers.raw):
            request.headers[EXTENSIONS] = ",".join([*request.headers.get_list(EXTENSIONS), URI])
        # From the raw parts: exactly what goes over the wire.
        url = request.url.scheme.encode() + b"://" + request.url.netloc + request.url.raw_path
        signed = self._signer.sign(
            method=request.method,
            url=url.decode("latin-1"),
            body=body,
            content_type=content_type_of(request.headers.raw, ConfigurationError),
            version=request.headers.get("a2a-version", ""),
            extensions=named(request.headers.raw),
            again=again,
        )
        request.headers[HEADER] = signed.jws  # replaces what a redirect or a retry brought along
        request.headers["accept-encoding"] = "identity"
        return signed, await self._inner.handle_async_request(request)

    async def _trusted(self, request: httpx.Request, signed: SignedRequest, response: httpx.Response) -> httpx.Response:
        headers, stream, content = response.headers, None, b""
        try:
            if (encoding := headers.get("content-encoding", "identity")) != "identity":
                # Decoding would give the caller other bytes than the signed ones, and more than the limits allow.
                raise ResponseMismatch("answer is encoded", got=encoding, expected="identity, as was asked for")
            content_type = content_type_of(headers.raw, ResponseMismatch)
            if is_event_stream(content_type) and request.method != "HEAD":  # whose answer has no events, only a head
                stream = await self._events(response, signed, content_type, named_event(request.headers.raw))
            else:
                content = await self._verified(response, signed, content_type)
        finally:
            if stream is None:
                await response.aclose()
        return httpx.Response(
            response.status_code,
            headers=_believed(headers, content),
            stream=stream or httpx.ByteStream(content),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _events(
        self, response: httpx.Response, signed: SignedRequest, content_type: str, resumes: str | None
    ) -> httpx.AsyncByteStream:
        events = self._signer.stream(
            request=signed,
            status=response.status_code,
            content_type=content_type,
            resumes=resumes,
            peer=_peer(response),
        )
        stream = _Events(response, self._signer, events)
        await stream.begin()
        return stream

    async def _verified(self, response: httpx.Response, signed: SignedRequest, content_type: str) -> bytes:
        try:
            jws = signature_of(response.headers.raw)
        except SignatureMissing:
            raise ResponseNotSigned(
                "answer is not signed",
                got=f"status {response.status_code}",
                expected=f"a {HEADER} header",
                do="look at the server's log: the request was not authentic (through a proxy that ends TLS, sign with "
                "chain=True), or known already, or its token was refused; or a proxy answered",
            ) from None
        content = bytearray()
        async for chunk in response.stream:  # type: ignore[union-attr]  # of an asynchronous transport
            content += chunk
            if len(content) > MAX_RESPONSE_BYTES:
                raise ResponseTooLarge("answer is too large to verify", expected=f"at most {MAX_RESPONSE_BYTES} bytes")
        message = self._signer.verify(
            jws,
            request=signed,
            status=response.status_code,
            body=bytes(content),
            peer=_peer(response),
            content_type=content_type,
        )
        return message.payload


def _believed(headers: httpx.Headers, content: bytes) -> list[tuple[bytes, bytes]]:
    """Without the word that the token will not do, where only a header says it, which nobody has signed.

    Whoever hears it asks again with another token; a proxy must not make them do so for a call that was executed.
    """
    unsigned = [word for word in (b"invalid_token", b"insufficient_user_authentication") if word not in content]
    return [
        (name, value)
        for name, value in headers.raw
        if name.lower() != b"www-authenticate" or not any(word in value.lower() for word in unsigned)
    ]


class _Events(httpx.AsyncByteStream):
    """The verified events of an answer, each when it is read."""

    def __init__(self, response: httpx.Response, signer: MessageSigner, events: StreamVerifier) -> None:
        self._response = response
        self._signer = signer
        self._events = events
        self._chunks = aiter(response.stream)  # type: ignore[arg-type]  # of an asynchronous transport
        self._texts: Iterator[bytes] = iter(())
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Wait for the first event, or for the end: the head is not believed before."""
        self._first = await self._next()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        text, self._first = self._first, b""  # whoever reads again after an error gets that again, and no end
        while text is not None:
            if text:
                yield text
            text = await self._next()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def _next(self) -> bytes | None:
        while True:
            for text in self._texts:
                return text
            try:
                chunk = await anext(self._chunks)
            except (StopAsyncIteration, httpx.NetworkError, httpx.ProtocolError) as end:
                # How the connection ends says nothing, for anybody on the way can end it; the signed end does.
                try:
                    self._events.finish()
                except StreamTruncated as cut:
                    raise cut from end if isinstance(end, httpx.TransportError) else None
                return None
            await asyncio.sleep(0)  # whoever sends without a pause must not keep everybody else from running
            self._texts = self._signer.read(self._events, chunk)


def _peer(response: httpx.Response) -> PeerIdentity | None:
    """The other end of the connection that the answer came from, where the transport below is one of `trust.tls`."""
    stream = response.extensions.get("network_stream")
    # Those of `trust.tls` keep it; a TLS object forgets its peer when the connection fails.
    kept = stream.get_extra_info("peer") if stream is not None else None
    peer = kept or getattr(_connection(response), "peer", None)
    return peer if isinstance(peer, PeerIdentity) else None


def _signed_by_another(signed: SignedRequest, response: httpx.Response) -> bool:
    """Whether the connection presented another certificate than the one whose key signed the request."""
    presented = getattr(_connection(response), "presented", None)
    return isinstance(presented, str) and presented != signed.signer


def _connection(response: httpx.Response) -> object:
    stream = response.extensions.get("network_stream")
    return stream.get_extra_info("ssl_object") if stream is not None else None
