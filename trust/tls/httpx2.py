"""The async transports and token sources, for httpx2: the same connections, checks and errors of ours.

httpx2 continues httpx under names of its own, so neither takes the other's requests, answers and errors. Each is
turned into its twin here; the bytes of a body are handed on as they come. `trust.httpx2_agent_client` is the short way.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any

import httpx
import httpx2

from trust.errors import ConfigurationError
from trust.tls.destinations import url_of


class Httpx2Transport(httpx2.AsyncBaseTransport):
    """An async transport of httpx, such as `AgentTransport`, for `httpx2.AsyncClient(transport=...)`.

    `peer_of_response` and `key_exchange_of_response` know its answers.

    Args:
        inner: closed with this one.

    Raises (from requests):
        TrustError: what `inner` raises.
        httpx2.TransportError: the twin, by its name, of what `inner` raises of httpx, with that as its cause.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(_asked(request))
        except httpx.TransportError as error:
            raise _twin(error) from error
        return httpx2.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class Httpx2Auth(httpx2.Auth):
    """A token source for `httpx2.AsyncClient(auth=...)`, or for `auth=` of one request. Async clients only.

    Args:
        tokens: a `TokenSource`, or its `on_behalf_of`. It sees the head of an answer and not its body.

    Raises (from requests):
        What `tokens` raises; ConfigurationError from an `httpx2.Client`.
    """

    def __init__(self, tokens: httpx.Auth) -> None:
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        async with contextlib.aclosing(self._tokens.async_auth_flow(_asked(request))) as flow:
            sent = await anext(flow)
            while True:
                request.headers = httpx2.Headers(sent.headers.raw)
                response = yield request
                answered = _asked(response.request)  # after a redirect another than was asked
                answer = httpx.Response(response.status_code, headers=response.headers.raw, request=answered)
                try:
                    sent = await flow.asend(answer)
                except StopAsyncIteration:
                    return

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        raise ConfigurationError("token source in a synchronous client", expected="httpx2.AsyncClient")


class _Body(httpx2.AsyncByteStream):
    def __init__(self, content: Any) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._content:
                yield part
        except httpx.TransportError as error:
            raise _twin(error) from error

    async def aclose(self) -> None:
        await self._content.aclose()


def _asked(request: httpx2.Request) -> httpx.Request:
    stream: Any = request.stream
    if isinstance(stream, httpx2.ByteStream):
        stream = httpx.ByteStream(b"".join(stream))  # what can be sent again is known by its type
    url = url_of(str(request.url))
    return httpx.Request(request.method, url, headers=request.headers.raw, stream=stream, extensions=request.extensions)


def _twin(error: Exception) -> Exception:
    names = (kind.__name__ for kind in type(error).__mro__)
    kind: type[Exception] = next(getattr(httpx2, name) for name in names if hasattr(httpx2, name))
    return kind(str(error))
