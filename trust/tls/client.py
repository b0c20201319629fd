"""httpx over mutual TLS: errors that say who was refused and why, and connections that live no longer than their trust.

`AgentTransport` is for `httpx.AsyncClient` on asyncio or uvloop; threads have `trust.tls.threads`. Where another
library or event loop opens the connections, give it `client_context(...)`, for that is an `ssl.SSLContext`:

    httpx.AsyncClient(verify=client_context(source, bundles, authorize), trust_env=False)
    websockets.connect("wss://billing.fleet.example/", ssl=client_context(source, bundles, authorize))

There a refusal is that library's error. Some say in it that the connection was closed and no more: `on_refused` of the
context is then told why.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import httpx

from trust.authorize import Authorizer, exactly
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import ConfigurationError, NoPeerCertificate
from trust.identity import AgentID, PeerIdentity
from trust.tls.destinations import Destinations, Origin, Rules, WebPKI
from trust.tls.engine import PostQuantum, client_context
from trust.tls.http1 import request_head
from trust.tls.pool import Pool
from trust.tls.proxy import Proxy, Tunnel
from trust.tls.reach import Reach, connected, first
from trust.tls.sslobject import SslObject
from trust.tls.stream import TlsStream

if TYPE_CHECKING:
    import httpx2  # of an extra

# Before the next address of a host is tried beside the one that does not answer (RFC 8305 section 8).
NEXT_ADDRESS_SECONDS = 0.25

# For a new connection where the caller sets no time, as many do for the sake of event streams: who is silent in the
# handshake for longer will not become an agent.
MAX_CONNECT_SECONDS = 60.0


class AgentTransport(httpx.AsyncBaseTransport):
    """The transport for `httpx.AsyncClient(transport=...)`. HTTP/1.1; https only; nothing of the environment.

    The server's SPIFFE ID is verified and passes `authorize` before a byte of a request is sent. A request is sent
    twice in one case: it went out on a connection that had rested, that connection ended without a byte of an answer,
    and the request is one that may be repeated (RFC 9110 section 9.2.2) and can be: its body is no stream.

    Belongs to the event loop of its first request.

    Args:
        source, bundles, crls, post_quantum, clock: as for `client_context`; with None for `source` no certificate is
            presented.
        authorize: which agents may answer: one rule for every server, or one for each origin, as in
            `{"https://billing.fleet.example": exactly("spiffe://fleet.example/billing")}`. With these, a request to
            any other origin is refused, and an agent that is allowed at one of them is not at another. `WebPKI()` is
            the rule for a server outside any trust domain.
        proxy: `http://[user:password@]host:port` of a proxy that opens a way with CONNECT; TLS is with the agent.
        reach: which addresses may be connected to, where the URLs are others' (`trust.tls.webhooks`); None for any. Not
            with a proxy, which does the resolving.

    Attributes:
        context: for `reload()`. A rule that an origin has of its own stays as it is.

    Raises (from requests):
        PeerError: the server's certificate, by the check that refused it.
        HandshakeRefused: the server refused our certificate, or that we have none; the alert is named when there was
            one.
        HandshakeFailed: no TLS 1.3 on the other end.
        DestinationRefused: no rule for this origin. AddressRefused: it is out of `reach`.
        ConfigurationError: a URL that is not https; another event loop than asyncio's, or than before.
        httpx.TransportError: the network, as ever; `httpx.ProxyError` for what the proxy refuses;
            `httpx.LocalProtocolError` for a request that cannot be sent as it is.
    """

    def __init__(
        self,
        source: CredentialSource | None,
        bundles: BundleSource,
        authorize: Authorizer | Destinations,
        *,
        crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
        post_quantum: PostQuantum = "preferred",
        proxy: str | None = None,
        reach: Reach | None = None,
        clock: Clock = wall_clock,
    ) -> None:
        self._rules = Rules(authorize)
        if reach is not None and (proxy is not None or self._rules.web):
            raise ConfigurationError(
                "reach", got="a proxy or web servers beside it", expected="agents, without a proxy"
            )
        self._reach = reach
        if post_quantum == "required" and self._rules.web:  # their TLS is Python's, which cannot be told
            raise ConfigurationError(
                "post_quantum", got="web servers among the destinations", expected='"preferred", or agents only'
            )
        self._proxy = None if proxy is None else Proxy(proxy)
        self.context = client_context(
            source, bundles, self._rules.everybody, crls=crls, post_quantum=post_quantum, clock=clock
        )
        self.context.set_alpn_protocols(["http/1.1"])
        self._pool = Pool(self._connect)
        self._web = {origin: rule.transport(proxy) for origin, rule in self._rules.web.items()}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = self._rules.origin(request.url)
        if origin in self._web:
            return await self._web[origin].handle_async_request(request)
        head = request_head(request)  # one that cannot be sent should not cost a connection
        timeouts = request.extensions.get("timeout", {})
        connect, wait = timeouts.get("connect"), timeouts.get("pool")
        connection = await self._pool.acquire(origin, connect=connect, wait=wait)
        exchange = connection.exchange(request, head)
        try:
            return await exchange.run()
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            if not (connection.reused and exchange.repeatable()):
                raise
        connection = await self._pool.acquire(origin, connect=connect, wait=wait, fresh=True)
        return await connection.exchange(request, head).run()

    async def aclose(self) -> None:
        await self._pool.aclose()
        for transport in self._web.values():
            await transport.aclose()

    async def _connect(self, origin: Origin, seconds: float | None, live: set[TlsStream]) -> TlsStream:
        try:
            stream = TlsStream(self.context, origin[0], self._rules.own.get(origin), live)
        except UnicodeError:
            raise httpx.UnsupportedProtocol(f"{origin[0]} is not the name of a host") from None
        doing, seconds = "TCP connection", MAX_CONNECT_SECONDS if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                if self._reach is not None:
                    await _within(self._reach, origin, stream)
                elif self._proxy is None:
                    await _dial(origin, lambda: stream)
                else:
                    doing = "way through the proxy"
                    await _through(self._proxy, origin, stream)
                doing = "TLS handshake"
                await stream.handshake()
        except BaseException as error:  # a cancelled call, too
            stream.close()
            live.discard(stream)
            await asyncio.sleep(0)  # the loop closes a socket in its next turn, and may have no other
            if isinstance(error, TimeoutError) and error.errno is None:  # with a number it is TCP's own
                raise httpx.ConnectTimeout(f"{doing} took longer than {seconds} s") from None
            if isinstance(error, OSError):
                raise httpx.ConnectError(f"{doing} to {origin[0]}:{origin[1]} failed: {error}") from None
            raise
        return stream


def fetch_client(
    url: str, server: AgentID | None, *, source: CredentialSource, bundles: BundleSource, crls: RevocationSource
) -> httpx.AsyncClient:
    """A client for what is published at one https URL: by an agent, or by a server outside any trust domain.

    Args:
        url: of the configuration; a request to another origin is refused where an agent serves it.
        server: the agent, which gets our certificate; None for a server of the web's PKI, which gets none.
        source, bundles, crls: as for `client_context`.

    Raises:
        ConfigurationError: not an https URL, where an agent serves it; else the caller has seen to that.
    """
    transport: httpx.AsyncBaseTransport
    if server is None:
        transport = WebPKI().transport(None)
    else:
        origin = str(httpx.URL(url).copy_with(raw_path=b"/", fragment=None))
        transport = AgentTransport(source, bundles, {origin: exactly(str(server))}, crls=crls)
    return httpx.AsyncClient(transport=transport, trust_env=False)


def peer_of_response(response: httpx.Response | httpx2.Response) -> PeerIdentity:
    """Which agent answered: the verified peer of the connection that this response came over.

    It stays with the response. Whether the connection is there still, and its peer trusted still, is not asked.

    Raises:
        NoPeerCertificate: the response did not come over a connection of ours.
    """
    stream = response.extensions.get("network_stream")
    if isinstance(stream, TlsStream):
        peer = stream.peer
    else:  # another library's, over `client_context`
        tls = _tls_of(response)
        peer = None if tls is None else tls.peer
    if not isinstance(peer, PeerIdentity):
        raise NoPeerCertificate("response has no verified peer", expected="a client made with AgentTransport")
    return peer


def key_exchange_of_response(response: httpx.Response | httpx2.Response) -> str:
    """The key exchange of the connection that this response came over, such as "X25519MLKEM768"; empty for no TLS."""
    tls = _tls_of(response)
    return "" if tls is None else tls.group


def _tls_of(response: httpx.Response | httpx2.Response) -> SslObject | None:
    stream = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    return tls if isinstance(tls, SslObject) else None


P = TypeVar("P", bound=asyncio.Protocol)


async def _dial(address: Origin, protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    loop = asyncio.get_running_loop()
    # uvloop tries one address after the other. Where there is one only, nothing is raced for: a race that is cancelled
    # may forget the socket that has won (CPython's staggered_race).
    if not isinstance(loop, asyncio.BaseEventLoop) or _is_address(address[0]):
        return await loop.create_connection(protocol, *address)
    return await loop.create_connection(protocol, *address, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _within(reach: Reach, origin: Origin, stream: TlsStream) -> None:
    """TCP to one of the addresses that were judged."""
    host, port = origin
    plain = await first(await reach.addresses(host, port), lambda address: connected(address, port))
    await asyncio.get_running_loop().create_connection(lambda: stream, sock=plain)


async def _through(proxy: Proxy, origin: Origin, stream: TlsStream) -> None:
    """TCP to the proxy, its answer, and then `stream` on the way that it opened."""
    transport, tunnel = await _dial(proxy.address, lambda: Tunnel(proxy, origin, stream))
    try:
        await tunnel.opened()
    except BaseException:  # a cancelled call, too
        transport.abort()
        raise
