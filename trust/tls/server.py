"""uvicorn over mutual TLS: the application finds the verified peer of its connection in the ASGI scope.

HTTP/1.1 is read by uvicorn's own protocols, within bounds of ours (`trust.tls.protocols`); HTTP/2, where it is wanted,
by `trust.tls.http2`. One port speaks both, as TLS agrees with each client (ALPN).

Why no other server:

- hypercorn can be given a verified connection, but its HTTP/2 cannot be made safe from outside: `trust.tls.http2` says
  what happens. And nothing of it bounds a handshake, a body or a connection's life.
- granian does TLS and HTTP outside of Python, from files that it reads when it starts: no SPIFFE ID is judged in the
  handshake, no list, bundle or key is followed, and the application does not see the certificate.
- uvicorn's own HTTP/2 takes another protocol class than the one it is given, and bounds neither resets nor the calls of
  the application that they leave behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import uvicorn

from trust.audit import AuditSink
from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.credentials import CredentialSource
from trust.errors import ConfigurationError, TransportError, TrustError
from trust.seldom import Seldom
from trust.tls.engine import Address, ClientCertificates, PostQuantum, Refused, TrustContext, server_context, written
from trust.tls.forwarded import Forwarded
from trust.tls.protocols import MAX_HEAD_BYTES, App, answering, bounded, ending, identified, timed
from trust.tls.register import Limits, Register
from trust.tls.transport import Deadlines, TlsProtocol

logger = logging.getLogger("a2a_trust.tls")

MAX_MESSAGE_BYTES = 1 << 20  # of a WebSocket; each connection may hold one that the application has not taken

# What decides about TLS or about who is calling is not uvicorn's to set: it would be ignored, or worse, obeyed.
_REFUSED_OPTIONS = ("proxy_headers", "forwarded_allow_ips", "workers", "reload")


class TrustConfig(uvicorn.Config):
    """A `uvicorn.Config` whose connections are mutual TLS by `context`; call `context.reload()` at any time.

    Made by `uvicorn_config`. uvicorn itself listens for plain TCP: TLS is done by the protocol that it is given, and
    nothing of HTTP is parsed before the peer is verified.
    """

    def __init__(
        self,
        app: App,
        *,
        context: TrustContext,
        deadlines: Deadlines,
        limits: Limits,
        audit: AuditSink | None = None,
        speaks_http2: bool = False,
        **options: Any,
    ) -> None:
        self.context = context
        self._speaks_http2 = speaks_http2
        self._audit = audit
        self._deadlines = deadlines
        self._register = Register(limits, deadlines.trust_check)
        super().__init__(app, proxy_headers=False, forwarded_allow_ips=[], workers=1, **options)

    def load(self) -> None:
        super().load()
        self.loaded_app = Forwarded(self.loaded_app, context=self.context, audit=self._audit)
        protocol = self.http_protocol_class
        if self.ws_protocol_class is not None:
            self.ws_protocol_class = answering(identified(self.ws_protocol_class))
        if not hasattr(protocol, "handle_websocket_upgrade") or not hasattr(protocol, "shutdown"):
            raise ConfigurationError("http", got=protocol.__name__, expected='"h11", "httptools" or "auto"')
        if hasattr(protocol, "on_headers_complete"):
            protocol = bounded(protocol)
        protocols: dict[str | None, Callable[..., asyncio.Protocol]] = {}
        if self._speaks_http2:
            protocols["h2"] = functools.partial(identified(_http2()), deadlines=self._deadlines)
        self.http_protocol_class = functools.partial(  # type: ignore[assignment]
            _accept,
            timed(ending(identified(protocol)), self._deadlines),
            protocols,
            self.context,
            self._register,
            self._deadlines,
        )


def uvicorn_config(
    app: App,
    *,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    host: str = "127.0.0.1",
    port: int = 0,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    client_certificates: ClientCertificates = "required",
    post_quantum: PostQuantum = "preferred",
    http2: bool = False,
    proxies: Authorizer | None = None,
    audit: AuditSink | None = None,
    on_refused: Refused | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - immutable
    limits: Limits = Limits(),  # noqa: B008 - immutable
    **options: Any,
) -> TrustConfig:
    """The configuration of a uvicorn server that only verified agents reach: `uvicorn.Server(config).run()`.

    The peer stands in `scope["extensions"][trust.identity.PEER_EXTENSION]`, and in `scope["extensions"]["tls"]` as
    ASGI's TLS extension has it; the name of the key exchange stands under `trust.identity.GROUP_EXTENSION`. None of it
    can come from the wire. X-Forwarded-* headers are not believed.

    Not done: authorisation of single requests; that is `trust.gate`.

    Args:
        app: the ASGI application.
        source, bundles, authorize, crls, client_certificates, post_quantum: as for `server_context`.
        http2: whether clients that want HTTP/2 get it, on the same port; see `trust.tls.http2`. It needs the extra
            "http2". A WebSocket still comes over HTTP/1.1.
        proxies: agents that end TLS in front of this server. Their requests are those of the clients whose certificates
            they forward; see `trust.tls.forwarded`. None: nobody may say whose request it is.
        host, port: where to listen; port 0 picks a free one.
        audit: gets an event "handshake" where one is refused, "connection" where one that was open breaks, and
            "request" where a proxy's, or about one, is refused. Of the first two there are sixty a minute for each
            check, so that no stranger fills a disk; the next one says how many were `omitted`.
        on_refused: called with the error and the client's address for each of the first two.
        deadlines: how long a client may take. A server that stops waits as long as `grace` for the requests in flight;
            event streams it cuts.
        limits: how many connections there may be at once.
        options: further ones of `uvicorn.Config`. Without `ws_max_size` and `ws_per_message_deflate`, a message of a
            WebSocket has 1 MiB at most, and is not compressed.

    Raises:
        ConfigurationError: an option that is not uvicorn's to decide, credentials that cannot be used, or HTTP/2
            without its library.
    """
    if http2:
        _http2()
    for name in options:
        if name.startswith("ssl_") or name in _REFUSED_OPTIONS:
            raise ConfigurationError(
                "uvicorn option",
                got=name,
                expected="none that decides about TLS or the peer",
                do="call trust.serve_workers for several processes" if name == "workers" else "leave it out",
            )
    context = server_context(
        source,
        bundles,
        authorize,
        crls=crls,
        client_certificates=client_certificates,
        post_quantum=post_quantum,
        proxies=proxies,
        on_refused=_Refusals(audit, on_refused),
    )
    if http2:
        context.set_alpn_protocols(("h2", "http/1.1"))
    defaults: dict[str, Any] = {
        "server_header": False,
        "access_log": False,
        "log_level": "warning",
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,  # 16 KiB on the wire would be 16 MiB here
        "timeout_graceful_shutdown": deadlines.grace,
    }
    return TrustConfig(
        app,
        context=context,
        deadlines=deadlines,
        limits=limits,
        audit=audit,
        speaks_http2=http2,
        host=host,
        port=port,
        **{**defaults, **options},
    )


def serve(
    app: App,
    *,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    host: str = "127.0.0.1",
    port: int = 8443,
    **options: Any,
) -> None:
    """Serve `app` until the process is told to stop; say on stderr where. Arguments and errors as `serving`."""
    config = uvicorn_config(app, source=source, bundles=bundles, authorize=authorize, host=host, port=port, **options)
    with contextlib.ExitStack() as stack:
        sockets = listen(config.host, config.port, stack)
        sys.stderr.write(f"serving {source.current().agent_id} on {url_of(sockets[0])}\n")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and says it once more
            uvicorn.Server(config).run(sockets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server that runs in the caller's event loop."""

    url: str  # https://address:port, the ones that are really listened on
    context: TrustContext  # for `reload()`


