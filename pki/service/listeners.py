"""Sockets, and a uvicorn server on each of them: with the agents' TLS, with ordinary TLS, or with none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from pki.service.door import Door
from trust.credentials import read_bounded
from trust.errors import ConfigurationError
from trust.tls import Deadlines
from trust.tls.protocols import MAX_HEAD_BYTES, bounded, timed

MAX_CONNECTIONS = 4000  # of all listeners of a process; agents ask something every few minutes, and hang up
GRACE_SECONDS = 30  # for requests in flight, when the service stops

OPTIONS: dict[str, Any] = {
    "lifespan": "off",
    "ws": "none",
    "timeout_graceful_shutdown": GRACE_SECONDS,
}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        ConfigurationError: the address is taken, or is none of ours.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}",
            got=(error.strerror or "").partition(" (while")[0],  # Python repeats the address there
            do="choose another port or host",
        ) from None


def url_of(listening: socket.socket, scheme: str) -> str:
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class BoundedConfig(uvicorn.Config):
    """A `uvicorn.Config` without TLS, or with the ordinary one, under the limits and deadlines of `trust.tls`."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(
            app,
            proxy_headers=False,
            forwarded_allow_ips=[],
            server_header=False,
            access_log=False,
            log_level="warning",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            **OPTIONS,
            **options,
        )

    def load(self) -> None:
        super().load()
        protocol = self.http_protocol_class
        if hasattr(protocol, "on_headers_complete"):
            protocol = bounded(protocol)
        deadlines = Deadlines()
        self.http_protocol_class = _taken(timed(protocol, deadlines), deadlines.stall)


def _taken(protocol: Any, stall: float) -> Any:
    """An HTTP protocol class of uvicorn that cuts off a client who takes nothing of what it has asked for.

    What is written for it waits in memory, and a transport that is closed waits for that too: both without an end.
    """

    class Taken(protocol):  # type: ignore[misc]  # whichever class uvicorn has chosen
        _timer: asyncio.TimerHandle | None = None
        _waiting: int | None = None  # bytes at the last look, if nothing is written behind them
        _answered: Any = None  # the request that is answered; `cycle` is the newest that was read

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(stall, self.look)

        def look(self) -> None:
            waiting = None
            if self.flow.write_paused or self.transport.is_closing():
                waiting = self.transport.get_write_buffer_size()
                if self._waiting is not None and waiting >= self._waiting:
                    self.transport.abort()
                    return
            self._waiting = waiting
            self._timer = self.loop.call_later(stall, self.look)

        def resume_writing(self) -> None:
            self._waiting = None
            super().resume_writing()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._answered = cycle
            super()._start_asgi_task(cycle, app)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            if self._answered is not None:  # uvicorn tells only the newest one, and the others would go on to write
                self._answered.disconnected = True
            super().connection_lost(exc)

    return Taken


def check_pair(certificate: Path, key: Path) -> None:
    """Whether TLS can be served with the two; not whether clients will accept the certificate.

    Raises:
        ConfigurationError: the files are not a PEM chain and its private key, without a password.
    """
    for file in (certificate, key):
        read_bounded(file)  # says which of them is not there

    def refuse() -> str:
        raise ConfigurationError(f"private key {key}", got="an encrypted one", expected="one without a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse)
    except (ssl.SSLError, OSError) as error:
        other = getattr(error, "reason", None) == "KEY_VALUES_MISMATCH"
        raise ConfigurationError(
            f"certificate {certificate} with key {key}",
            got="the key of another certificate" if other else error,
            expected="a PEM chain, and its private key",
        ) from None


class WebConfig(BoundedConfig):
    """With an operator's certificate, which `refresh` reads again once its files have changed."""

    def __init__(self, app: Any, certificate: Path, key: Path) -> None:
        """Raises: ConfigurationError: as `check_pair`."""
        check_pair(certificate, key)
        super().__init__(app, ssl_certfile=certificate, ssl_keyfile=key)
        self._files = (certificate, key)
        self._seen = self._stamp()
        self.load()

    def refresh(self) -> None:
        """The next handshakes present what is in the files now.

        Raises:
            ConfigurationError: as `check_pair`; what was there is presented on.
        """
        stamp = self._stamp()
        if stamp != self._seen:
            check_pair(*self._files)
            context = self.ssl
            assert context is not None  # noqa: S101 - made by `load`
            context.load_cert_chain(*self._files)
            self._seen = stamp

    def _stamp(self) -> tuple[float, ...]:
        try:
            return tuple(file.stat().st_mtime for file in self._files)
        except OSError as error:
            raise ConfigurationError("certificate of the web listener", got=error.strerror) from None


@contextlib.asynccontextmanager
async def running(config: uvicorn.Config, listening: socket.socket, door: Door) -> AsyncIterator[None]:
    """Serve whom the door admits, in this event loop, for as long as the block runs; then finish what is in flight."""
    if not config.loaded:
        config.load()
    config.http_protocol_class = door.guarding(config.http_protocol_class)  # type: ignore[assignment]
    server = _Server(config)
    task = asyncio.ensure_future(server.serve([listening]))
    try:
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Leaves the signals of the process alone: several servers share it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
