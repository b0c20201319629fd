"""A way through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6), and then TLS with the agent from end to end.

The proxy learns the agent's host and port. It sees no certificate of ours, and what it says of the agent is not
believed: the agent proves itself inside.
"""

from __future__ import annotations

import asyncio
import base64
from typing import cast

import httpx

from trust.errors import ConfigurationError
from trust.tls.answer import Answer
from trust.tls.destinations import Origin, origin_of


class Proxy:
    """The proxy of a client.

    Args:
        url: `http://host:port`, with `user:password@` where the proxy asks for them (RFC 7617).

    Raises:
        ConfigurationError: anything else. TLS to the proxy itself, and SOCKS, are not supported.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            self._url = httpx.URL("")
        if self._url.scheme != "http" or not self._url.host or self._url.raw_path != b"/":
            # The URL is not repeated: it may hold a password.
            raise ConfigurationError("proxy", got=f"{self._url.scheme or 'no URL'}", expected="http://host:port")
        self.address = origin_of(self._url, 80)

    def __repr__(self) -> str:
        return f"Proxy({self.address[0]}:{self.address[1]})"

    def request(self, origin: Origin) -> bytes:
        """What asks for the way to `origin`."""
        host, port = origin
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._url.userinfo:
            pair = base64.b64encode(f"{self._url.username}:{self._url.password}".encode()).decode("ascii")
            lines.append(f"Proxy-Authorization: Basic {pair}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")


class Tunnel(asyncio.Protocol):
    """Asks for the way to `origin` on a connection to the proxy. Nothing but the proxy's answer may come before TLS.

    Args:
        inner: takes the connection over as soon as the way is open.
    """

    def __init__(self, proxy: Proxy, origin: Origin, inner: asyncio.Protocol) -> None:
        self._proxy = proxy
        self._origin = origin
        self._inner = inner
        self._answer = Answer("CONNECT")
        self._transport: asyncio.Transport
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._proxy.request(self._origin))

    async def opened(self) -> None:
        """Returns when the way is open.

        Raises:
            httpx.ProxyError: the proxy refused, or speaks no HTTP.
        """
        await self._opened

    def data_received(self, data: bytes) -> None:
        try:
            self._answer.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(f"proxy gave no answer: {error}")
            return
        if self._answer.head:
            self._answered()

    def eof_received(self) -> None:
        self._fail("proxy ended the connection before it answered")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("proxy ended the connection before it answered")

    def _answered(self) -> None:
        status = self._answer.status
        host, port = self._origin
        if not 200 <= status < 300:
            reason = {
                407: "give user and password in the proxy's URL",
                403: "let the proxy allow this host and port",
            }.get(status, "look at the proxy's log")
            self._fail(f"proxy refused the way to {host}:{port}: got {status}, expected 200; {reason}")
        elif self._answer.behind:
            self._fail(f"proxy sent more than its answer: got bytes behind status {status}, expected TLS to begin")
        elif not self._opened.done():
            self._transport.set_protocol(self._inner)
            self._inner.connection_made(self._transport)
            self._opened.set_result(None)

    def _fail(self, why: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(httpx.ProxyError(why))
            self._transport.abort()