@contextlib.asynccontextmanager
async def serving(
    app: App,
    *,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    sockets: list[socket.socket] | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    """Serve `app` in this event loop for as long as the block runs.

    Args:
        sockets: bound sockets to listen on, instead of host and port.
        options: further arguments of `uvicorn_config`.

    Raises:
        ConfigurationError: as `uvicorn_config`; or the address is taken, or the application does not start.
    """
    config = uvicorn_config(app, source=source, bundles=bundles, authorize=authorize, **options)
    with contextlib.ExitStack() as stack:
        if sockets is None:
            sockets = listen(config.host, config.port, stack)
        for listening in sockets:
            stack.callback(listening.close)
        url = url_of(sockets[0])
        server = _Server(config)
        task = asyncio.ensure_future(_run(server, sockets))
        try:
            while not server.started:
                if task.done():
                    await task
                await asyncio.sleep(0.005)
            yield Serving(url=url, context=config.context)
        finally:
            server.should_exit = True
            if not task.done():
                await task


def listen(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """One socket, for as long as the stack is open.

    Raises:
        ConfigurationError: the address is taken, or is not of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [stack.enter_context(socket.create_server((host, port), family=family))]
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}", got=error.strerror, do="choose another --port or host"
        ) from None


def url_of(listening: socket.socket) -> str:
    """Where it listens."""
    host, port = listening.getsockname()[:2]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


async def _run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    try:
        await server.serve(sockets)
    except SystemExit:  # uvicorn would end the process
        raise ConfigurationError("server did not start", do="see the log of uvicorn") from None


class _Server(uvicorn.Server):
    """Leaves the signals of the process alone: the loop is not ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class _Refusals:
    """Tells of each connection that failed, and records it in the trail: of one kind no more than so many a minute.

    What one flood is recorded by hides nothing else: each check has lines of its own.
    """

    def __init__(self, audit: AuditSink | None, on_refused: Refused | None) -> None:
        self._audit = audit
        self._on_refused = on_refused
        self._seldom: dict[tuple[str, str], Seldom] = {}  # by event and check, of which there are few

    def __call__(self, error: TrustError, address: Address) -> None:
        if self._audit is not None:
            try:
                self._record(self._audit, error, address)
            except Exception:  # it stays refused, and the connection is to be ended
                logger.exception("a refused connection could not be recorded")
        if self._on_refused is not None:
            self._on_refused(error, address)

    def _record(self, audit: AuditSink, error: TrustError, address: Address) -> None:
        # The others of its kind are about a handshake: it failed, the peer refused us in it, or there is no place.
        event = "connection" if type(error) is TransportError else "handshake"
        seldom = self._seldom.setdefault((event, error.check), Seldom())
        if not seldom.says():
            return
        omitted: dict[str, Any] = {"omitted": count} if (count := seldom.missed()) else {}
        audit.record(
            event=event,
            decision="deny",
            check=error.check,
            peer=written(address),
            claimed=error.claimed,
            reason=str(error),
            **omitted,
        )


def _http2() -> Any:
    try:
        from trust.tls.http2 import Http2
    except ImportError:
        raise ConfigurationError(
            "HTTP/2", got="no library for it", expected="h2", do="install the extra: a2a-trust[http2]"
        ) from None
    return Http2


def _accept(
    http1: Callable[..., asyncio.Protocol],
    others: dict[str | None, Callable[..., asyncio.Protocol]],
    context: TrustContext,
    register: Register,
    deadlines: Deadlines,
    *,
    server_state: Any,
    _loop: asyncio.AbstractEventLoop | None = None,
    **arguments: Any,
) -> TlsProtocol:
    """What uvicorn calls for each accepted connection."""
    loop = _loop or asyncio.get_running_loop()
    return TlsProtocol(
        context,
        lambda agreed: others.get(agreed, http1)(server_state=server_state, _loop=loop, **arguments),
        live=server_state.connections,
        register=register,
        loop=loop,
        deadlines=deadlines,
    )
