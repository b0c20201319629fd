"""The embedded authorization server, for agents that authenticate by mutual TLS.

    /.well-known/oauth-authorization-server    RFC 8414
    /jwks                                      RFC 7517
    /token                                     RFC 6749, 8693, 8705, 8707; tokens are `at+jwt` (RFC 9068)

It decides nothing: `grants` and `exchange` do. It must be served by `trust.tls`, which puts the verified peer into the
ASGI scope; without a peer no client is authenticated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trust.audit import AuditSink
from trust.clock import Clock, wall_clock
from trust.errors import ConfigurationError
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.metadata import CLIENT_CREDENTIALS, TOKEN_EXCHANGE, WELL_KNOWN, check_issuer, issuer_path
from trust.oauth.scopes import Calendar, Catalogue
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.edge import Parts
from trust.oauth.server.grants import GrantPolicy
from trust.oauth.server.store import Store
from trust.oauth.server.token_endpoint import TokenEndpoint
from trust.sources import Source

STORE_THREADS = 8  # of all requests together, so that a slow disk does not take every worker thread of the process

logger = logging.getLogger("a2a_trust.oauth")


def create_app(
    *,
    issuer: str,
    clients: Source[ClientRegistry],
    store: Store,
    keys: Sequence[SigningKey],
    audit: AuditSink,
    catalogue: Catalogue | None = None,
    calendars: Mapping[str, Calendar] | None = None,
    clock: Clock = wall_clock,
) -> Starlette:
    """The authorization server as an ASGI application.

    Not checked here: the clients' certificates (the TLS server has verified them) and how often a client asks.

    Args:
        issuer: its identifier, the https URL that agents reach it by; a path is served under that path.
        clients: who may ask for what; asked at every request, so that a removed client is refused at once.
        store: remembers what was issued.
        keys: the first one signs; all are published, so that the next key is known before it signs.
        audit: where every issuance and refusal is recorded.
        catalogue, calendars: the scope hierarchy and the named hours of time scopes.
        clock: the time, aware.

    Raises:
        ConfigurationError: a malformed issuer, or no key.
    """
    if not keys:
        raise ConfigurationError("authorization server has no key", expected="at least one signing key")
    policy = GrantPolicy(
        issuer=check_issuer(issuer), catalogue=catalogue, calendars={} if calendars is None else calendars
    )
    parts = Parts(
        policy=policy,
        clients=clients,
        store=store,
        signing_key=keys[0],
        published=StaticKeys(public_jwks(keys)),
        audit=audit,
        clock=clock,
        threads=anyio.CapacityLimiter(STORE_THREADS),
    )
    for note in clients.current().notes:
        logger.warning("client registration to look at: %s", note)
    path = issuer_path(issuer)
    app = Starlette(
        routes=[
            Route(WELL_KNOWN + path, _static(_metadata(issuer))),
            Route(f"{path}/jwks", _static(public_jwks(keys))),
            Route(f"{path}/token", TokenEndpoint(parts).answer, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False  # a redirect to a host that the request names is nobody's endpoint
    return app


def _metadata(issuer: str) -> dict[str, Any]:
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "token_endpoint": f"{base}/token",
        "jwks_uri": f"{base}/jwks",
        "grant_types_supported": [CLIENT_CREDENTIALS, TOKEN_EXCHANGE],
        "response_types_supported": [],  # required by RFC 8414 section 2; there is no authorization endpoint
        "token_endpoint_auth_methods_supported": ["tls_client_auth"],
        "tls_client_certificate_bound_access_tokens": True,
    }


def _static(document: Mapping[str, Any]) -> Callable[[Request], Any]:
    async def answer(_request: Request) -> Response:
        return JSONResponse(document, headers={"Cache-Control": "max-age=300"})

    return answer


async def _http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, as JSON like every other answer."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": "invalid_request"}, status_code=error.status_code, headers=error.headers)
