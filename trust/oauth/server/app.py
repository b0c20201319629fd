"""The embedded authorization server, for agents that authenticate by mutual TLS.

    /.well-known/oauth-authorization-server    RFC 8414
    /jwks                                      RFC 7517
    /token                                     RFC 6749, 7523, 8693, 8705, 8707, 9449; tokens are `at+jwt` (RFC 9068)
    /introspect                                RFC 7662, and 9701 where the client asks for it
    /revoke                                    RFC 7009
    /revoked                                   the signed list of revoked tokens (`trust.oauth.denylist.document`)
    /health, /ready                            whether it can do its work (`readiness`)

It decides nothing: `grants` and `approvals` do. It must be served by `trust.tls`, which puts the verified peer into the
ASGI scope; without a peer no client is authenticated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trust.audit import AuditSink
from trust.clock import Clock, wall_clock
from trust.oauth.calendars import Calendar
from trust.oauth.claims import ALGORITHMS
from trust.oauth.denylist.document import PATH as REVOKED_PATH
from trust.oauth.keys import SigningKey
from trust.oauth.metadata import JWT_TYPE, WELL_KNOWN, check_issuer, issuer_path
from trust.oauth.policy import Permit
from trust.oauth.scopes import Catalogue
from trust.oauth.server.approvals import ApprovalRules, Approvals
from trust.oauth.server.authentication import AUTHENTICATION_METHODS
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.edge import Endpoint, Parts
from trust.oauth.server.grants import GrantPolicy, Partners
from trust.oauth.server.introspection import IntrospectionEndpoint
from trust.oauth.server.published import Published
from trust.oauth.server.readiness import HEALTH, READY, Readiness
from trust.oauth.server.registrations import Registrations
from trust.oauth.server.revocation import RevocationEndpoint
from trust.oauth.server.revoked_list import RevokedList, RevokedRoute
from trust.oauth.server.signing_keys import KINDS, KeyRing
from trust.oauth.server.store import Store
from trust.oauth.server.throttle import REQUESTS_PER_MINUTE, Throttle
from trust.oauth.server.token_endpoint import GRANT_TYPES, TokenEndpoint
from trust.sources import Source

STORE_THREADS = 8  # of all requests together, so that a slow disk does not take every worker thread of the process


def create_app(
    *,
    issuer: str,
    clients: Source[ClientRegistry],
    store: Store,
    keys: Sequence[SigningKey] | Source[KeyRing],
    audit: AuditSink,
    catalogue: Catalogue | None = None,
    calendars: Mapping[str, Calendar] | None = None,
    approvals: ApprovalRules | None = None,
    partners: Source[Partners] | None = None,
    permit: Permit | None = None,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
    redis_url: str | None = None,
    readiness: Readiness | None = None,
    clock: Clock = wall_clock,
) -> Starlette:
    """The authorization server as an ASGI application.

    Not checked here: the clients' certificates (the TLS server has verified them).

    Args:
        issuer: its identifier, the https URL that agents reach it by; a path is served under that path.
        clients: who may ask for what, beside those that the store knows (`registrations`); asked at every request, so
            that a removed client is refused at once.
        store: remembers what was issued.
        keys: `RotatingKeys`; or keys that stay, of which the first one signs and all are published.
        audit: where every issuance and refusal is recorded.
        catalogue, calendars: the scope hierarchy and the named hours of time scopes.
        approvals: the scopes that a person has to approve each time; None where no person is asked.
        partners: the other authorization servers whose assertions get tokens here (identity chaining across domains).
        permit: a policy for what registrations cannot say, asked about each token before it is issued.
        requests_per_minute: of one client, to all endpoints together; more get 429.
        redis_url: of a Redis server, where several servers are to count together (`throttle`).
        readiness: what `/ready` goes by, which is also the application's `state.readiness`; when left out, the store.
        clock: the time, aware.

    Raises:
        ConfigurationError: a malformed issuer, or no key.
    """
    ring: Source[KeyRing] = KeyRing.of(keys) if isinstance(keys, Sequence) else keys
    policy = GrantPolicy(
        issuer=check_issuer(issuer),
        catalogue=catalogue,
        calendars={} if calendars is None else calendars,
        partners=Partners() if partners is None else partners,
        permit=permit,
    )
    registrations = Registrations(clients, store.clients, catalogue=catalogue, calendars=policy.calendars)
    parts = Parts(
        policy=policy,
        clients=registrations,
        store=store,
        keys=ring,
        audit=audit,
        clock=clock,
        threads=anyio.CapacityLimiter(STORE_THREADS),
        throttle=Throttle(
            requests_per_minute=requests_per_minute, redis_url=redis_url, clock=lambda: clock().timestamp()
        ),
    )
    registrations.current()  # so that what is wrong with it is told now
    path = issuer_path(issuer)
    endpoints: dict[str, tuple[str, Endpoint]] = {  # by the names that metadata has for them
        "token_endpoint": ("/token", TokenEndpoint(parts, Approvals(parts, approvals))),
        "introspection_endpoint": ("/introspect", IntrospectionEndpoint(parts)),
        "revocation_endpoint": ("/revoke", RevocationEndpoint(parts)),
    }
    revoked = RevokedRoute(RevokedList(issuer=issuer, store=store, keys=ring, clock=clock), parts.threads)
    readiness = Readiness(store) if readiness is None else readiness
    metadata = _metadata(issuer, {name: where for name, (where, _) in endpoints.items()})
    app = Starlette(
        routes=[
            Route(WELL_KNOWN + path, Published(lambda: metadata).answer),
            Route(f"{path}/jwks", Published(lambda: ring.current().jwks).answer),
            Route(path + REVOKED_PATH, revoked.answer),
            Route(path + HEALTH, readiness.health),
            Route(path + READY, readiness.ready),
            *(Route(path + where, endpoint.answer, methods=["POST"]) for where, endpoint in endpoints.values()),
        ],
        exception_handlers={HTTPException: _http_error},
    )
    app.state.readiness = readiness
    app.router.redirect_slashes = False  # a redirect to a host that the request names is nobody's endpoint
    return app


def _metadata(issuer: str, endpoints: Mapping[str, str]) -> dict[str, Any]:
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        **{name: base + where for name, where in endpoints.items()},
        # What is left out would mean client_secret_basic (RFC 8414 section 2).
        **{f"{name}_auth_methods_supported": list(AUTHENTICATION_METHODS) for name in endpoints},
        "introspection_signing_alg_values_supported": list(KINDS),  # RFC 9701 section 7
        "jwks_uri": f"{base}/jwks",
        "grant_types_supported": list(GRANT_TYPES),
        "identity_chaining_requested_token_types_supported": [JWT_TYPE],
        "response_types_supported": [],  # required by RFC 8414 section 2; there is no authorization endpoint
        "tls_client_certificate_bound_access_tokens": True,
        "dpop_signing_alg_values_supported": list(ALGORITHMS),
    }


async def _http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, as JSON like every other answer."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": "invalid_request"}, status_code=error.status_code, headers=error.headers)
