"""The ASGI edge of the gate: collects the facts, asks `trust.gate`, answers for it, signs what goes back.

It is the only part of the gate that touches sockets and the clock, and it decides nothing but size and form: bodies
are bounded before any cryptography, refusals become an HTTP status with an RFC error code and nothing else, and the
application sees a request only together with its `Caller`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trust.answers import Answer, Collected, Signed, SignedStream
from trust.asgi import MAX_BODY_BYTES, Headers, body_of, check_declared_size, headers_of, target_of, with_body
from trust.audit import AuditLog, AuditSink
from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    ConfigurationError,
    InsufficientScope,
    RequestMalformed,
    ResponseTooLarge,
    ScopeMalformed,
    SignatureMissing,
    StreamError,
    TrustError,
    WebSocketRefused,
)
from trust.extension import Signatures, declaration, echoed, required_error, under_both_names
from trust.gate import Admission, GatePolicy, Refusal, RequestFacts, judge, may_speak
from trust.identity import PRESENTED_EXTENSION, PROXY_EXTENSION, AgentID, Caller, PeerIdentity, peer_of
from trust.oauth.scopes import Calendar, Catalogue, parse, satisfies
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard, OffTheLoop, ReplayGuard
from trust.signing.algorithms import signer
from trust.signing.http import (
    HEADER,
    RequestReference,
    content_type_of,
    new_message_id,
    reference_of,
    sign_response,
)
from trust.signing.streams import named_event

# RFC 9110 section 7.2, without what parsers read differently: it stays within itself.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

AGENT_CARD_PATH = "/.well-known/agent-card.json"

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
        signatures: "required", or "optional" to also accept unsigned requests. `extension` says it in the Agent Card.
        public_paths: exact paths that GET and HEAD reach without any check, e.g. `(AGENT_CARD_PATH,)`. Required, so
            that what is public is written where the gate is built.
        audience: the `aud` of messages to us; our own SPIFFE ID by default.
        replay: a shared guard where several processes serve; memory by default. With another guard than that the checks
            run in threads, so `scope`, and rules of your own, have to be safe for them.
        relays, catalogue, calendars: see `GatePolicy`.
        audit: where decisions are recorded.
        max_body_bytes: larger requests are refused with 413.

    An answer to a signed request is signed. A refusal is, once the request was authentic and is remembered, so that it
    can never be executed afterwards (`trust.gate`); any other goes out unsigned.

    An event stream in answer to a signed request is signed event by event (`trust.signing.streams`); it is cut at an
    event that is not a JSON object. Its end is signed and sent when the application has returned, and only if it has:
    what it does after its last event delays the end.

    Not checked: WebSockets are refused as a whole.

    Raises:
        ConfigurationError: an argument that cannot be meant; or the key of `source` signs nothing here (ML-DSA).
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
        signatures: Signatures,
        public_paths: Collection[str],
        crls: RevocationSource | None = None,
        audience: AgentID | str | None = None,
        replay: ReplayGuard | None = None,
        relays: Mapping[AgentID, Authorizer] | None = None,
        catalogue: Catalogue | None = None,
        calendars: Mapping[str, Calendar] | None = None,
        audit: AuditSink | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock: Clock = wall_clock,
    ) -> None:
        if isinstance(public_paths, str):
            raise ConfigurationError("public_paths", got="a str", expected="a collection of exact paths")
        if signatures not in ("required", "optional"):
            raise ConfigurationError("signatures", got=signatures, expected='"required" or "optional"')
        if isinstance(scope, str):
            parse(scope)  # a malformed one is told now, and not to each caller
        signer(source.current().private_key)  # and so is a key that signs no answers
        self._app = app
        self._source = source
        self._public_paths = frozenset(public_paths)
        self._audit = AuditLog(clock=clock) if audit is None else audit
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._policy = GatePolicy(
            verifier=PeerVerifier(bundles, RevocationLists() if crls is None else crls),
            authorize=authorize,
            tokens=tokens,
            audience=source.current().agent_id if audience is None else audience,
            signatures=signatures,
            # `is None`: a guard that remembers nothing yet may well be false.
            replay=MemoryReplayGuard(started_at=clock()) if replay is None else replay,
            scope=scope,
            relays={} if relays is None else relays,
            catalogue=catalogue,
            calendars={} if calendars is None else calendars,
        )
        self._off_the_loop = OffTheLoop(self._policy.replay)

    @property
    def extension(self) -> dict[str, Any]:
        """The entry for `capabilities.extensions` of the Agent Card, as this gate does it (`trust.extension`).

        `oauth.cards.security_members` writes the same for the same word in `CardPolicy.signatures`.
        """
        return declaration(self._policy.signatures)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted: the checks of `gate` are made for a request with a body.
            self._denied(scope, WebSocketRefused("WebSocket", expected="a request", do="use HTTP for this agent"))
            await send({"type": "websocket.close", "code": 1008})
        else:  # an unknown kind of connection is not let through unseen
            raise ConfigurationError("ASGI connection", got=scope["type"], expected="http, websocket or lifespan")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._public_paths and scope["method"] in ("GET", "HEAD"):
            headers = _without_token(headers_of(scope))
            public = {**scope, "user": UnauthenticatedUser(), "auth": AuthCredentials(), "headers": headers}
            await self._run(public, receive, send, _reference_of_public(scope))
            return
        facts: RequestFacts | None = None
        try:
            facts = await self._facts(scope, receive)
            admission = await self._off_the_loop.run(partial(judge, facts, self._policy))
        except TrustError as error:
            self._denied(scope, error)  # nothing was found out about the request, so nothing can be signed for it
            await self._answer(scope, send, _refusal(error, facts), None)
            return
        if isinstance(admission, Refusal):
            self._denied(scope, admission.error)
            await self._answer(scope, send, _refusal(admission.error, facts), admission.message)
            return
        self._allowed(scope, admission)
        caller = admission.caller
        admitted = {
            **scope,
            "user": caller,
            "auth": CallerCredentials(caller, self._policy, facts.now),
            "state": {**scope.get("state", {}), "caller": caller},
            # Those that were judged: a server may still add to the list in the scope (trailers, by httptools).
            "headers": _without_token(facts.headers),
        }
        if admission.message is not None:
            admitted["headers"] = under_both_names(admitted["headers"])
            send = _echoing(facts, send)
        await self._run(admitted, with_body(facts.body, receive), send, admission.message)

    async def _facts(self, scope: Scope, receive: Receive) -> RequestFacts:
        """Collect what arrived. In this order: what is cheap to refuse costs nobody memory, time or a fetch of keys."""
        headers = headers_of(scope)
        url = _url(scope, headers)
        check_declared_size(headers, self._max_body_bytes)
        peer = peer_of(scope)
        bearer = may_speak(peer, [value for name, value in headers if name == b"authorization"], self._policy)
        body = await body_of(receive, self._max_body_bytes)
        await self._policy.tokens.prepare(bearer, now=self._clock())
        return RequestFacts(
            peer_chain=peer.chain if peer else (),
            method=scope["method"],
            url=url,
            path=scope["path"],
            headers=headers,
            body=body,
            now=self._clock(),  # after all waiting: what is judged by an old time may be expired, or forgotten
        )

    async def _run(self, scope: Scope, receive: Receive, send: Send, request: Signed | None) -> None:
        """Let the application answer; hold its answer, or each event, until it is signed where the request was."""
        if request is None:
            await self._app(scope, receive, send)
            return
        # The answer goes out when it is complete, not when the application returns: it may have work to do afterwards.
        offered = scope.get("extensions") or {}
        collected = Collected(
            lambda answer: self._answer(scope, send, answer, request),
            lambda: SignedStream(
                send,
                request=request,
                resumes=named_event(scope["headers"]),
                source=self._source,
                presented=offered.get(PRESENTED_EXTENSION),
                clock=self._clock,
            ),
            streams=scope["method"] != "HEAD",
        )
        # Ways of answering that go past `send`'s body messages, such as "http.response.pathsend", cannot be signed.
        plain = {name: value for name, value in offered.items() if not name.startswith("http.response.")}
        refused: TrustError = ConfigurationError("application did not answer")
        try:
            await self._app({**scope, "extensions": plain}, receive, collected.send)
            await collected.end()
        except (StreamError, ResponseTooLarge) as error:
            self._denied(scope, error)
            refused = error
        except Exception:  # whatever it is, its details are for the log and not for the wire
            if collected.streaming:
                raise  # the server logs it, and cuts the stream
            logger.exception("application failed")
        if not collected.sent and not collected.streaming:  # a stream without its end the server cuts
            await self._answer(scope, send, _refusal(refused), request)

    async def _answer(self, scope: Scope, send: Send, answer: Answer, request: Signed | None) -> None:
        """Send an answer; signed, where there is a request to bind it to."""
        no_body = scope["method"] == "HEAD" or answer.status in (204, 304)
        body = b"" if no_body else answer.body
        headers = answer.headers
        if request is not None:
            credentials = self._source.current()
            # Whoever asked knows the certificate of the connection. When ours was renewed since, it has to come along.
            presented = (scope.get("extensions") or {}).get(PRESENTED_EXTENSION, credentials.thumbprint)
            signature = sign_response(
                credentials,
                chain=presented != credentials.thumbprint,
                request=request,
                status=answer.status,
                body=body,
                now=self._clock(),
                jti=new_message_id(),
                content_type=content_type_of(answer.headers, ConfigurationError),
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
            **_proxy(scope),
        )

    def _denied(self, scope: Scope, error: TrustError) -> None:
        peer = peer_of(scope)
        client = scope.get("client")
        self._audit.record(
            event="request",
            decision="deny",
            check=error.check,
            peer=str(peer.agent_id) if peer else (f"{client[0]}:{client[1]}" if client else "unknown"),
            target=f"{scope.get('method', scope['type'])} {scope['path']}",
            reason=str(error),
            **_proxy(scope),
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
        if required == "authenticated":  # Starlette's own word; whoever has come so far is
            return True
        try:
            return isinstance(required, str) and satisfies(
                tuple(self),
                required,
                self._policy.catalogue,
                issued_at=self._issued_at,
                now=self._now,
                calendars=self._policy.calendars,
            )
        except ScopeMalformed:  # a word outside the grammar is granted to nobody
            return False


def _refusal(error: TrustError, facts: RequestFacts | None = None) -> Answer:
    """What the wire learns: a status, an RFC error code, and a challenge (RFC 6750 section 3). Never the message."""
    content: dict[str, Any] = {"error": error.code or "unauthorized"}
    if isinstance(error, SignatureMissing) and facts is not None:  # A2A has an error of its own for this
        content = required_error(facts.body)
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if error.status in (401, 403):
        challenge = "Bearer"
        if error.code in ("invalid_token", "insufficient_scope"):  # RFC 6750's own; the others are not about tokens
            challenge += f' error="{error.code}"'
        if isinstance(error, InsufficientScope) and error.required:
            challenge += f', scope="{error.required}"'
        headers.append((b"www-authenticate", challenge.encode()))
    if error.status == 503:
        headers.append((b"retry-after", b"5"))
    return Answer(error.status, headers, json.dumps(content).encode())


def _echoing(facts: RequestFacts, send: Send) -> Send:
    """An ASGI `send` that names the extension as activated, in an answer to a signed request that named it."""

    async def send_echoing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": echoed(message.get("headers", ()), facts.headers)}
        await send(message)

    return send_echoing


def _proxy(scope: Scope) -> dict[str, str]:
    """For the trail: the proxy whose word it is that the caller is the peer, where there is one."""
    proxy = (scope.get("extensions") or {}).get(PROXY_EXTENSION)
    return {"proxy": str(proxy.agent_id)} if isinstance(proxy, PeerIdentity) else {}


def _reference_of_public(scope: Scope) -> RequestReference | None:
    """What a public answer can be bound to: never under the header of another request, which a proxy may put here."""
    peer, headers = peer_of(scope), headers_of(scope)
    try:
        return reference_of(headers, peer.agent_id, received=(scope["method"], _url(scope, headers))) if peer else None
    except RequestMalformed:
        return None


def _without_token(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"authorization"]


def _url(scope: Scope, headers: Headers) -> str:
    """The absolute URL that the caller addressed, from parts that cannot run into one another."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise RequestMalformed("Host header", got=b", ".join(hosts), expected="one host, and a port or none")
    return f"{scope['scheme']}://{hosts[0].decode('ascii')}{target_of(scope)}"
