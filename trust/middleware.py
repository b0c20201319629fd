"""The ASGI edge of the gate: collects the facts, asks `trust.gate`, answers for it, signs what goes back.

It is the only part of the gate that touches sockets and the clock, and it decides nothing but size and form: bodies
are bounded before any cryptography, refusals become an HTTP status with an RFC error code and nothing else, and the
application sees a request only together with its `Caller`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trust.audit import AuditLog, AuditSink
from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.credentials import CredentialSource
from trust.errors import (
    ConfigurationError,
    InsufficientScope,
    RequestMalformed,
    RequestTooLarge,
    RequestTooSlow,
    StreamNotSigned,
    TokenError,
    TrustError,
)
from trust.gate import Admission, GatePolicy, RequestFacts, admit
from trust.identity import AgentID, Caller, peer_of
from trust.oauth.scopes import Calendar, Catalogue, satisfies
from trust.oauth.tokens import TokenValidator, bearer_token
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard, ReplayGuard
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import HEADER, RequestReference, new_message_id, reference_of, sign_response

MAX_BODY_BYTES = 4 << 20  # an A2A message with a small file in it; raise it where agents exchange larger ones
BODY_SECONDS = 30  # to receive a whole body; a slower sender holds memory and a connection
AGENT_CARD_PATH = "/.well-known/agent-card.json"

Signed = VerifiedMessage | RequestReference

logger = logging.getLogger("a2a_trust")


class Gate:
    """ASGI middleware: nothing of a request reaches `app` without a verified `Caller`, public paths apart.

    The application finds the caller in `request.state.caller` and `request.user`; `request.auth.scopes` answers
    Starlette's `@requires("agent:execute")` by scope containment. The `Authorization` header is removed, so that the
    token cannot end in the application's logs or contexts; `caller.access_token` has it for a token exchange.

    Args:
        app: the application.
        source: our own credentials: who we are, and the key that signs answers.
        bundles, authorize, crls: whom we trust, which agents may call, what is revoked.
        tokens: validates access tokens.
        scope: what a request needs: one scope for all, or a function of the request facts.
        signatures: "required", or "optional" to also accept unsigned requests.
        public_paths: exact paths that GET and HEAD reach without any check, e.g. `(AGENT_CARD_PATH,)`. Required, so
            that what is public is written where the gate is built.
        audience: the `aud` of messages to us; our own SPIFFE ID by default.
        replay: a shared guard where several processes serve; memory by default.
        relays, catalogue, calendars: see `GatePolicy`.
        audit: where decisions are recorded.
        max_body_bytes: larger requests are refused with 413.

    Not checked: WebSockets are refused as a whole, and so are event streams in answer to signed requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        source: CredentialSource,
        bundles: BundleSource,
        authorize: Authorizer,
        tokens: TokenValidator,
        scope: str | Callable[[RequestFacts], str],
        signatures: Literal["required", "optional"],
        public_paths: Collection[str],
        crls: RevocationSource | None = None,
        audience: AgentID | str | None = None,
        replay: ReplayGuard | None = None,
        relays: Mapping[AgentID, Authorizer] | None = None,
        catalogue: Catalogue | None = None,
        calendars: Mapping[str, Calendar] | None = None,
        audit: AuditSink | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if isinstance(public_paths, str):
            raise ConfigurationError("public_paths", got="a str", expected="a collection of exact paths")
        if signatures not in ("required", "optional"):
            raise ConfigurationError("signatures", got=signatures, expected='"required" or "optional"')
        self._app = app
        self._source = source
        self._public_paths = frozenset(public_paths)
        self._audit = audit or AuditLog(clock=clock)
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._policy = GatePolicy(
            verifier=PeerVerifier(bundles, crls or RevocationLists()),
            authorize=authorize,
            tokens=tokens,
            audience=audience or source.current().agent_id,
            signatures=signatures,
            replay=replay or MemoryReplayGuard(started_at=clock()),
            scope=scope,
            relays=relays or {},
            catalogue=catalogue,
            calendars=calendars or {},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted: the checks of `gate` are made for a request with a body.
            await send({"type": "websocket.close", "code": 1008})
        else:  # an unknown kind of connection is not let through unseen
            raise ConfigurationError("ASGI connection", got=scope["type"], expected="http, websocket or lifespan")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._public_paths and scope["method"] in ("GET", "HEAD"):
            public = {**scope, "user": UnauthenticatedUser(), "auth": AuthCredentials()}
            await self._run(public, receive, send, _reference(scope))
            return
        try:
            facts = await self._facts(scope, receive)
            await self._prepare(facts)
            admission = admit(facts, self._policy)
        except TrustError as error:
            self._denied(scope, error)
            await self._answer(scope, send, _refusal(error), _reference(scope))
            return
        self._allowed(scope, admission)
        caller = admission.caller
        admitted = {
            **scope,
            "user": caller,
            "auth": CallerCredentials(caller, self._policy, facts.now),
            "state": {**scope.get("state", {}), "caller": caller},
            "headers": [(n, v) for n, v in scope["headers"] if bytes(n).lower() != b"authorization"],
        }
        await self._run(admitted, _replay_body(facts.body, receive), send, admission.message)

    async def _facts(self, scope: Scope, receive: Receive) -> RequestFacts:
        headers = _headers(scope)
        peer = peer_of(scope)
        return RequestFacts(
            peer_chain=peer.chain if peer else (),
            method=scope["method"],
            url=_url(scope, headers),
            headers=headers,
            body=await _body(headers, receive, self._max_body_bytes),
            now=self._clock(),
        )

    async def _prepare(self, facts: RequestFacts) -> None:
        """Fetch the issuer's keys if this token needs keys that are not here. A bad token is left to the gate."""
        try:
            bearer = bearer_token(facts.values(b"authorization"))
        except TokenError:
            return
        await self._policy.tokens.prepare(bearer, now=facts.now)

    async def _run(self, scope: Scope, receive: Receive, send: Send, request: Signed | None) -> None:
        """Let the application answer; hold its answer until it is signed, where the request was."""
        if request is None:
            await self._app(scope, receive, send)
            return
        collected = _Collected()
        try:
            await self._app(scope, receive, collected.send)
            answer = Answer(collected.status, collected.headers, bytes(collected.body))
        except StreamNotSigned as error:
            self._denied(scope, error)
            answer = _refusal(error)
        except Exception:
            logger.exception("application failed")
            answer = _refusal(ConfigurationError("application failed"))
        await self._answer(scope, send, answer, request)

    async def _answer(self, scope: Scope, send: Send, answer: Answer, request: Signed | None) -> None:
        """Send an answer; signed, where there is a request to bind it to."""
        no_body = scope["method"] == "HEAD" or answer.status in (204, 304)
        body = b"" if no_body else answer.body
        headers = answer.headers
        if request is not None:
            signature = sign_response(
                self._source.current(),
                request=request,
                status=answer.status,
                body=body,
                now=self._clock(),
                jti=new_message_id(),
            )
            name = HEADER.lower().encode()
            headers = [*((n, v) for n, v in headers if n.lower() != name), (name, signature.encode())]
        if not no_body:
            headers = [(n, v) for n, v in headers if n.lower() != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _allowed(self, scope: Scope, admission: Admission) -> None:
        caller = admission.caller
        self._audit.record(
            event="request",
            decision="allow",
            check="all",
            peer=str(caller.agent_id),
            subject=caller.subject,
            target=f"{scope['method']} {scope['path']}",
            token=caller.token_id,
            message=caller.message_id or "",
        )

    def _denied(self, scope: Scope, error: TrustError) -> None:
        peer = peer_of(scope)
        client = scope.get("client")
        self._audit.record(
            event="request",
            decision="deny",
            check=error.check,
            peer=str(peer.agent_id) if peer else (f"{client[0]}:{client[1]}" if client else "unknown"),
            target=f"{scope['method']} {scope['path']}",
            reason=str(error),
        )


class CallerCredentials(AuthCredentials):
    """Starlette's `request.auth`: `"agent:execute" in auth.scopes` asks whether the caller's token covers that scope.

    a2a-sdk hands it on as `context.state["auth"]`; `caller` is the whole of what the gate found.
    """

    def __init__(self, caller: Caller, policy: GatePolicy, now: datetime) -> None:
        super().__init__()
        self.caller = caller
        self.scopes = _CoveredScopes(caller, policy, now)


class _CoveredScopes(list[str]):
    """The granted scopes; containment is by `scopes.satisfies`, so wildcards and the catalogue count."""

    def __init__(self, caller: Caller, policy: GatePolicy, now: datetime) -> None:
        super().__init__(caller.scopes)
        self._issued_at = caller.issued_at
        self._policy = policy
        self._now = now

    def __contains__(self, required: object) -> bool:
        if not isinstance(required, str):
            return False
        return satisfies(
            tuple(self),
            required,
            self._policy.catalogue,
            issued_at=self._issued_at,
            now=self._now,
            calendars=self._policy.calendars,
        )


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Collected:
    """Takes the application's answer, so that it can be signed before its head is sent."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
            if any(n.lower() == b"content-type" and v.startswith(b"text/event-stream") for n, v in self.headers):
                raise StreamNotSigned(
                    "event stream in answer to a signed request",
                    do="call the non-streaming method, or without signature",
                )
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


def _refusal(error: TrustError) -> Answer:
    """What the wire learns: a status, an RFC error code, and a challenge (RFC 6750 section 3). Never the message."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if error.status in (401, 403):
        challenge = "Bearer"
        if error.code:
            challenge += f' error="{error.code}"'
        if isinstance(error, InsufficientScope) and error.required:
            challenge += f', scope="{error.required}"'
        headers.append((b"www-authenticate", challenge.encode()))
    if error.status == 503:
        headers.append((b"retry-after", b"5"))
    return Answer(error.status, headers, json.dumps({"error": error.code or "invalid_token"}).encode())


def _reference(scope: Scope) -> RequestReference | None:
    """What an answer can be bound to where the request itself was not verified: its header, and its channel."""
    peer = peer_of(scope)
    return reference_of(_headers(scope), peer.chain) if peer else None


def _headers(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])


def _url(scope: Scope, headers: tuple[tuple[bytes, bytes], ...]) -> str:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        raise RequestMalformed("host header", got=f"{len(hosts)} of them", expected="exactly one")
    path = scope.get("raw_path") or scope["path"].encode()
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    try:
        return f"{scope['scheme']}://{hosts[0].decode('ascii')}{(path + query).decode('ascii')}"
    except UnicodeDecodeError:
        raise RequestMalformed("request target", got="bytes outside ASCII", expected="a percent-encoded URL") from None


async def _body(headers: tuple[tuple[bytes, bytes], ...], receive: Receive, limit: int) -> bytes:
    lengths = [value for name, value in headers if name == b"content-length"]
    if any(not value.isdigit() or int(value) > limit for value in lengths):
        raise RequestTooLarge("request body", got=f"{lengths[0]!r} bytes", expected=f"at most {limit}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestMalformed("peer went away in the middle of its request")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise RequestTooLarge("request body", expected=f"at most {limit} bytes")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTooSlow("request body", expected=f"all of it within {BODY_SECONDS} seconds") from None


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """An ASGI `receive` that gives the application exactly the verified bytes, then what the server says next."""
    sent = False

    async def receive_verified() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_verified
