"""To servers that others name: a webhook gets what it is sent, and whoever named it learns nothing about our network.

Of an answer only the status is handed on. Nobody has signed the rest, and a server inside that was reached after all
should not speak to the one who named it. No redirect is followed, and nothing of the environment is used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, Collection, Iterable
from typing import Any

import httpcore
import httpx

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import AddressRefused, ConfigurationError, DestinationRefused
from trust.tls.client import AgentTransport
from trust.tls.destinations import Destinations, Origin, WebPKI, destination, origin_of
from trust.tls.pool import IDLE_SECONDS, MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS
from trust.tls.reach import Reach, first

DELIVERY_SECONDS = 20.0  # from resolving the name to the end of the answer: a2a-sdk holds up the task meanwhile
MAX_ANSWER_BYTES = 64 * 1024  # that are read for the sake of the connection; what is longer ends it
PART_BYTES = 1024  # that a part of an answer, or a read, counts for at least: one byte is as much work
MAX_WIRE_BYTES = MAX_ANSWER_BYTES + 32 * 1024  # of a web server's answer with its head, and the interim ones before it
READ_BYTES = 4096  # at once; between two reads others have their turn


class WebhookTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=...)`: to the servers that the configuration names, and to those that it allows.

    NOT covered: how many interim answers (1xx) a web server of `known` sends; for 20 seconds it can keep us busy.

    Args:
        source, bundles, crls, clock: as for `AgentTransport`.
        known: the rule of each origin that the configuration names. These may be at any address and port.
        others: the rule of every other origin: an authorizer for agents, `WebPKI()` for web servers, which get no
            certificate of ours; None refuses them. These must be at public addresses.
        networks: addresses that are not public where `others` may be nevertheless, such as "10.8.0.0/16".
        ports: at which `others` must be.

    Raises:
        ConfigurationError: an argument; or nothing can be reached.

    Raises (from requests):
        DestinationRefused: no rule for this origin.
        AddressRefused: not https; or an address or port that is not allowed, whatever the name.
        PeerError, HandshakeRefused, HandshakeFailed: as `AgentTransport`.
        httpx.TransportError: the network, a certificate of a web server, or no answer within 20 seconds.
    """

    def __init__(
        self,
        source: CredentialSource,
        bundles: BundleSource,
        *,
        known: Destinations,
        others: Authorizer | WebPKI | None,
        networks: Collection[str] = (),
        ports: Collection[int] = (443,),
        crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
        clock: Clock = wall_clock,
    ) -> None:
        if not known and others is None:
            raise ConfigurationError("webhooks", expected="at least one origin, or a rule for all of them")
        self._known: dict[Origin, httpx.AsyncBaseTransport] = {}
        self._others: httpx.AsyncBaseTransport | None = None
        self._reach = Reach(networks, ports)
        if all(isinstance(rule, WebPKI) for rule in known.values()):  # `AgentTransport` wants at least one agent
            for text, rule in known.items():
                if destination(text) in self._known:
                    raise ConfigurationError("webhook is there twice", got=text)
                self._known[destination(text)] = rule.transport(None)  # type: ignore[union-attr]  # as `all` has found
        else:
            agents = AgentTransport(source, bundles, known, crls=crls, clock=clock)
            self._known = dict.fromkeys(map(destination, known), agents)
        if isinstance(others, WebPKI):
            self._others = _WebTransport(others, self._reach)
        elif others is not None:
            self._others = AgentTransport(source, bundles, others, crls=crls, reach=self._reach, clock=clock)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme != "https":
            raise AddressRefused("webhook is not protected", got=request.url.scheme, expected="https")
        origin = origin_of(request.url)
        transport = self._known.get(origin, self._others)
        if transport is None:
            raise DestinationRefused(
                "no rule for this webhook", got=f"{origin[0]}:{origin[1]}", do="name its origin, or give a rule for all"
            )
        try:
            async with asyncio.timeout(DELIVERY_SECONDS):
                response = await transport.handle_async_request(request)
                try:
                    await _read_over(response.stream)  # type: ignore[arg-type]  # of an asynchronous transport
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx.ReadTimeout(f"webhook did not answer within {DELIVERY_SECONDS:g} s") from None
        return httpx.Response(response.status_code)

    async def aclose(self) -> None:
        for transport in {*self._known.values(), *([self._others] if self._others else [])}:
            await transport.aclose()
        self._reach.close()


class _WebTransport(httpx.AsyncBaseTransport):
    """To web servers within reach. httpx offers no way to say how its transport connects; httpcore, below it, does."""

    def __init__(self, rule: WebPKI, reach: Reach) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=rule.context(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Within(reach),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            async with self._pool.stream(
                method=request.method,
                url=target,
                headers=request.headers.raw,
                content=request.stream,  # type: ignore[arg-type]  # of an asynchronous client
                extensions=request.extensions,
            ) as response:
                await _read_over(response.aiter_stream())
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise getattr(httpx, type(error).__name__)(str(error)) from None
        return httpx.Response(response.status)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Within(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were judged. The name stays what TLS asks the server to prove."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._reach.addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from None
        return _Bounded(await first(addresses, lambda address: self._plain.connect_tcp(address, port, timeout)))


class _Bounded(httpcore.AsyncNetworkStream):
    """A connection on which so much can be read after a write. httpcore reads interim answers (1xx) without an end."""

    def __init__(self, plain: httpcore.AsyncNetworkStream) -> None:
        self._plain = plain
        self._left = MAX_WIRE_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        await asyncio.sleep(0)  # TLS does not wait for what it has already
        data = await self._plain.read(min(max_bytes, READ_BYTES), timeout)
        self._left -= max(len(data), PART_BYTES)
        if self._left < 0:
            raise httpcore.ReadError(f"answer of more than {MAX_WIRE_BYTES} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        self._left = MAX_WIRE_BYTES  # nothing is written but requests
        await self._plain.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._plain.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        return _Bounded(await self._plain.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


async def _read_over(body: AsyncIterable[bytes]) -> None:
    """Read an answer that is not looked at; no more than is reasonable."""
    size = 0
    async for part in body:
        size += max(len(part), PART_BYTES)
        if size > MAX_ANSWER_BYTES:
            return
