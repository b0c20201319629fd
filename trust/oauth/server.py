"""The embedded authorization server: metadata, keys and a token endpoint, for agents that authenticate by mutual TLS.

    /.well-known/oauth-authorization-server    RFC 8414
    /jwks                                      RFC 7517
    /token                                     RFC 6749, 8693, 8705, 8707; tokens are `at+jwt` (RFC 9068)

It decides nothing: `trust.oauth.grants` does. It must be served by `trust.tls`, which puts the verified peer into the
ASGI scope; without a peer no client is authenticated.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trust.audit import AuditSink, Decision
from trust.clock import Clock, wall_clock
from trust.errors import (
    ConfigurationError,
    GrantError,
    GrantRequestMalformed,
    GrantTypeUnknown,
    RequestTooLarge,
    RequestTooSlow,
)
from trust.identity import PeerIdentity, peer_of
from trust.oauth.clients import ClientRegistry
from trust.oauth.grants import (
    Form,
    Grant,
    GrantPolicy,
    authenticate,
    client_credentials,
    parse_form,
    read_subject_token,
    token_exchange,
)
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.metadata import (
    ACCESS_TOKEN_TYPE,
    CLIENT_CREDENTIALS,
    TOKEN_EXCHANGE,
    WELL_KNOWN,
    check_issuer,
    issuer_path,
)
from trust.oauth.scopes import Calendar, Catalogue
from trust.oauth.store import Store
from trust.oauth.tokens import sign_access_token
from trust.sources import Source

MAX_BODY_BYTES = 16 << 10  # a subject token of 8 KiB and the other parameters
BODY_SECONDS = 10  # to receive them; a slower sender only holds a connection
STORE_THREADS = 8  # of all requests together, so that a slow disk does not take every worker thread of the process
TOKEN_ID_BYTES = 16  # RFC 9700 section 4.10.2 asks for 128 bits where guessing matters

# RFC 6749 section 5.1. Nothing that the token endpoint says may be kept by a cache.
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

T = TypeVar("T")

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
    endpoint = _TokenEndpoint(policy=policy, clients=clients, store=store, keys=keys, audit=audit, clock=clock)
    for note in clients.current().notes:
        logger.warning("client registration to look at: %s", note)
    path = issuer_path(issuer)
    app = Starlette(
        routes=[
            Route(WELL_KNOWN + path, _static(_metadata(issuer))),
            Route(f"{path}/jwks", _static(public_jwks(keys))),
            Route(f"{path}/token", endpoint.answer, methods=["POST"]),
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


class _TokenEndpoint:
    def __init__(
        self,
        *,
        policy: GrantPolicy,
        clients: Source[ClientRegistry],
        store: Store,
        keys: Sequence[SigningKey],
        audit: AuditSink,
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._clients = clients
        self._store = store
        self._key = keys[0]
        self._published = StaticKeys(public_jwks(keys))
        self._audit = audit
        self._clock = clock
        self._threads = anyio.CapacityLimiter(STORE_THREADS)

    async def answer(self, request: Request) -> Response:
        """Every request ends in one audit record, and in an answer of RFC 6749 section 5.1 or 5.2."""
        peer = peer_of(request.scope)
        form: Form = {}
        try:
            form = parse_form(await _body(request))
            grant = await self._decide(form, peer)
            token = sign_access_token(grant.claims, self._key)
            # What cannot be recorded is not handed out.
            self._record("allow", "all", peer, form, grant)
            return JSONResponse(_answer(grant, token), headers=_NO_STORE)
        except (GrantError, RequestTooLarge, RequestTooSlow) as error:
            self._record("deny", error.check, peer, form, reason=str(error))
            return _refusal(error.status, error.code)
        except ClientDisconnect:
            self._record("deny", "request.disconnected", peer, form)
            return _refusal(400, "invalid_request")
        except Exception:
            logger.exception("token request failed")
            self._record("deny", "server", peer, form)
            return _refusal(500, "server_error")

    async def _decide(self, form: Form, presented: PeerIdentity | None) -> Grant:
        now = self._clock()
        client, peer = authenticate(form, presented, self._clients.current(), now=now)
        grant_type = form.get("grant_type")
        token_id = secrets.token_urlsafe(TOKEN_ID_BYTES)
        if grant_type == CLIENT_CREDENTIALS:
            grant = client_credentials(form, client=client, peer=peer, policy=self._policy, now=now, token_id=token_id)
        elif grant_type == TOKEN_EXCHANGE:
            subject = read_subject_token(form, client=client, keys=self._published, policy=self._policy, now=now)
            grant = token_exchange(
                form,
                client=client,
                peer=peer,
                subject=subject,
                parent=await self._in_thread(partial(self._store.find, subject.token_id)),
                policy=self._policy,
                now=now,
                token_id=token_id,
            )
        elif grant_type is None:
            raise GrantRequestMalformed("grant_type", got="none", expected="one")
        else:
            raise GrantTypeUnknown("grant_type", got=grant_type, expected=f"{CLIENT_CREDENTIALS} or {TOKEN_EXCHANGE}")
        await self._in_thread(partial(self._store.add, grant.issued, now=now))
        return grant

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """The store blocks (a durable commit waits for the disk); the event loop must not."""
        return await run_sync(call, limiter=self._threads)

    def _record(
        self,
        decision: Decision,
        check: str,
        peer: PeerIdentity | None,
        form: Form,
        grant: Grant | None = None,
        **facts: str,
    ) -> None:
        if grant is not None:
            facts |= {"jti": grant.issued.token_id, "scope": grant.scope, "parent": grant.issued.parent_id or ""}
        self._audit.record(
            event="token",
            decision=decision,
            check=check,
            peer=str(peer.agent_id) if peer else "",
            subject=grant.issued.subject if grant else "",
            target=form.get("resource", ""),
            grant=form.get("grant_type", ""),
            client=form.get("client_id", ""),
            **facts,
        )


async def _body(request: Request) -> bytes:
    """The form of a request, bounded in size and time before anything is parsed."""
    if request.url.query:
        # RFC 6749 section 3.2: parameters in a URL end in logs, subject tokens among them.
        raise GrantRequestMalformed("token request has a query", expected="parameters in the body only")
    if "authorization" in request.headers:
        raise GrantRequestMalformed("client authentication", got="an Authorization header", expected="the certificate")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded" or "content-encoding" in request.headers:
        raise GrantRequestMalformed("content type", got=content_type, expected="application/x-www-form-urlencoded")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RequestTooLarge("token request is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise RequestTooSlow("token request came too slowly", expected=f"within {BODY_SECONDS} s") from None
    return bytes(body)


def _answer(grant: Grant, token: str) -> dict[str, str | int]:
    """RFC 6749 section 5.1; RFC 8693 section 2.2.1 for an exchange."""
    members: dict[str, str | int] = {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": grant.expires_in,
        "scope": grant.scope,
    }
    if grant.issued.parent_id is not None:
        members["issued_token_type"] = ACCESS_TOKEN_TYPE
    return members


def _refusal(status: int, code: str) -> Response:
    """RFC 6749 section 5.2. The code is all that the wire learns; the reason is in the audit trail."""
    return JSONResponse({"error": code}, status_code=status, headers=_NO_STORE)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, as JSON like every other answer."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": "invalid_request"}, status_code=error.status_code, headers=error.headers)
