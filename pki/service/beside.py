"""Another application behind the service's TLS listener, at paths of its own.

The listener lets agents in whose certificates are revoked, for EST says by itself what becomes of them. The other
application is not told of such a certificate: for it, nobody was proved.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trust.audit import AuditSink
from trust.bundles import BundleSource, RevocationSource
from trust.clock import Clock
from trust.credentials import CredentialSource
from trust.errors import ConfigurationError, PeerError
from trust.identity import PEER_EXTENSION, peer_of
from trust.peers import PeerVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What the service has, and the application may use."""

    audit: AuditSink
    clock: Clock
    credentials: CredentialSource  # the service's own
    bundles: BundleSource  # what the CA publishes now
    crls: RevocationSource


# Both may have these; the service's `/ready` then speaks of the application, too, by its `state.readiness`.
_OURS = frozenset({"/health", "/ready"})

# Opens the application for as long as the service runs. It goes to worker processes: a function of a module, or a
# `functools.partial` of one.
Opener = Callable[[Lent], AbstractContextManager[Starlette]]


class Beside:
    """The application at its paths, and `others` everywhere else."""

    def __init__(self, app: Starlette, others: ASGIApp, lent: Lent) -> None:
        """
        Args:
            app: all its routes have fixed paths.
            lent: its trail gets every certificate that was not handed on.

        Raises:
            ConfigurationError: a path that would be the application's and the service's.
        """
        self._paths = frozenset(route.path for route in app.routes if isinstance(route, Route)) - _OURS
        if taken := sorted(path for path in self._paths if path.startswith(("/.well-known/est/", "/crl/", "/ca/"))):
            raise ConfigurationError("paths of the application beside the CA", got=", ".join(taken), do="move them")
        self._app, self._others = app, others
        self._verifier = PeerVerifier(lent.bundles, lent.crls)
        self._audit, self._clock = lent.audit, lent.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._others(scope, receive, send)
            return
        peer = peer_of(scope)
        if peer is not None:
            try:
                self._verifier.verify(peer.chain, now=self._clock(), usage="client")
            except PeerError as error:
                self._audit.record(
                    event="connection",
                    decision="deny",
                    check=error.check,
                    peer=str(peer.agent_id),
                    target=scope["path"],
                    reason=str(error),
                )
                scope = {**scope, "extensions": {k: v for k, v in scope["extensions"].items() if k != PEER_EXTENSION}}
        await self._app(scope, receive, send)
