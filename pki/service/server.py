"""The CA service in an event loop: its listeners, its background work, its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from starlette.types import ASGIApp

from pki.authority import CertificateAuthority
from pki.policy import DEFAULT_LIFETIME
from pki.service.app import Service
from pki.service.beside import Beside, Lent, Opener
from pki.service.door import Door
from pki.service.listeners import MAX_CONNECTIONS, OPTIONS, BoundedConfig, WebConfig, listen, running, url_of
from pki.service.seldom import SparingAudit
from pki.service.upkeep import Upkeep
from trust.audit import AuditLog, AuditSink
from trust.authorize import members_of
from trust.bundles import RevocationLists
from trust.clock import Clock, wall_clock
from trust.errors import ConfigurationError
from trust.sources import Live
from trust.tls import Limits, uvicorn_config


class Options(TypedDict, total=False):
    """Where a service listens and by which names it is called; the members of `Endpoints`."""

    host: str  # the address of every listener; 127.0.0.1 when left out
    port: int  # of the TLS listener with the CA's own certificate; 0 picks a free one, here and below
    http_port: int | None  # of the plain HTTP listener; None for none
    web_port: int | None  # of the bundle listener of profile https_web; None for none
    web_certificate: tuple[Path, Path] | None  # for that: PEM files of a certificate of the Web PKI and its key
    dns_names: tuple[str, ...]  # what EST clients that go by host names call the service
    ip_addresses: tuple[str, ...]  # or by addresses
    lifetime: timedelta  # of the service's own certificates
    beside: Opener | None  # of another application on the TLS listener, such as an authorization server


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """`Options` in full."""

    host: str = "127.0.0.1"
    port: int = 0
    http_port: int | None = None
    web_port: int | None = None
    web_certificate: tuple[Path, Path] | None = None
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    lifetime: timedelta = DEFAULT_LIFETIME
    beside: Opener | None = None

    def __post_init__(self) -> None:
        if (self.web_port is None) != (self.web_certificate is None):
            raise ConfigurationError("web listener", expected="a port, and a certificate with its key")


class Sockets:
    """The listening sockets of a service: bound before anything else is done, shared by its worker processes."""

    def __init__(self, endpoints: Endpoints) -> None:
        """Raises: ConfigurationError: an address is taken."""
        with contextlib.ExitStack() as stack:
            self.secure = stack.enter_context(listen(endpoints.host, endpoints.port))
            self.plain = self.web = None
            if endpoints.http_port is not None:
                self.plain = stack.enter_context(listen(endpoints.host, endpoints.http_port))
            if endpoints.web_port is not None:
                self.web = stack.enter_context(listen(endpoints.host, endpoints.web_port))
            stack.pop_all()

    def close(self) -> None:
        for listening in (self.secure, self.plain, self.web):
            if listening is not None:
                listening.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A service that runs in the caller's event loop."""

    url: str  # https://address:port, the ones that are really listened on
    http_url: str | None
    web_url: str | None
    upkeep: Upkeep


@contextlib.asynccontextmanager
async def serving(
    ca: CertificateAuthority,
    *,
    audit: AuditSink | None = None,
    clock: Clock = wall_clock,
    sockets: Sockets | None = None,
    **options: Unpack[Options],
) -> AsyncIterator[Serving]:
    """Serve the CA in this event loop for as long as the block runs.

    The CA must have been opened with its password, and stays open: it is the caller's.

    Args:
        audit: gets every decision; the logger `a2a_trust.audit` when left out.
        clock: the time, aware.
        sockets: bound ones, instead of those that `options` ask for; closed at the end.
        options: where to listen, and under which names.

    Raises:
        ConfigurationError: an address is taken, or the certificate of the web listener cannot be used.
        PKIError: the CA cannot issue the service's own certificate.
    """
    audit = AuditLog() if audit is None else audit
    endpoints = Endpoints(**options)
    sockets = Sockets(endpoints) if sockets is None else sockets
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sockets.close)
        upkeep = await asyncio.to_thread(
            Upkeep,
            ca,
            clock=clock,
            dns_names=endpoints.dns_names,
            ip_addresses=endpoints.ip_addresses,
            lifetime=endpoints.lifetime,
        )
        await asyncio.to_thread(upkeep.round)  # so that /ready is right from the first answer on
        door = Door.for_files(MAX_CONNECTIONS)
        service = Service(ca, upkeep, audit=audit, clock=clock)
        stack.callback(service.close)
        stack.callback(upkeep.close)
        await stack.enter_async_context(_background(upkeep))
        if sockets.plain is not None:
            await stack.enter_async_context(running(BoundedConfig(service.plain), sockets.plain, door))
        if sockets.web is not None:
            assert endpoints.web_certificate is not None  # noqa: S101 - as Endpoints has it
            web = WebConfig(service.web, *endpoints.web_certificate)
            upkeep.add("web certificate", web.refresh)
            await stack.enter_async_context(running(web, sockets.web, door))
        secure: ASGIApp = service.secure
        if endpoints.beside is not None:
            lists = Live(await asyncio.to_thread(ca.crl, clock()))
            upkeep.add("revocation lists", partial(_refresh, lists, ca, clock))
            lent = Lent(audit=audit, clock=clock, credentials=upkeep.credentials, bundles=upkeep.bundles, crls=lists)
            app = await asyncio.to_thread(stack.enter_context, endpoints.beside(lent))
            if (readiness := getattr(app.state, "readiness", None)) is not None:
                upkeep.add("authorization server", readiness.check)
            secure = Beside(app, secure, lent)
        config = uvicorn_config(
            secure,
            source=upkeep.credentials,
            bundles=upkeep.bundles,
            authorize=members_of(ca.trust_domain),
            client_certificates="optional",
            audit=SparingAudit(audit),
            # The door shares connections out, by address. By agent, all who enrol or fetch lists would be one.
            limits=Limits(connections=door.connections, peer=door.connections),
            **OPTIONS,
        )
        await stack.enter_async_context(running(config, sockets.secure, door))
        yield Serving(
            url=url_of(sockets.secure, "https"),
            http_url=None if sockets.plain is None else url_of(sockets.plain, "http"),
            web_url=None if sockets.web is None else url_of(sockets.web, "https"),
            upkeep=upkeep,
        )


def _refresh(lists: Live[RevocationLists], ca: CertificateAuthority, clock: Clock) -> None:
    found = ca.crl(clock())
    if found != lists.current():  # a source's value stays the same object while it is the same
        lists.replace(found)


@contextlib.asynccontextmanager
async def _background(upkeep: Upkeep) -> AsyncIterator[None]:
    task = asyncio.ensure_future(upkeep.forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
