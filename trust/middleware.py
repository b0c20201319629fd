"""The ASGI edge of the gate: collects the facts, asks `trust.gate`, answers for it, signs what goes back.

It is the only part of the gate that touches sockets and the clock, and it decides nothing but size and form: bodies
are bounded before any cryptography, refusals become an HTTP status with an RFC error code and nothing else, and the
application sees a request only together with its `Caller`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.types import ASGIApp, Receive, Scope, Send

from trust.answers import Answer, Collected, Signed, SignedStream, WhileAllowed, echoing, presented_to
from trust.asgi import MAX_BODY_BYTES, Headers, body_of, check_declared_size, headers_of, origin_of, url_of, with_body
from trust.audit import AuditLog, AuditSink
from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.caller_auth import CallerCredentials
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource, check_source
from trust.errors import (
    ConfigurationError,
    RequestMalformed,
    ResponseTooLarge,
    SignatureMissing,
    StreamError,
    TrustError,
    WebSocketRefused,
    must_be,
    must_have,
)
from trust.extension import Signatures, declaration, required_error, under_both_names
from trust.gate import Admission, Refusal, judge, may_speak
from trust.gate_policy import GatePolicy, RequestFacts, TokenRules
from trust.identity import PROXY_EXTENSION, AgentID, PeerIdentity, peer_of
from trust.oauth.calendars import Calendar
from trust.oauth.cards import Form, policies_of, secured
from trust.oauth.operations import SkillScopes
from trust.oauth.policy import Permit
from trust.oauth.resource import ProtectedResource
from trust.oauth.scopes import Catalogue
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
        tokens: validates access tokens: a `TokenValidator`, or `TokenValidators` for several issuers.
        scope: what a request needs: one scope for all, a `SkillScopes`, or a function of the request facts.
        signatures: "required", or "optional" to also accept unsigned requests. `extension` says it in the Agent Card.
        public_paths: exact paths that GET and HEAD reach without any check, e.g. `(AGENT_CARD_PATH,)`. Required, so
            that what is public is written where the gate is built.
        audience: the `aud` of messages to us; our own SPIFFE ID by default.
        replay: a shared guard where several processes serve; memory by default. With another guard than that the checks
            run in threads, so `scope`, and rules of your own, have to be safe for them.
        relays, catalogue, calendars, approvals, permit: see `GatePolicy`.
        audit: where decisions are recorded.
        max_body_bytes: larger requests are refused with 413.

    It also serves the metadata of the protected resource (RFC 9728), to anyone, as its challenges say where.

    An answer to a signed request is signed. A refusal is, once the request was authentic and is remembered, so that it
    can never be executed afterwards (`trust.gate`); any other goes out unsigned.

    An event stream in answer to a signed request is signed event by event (`trust.signing.streams`); it is cut at an
    event that is not a JSON object. Its end is signed and sent when the application has returned, and only if it has:
    what it does after its last event delays the end.

    A stream, or another answer in many parts, is cut at its next part once its token is revoked, or the denylist cannot
    be had; it is asked at most once a second. One whose token expires meanwhile goes on: the next request needs one.

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
        tokens: TokenRules,
        scope: str | SkillScopes | Callable[[RequestFacts], str],
        signatures: Signatures,
        public_paths: Collection[str],
        crls: RevocationSource | None = None,
        audience: AgentID | str | None = None,
        replay: ReplayGuard | None = None,
        relays: Mapping[AgentID, Authorizer] | None = None,
        catalogue: Catalogue | None = None,
        calendars: Mapping[str, Calendar] | None = None,
        approvals: Collection[str] = (),
        permit: Permit | None = None,
        audit: AuditSink | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock: Clock = wall_clock,
    ) -> None:
        must_be("public_paths", public_paths, Collection, expected="a collection of exact paths")
        check_source(source)
        if audit is not None:
            must_have("audit", audit, "record", expected="an AuditSink", do="use trust.audit.AuditLog()")
        if signatures not in ("required", "optional"):
            raise ConfigurationError("signatures", got=signatures, expected='"required" or "optional"')
        signer(source.current().private_key)  # one that signs no answers is told now, and not to each caller
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
            approvals=approvals,
            permit=permit,
        )
        # Those that a caller may need, where that is known without a request.
        scopes = scope.scopes() if isinstance(scope, SkillScopes) else scope.split() if isinstance(scope, str) else ()
        self._resource = ProtectedResource(
            audience=tokens.audience, issuers=tokens.issuers, bindings=tokens.bindings, scopes=scopes
        )
        self._off_the_loop = OffTheLoop(self._policy.replay)

    @property
    def extension(self) -> dict[str, Any]:
        """The entry for `capabilities.extensions` of the Agent Card, as this gate does it; `secured` puts it there."""
        return declaration(self._policy.signatures)

    def secured(
        self,
        card: Mapping[str, Any],
        *,
        form: Form = "1.0",
        descriptions: Mapping[str, str] = MappingProxyType({}),
        token_urls: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The Agent Card with the members that say how to call the agent, as this gate does it (`oauth.cards`).

        Whoever does what it says gets in: to send a message for any skill, or for one, and to follow its task.

        Args:
            card: the other members, in the form that is asked for.
            form: of A2A "1.0", or "0.3" for clients that read no other.
            descriptions: of scopes, for people.
            token_urls: the token endpoint of each issuer that has it elsewhere than the embedded server.

        Raises:
            ConfigurationError: the gate's scope is a function; its skills are not the card's; or a description or URL
                is for what this gate has not.
        """
        policies = policies_of(
            issuers=self._policy.tokens.issuers,
            scope=self._policy.scope,
            signatures=self._policy.signatures,
            bindings=self._policy.tokens.bindings,
            descriptions=descriptions,
            token_urls=token_urls,
        )
        return secured(card, *policies, form=form)

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
        if self._resource.serves(scope["path"]) and scope["method"] in ("GET", "HEAD"):
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"max-age=300")]
            answer = Answer(200, headers, self._resource.document)
            await self._answer(scope, send, answer, _reference_of_public(scope))
            return
        facts: RequestFacts | None = None
        try:
            facts = await self._facts(scope, receive)
            admission = await self._off_the_loop.run(partial(judge, facts, self._policy))
        except TrustError as error:
            self._denied(scope, error)  # nothing was found out about the request, so nothing can be signed for it
            await self._answer(scope, send, self._refusal(scope, error, facts), None)
            return
        if isinstance(admission, Refusal):
            self._denied(scope, admission.error)
            await self._answer(scope, send, self._refusal(scope, admission.error, facts), admission.message)
            return
        self._allowed(scope, admission)
        caller = admission.caller
        admitted = {
            **scope,
            "user": caller,
            "auth": CallerCredentials(caller, self._policy, facts.now, admission.operation, admission.approved),
            "state": {**scope.get("state", {}), "caller": caller},
            # Those that were judged: a server may still add to the list in the scope (trailers, by httptools).
            "headers": _without_token(facts.headers),
        }
        check = partial(self._policy.tokens.check_denylist, admission.issuer, caller.token_id)
        send = allowed = WhileAllowed(send, check, partial(self._denied, scope))
        if admission.message is not None:
            admitted["headers"] = under_both_names(admitted["headers"])
            send = echoing(facts.headers, send)
        try:
            await self._run(admitted, with_body(facts.body, receive), send, admission.message)
        except Exception:
            if allowed.refused is None:
                raise  # what the application raises because it cannot go on, the trail has already

    async def _facts(self, scope: Scope, receive: Receive) -> RequestFacts:
        """Collect what arrived. In this order: what is cheap to refuse costs nobody memory, time or a fetch of keys."""
        headers = headers_of(scope)
        url = url_of(scope)
        check_declared_size(headers, self._max_body_bytes)
        peer = peer_of(scope)
        bearer = may_speak(peer, headers, self._policy)
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
                presented=presented_to(scope, request),
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
            await self._answer(scope, send, self._refusal(scope, refused), request)

    def _refusal(self, scope: Scope, error: TrustError, facts: RequestFacts | None = None) -> Answer:
        """What the wire learns: a status, an RFC error code, and challenges. Never the message."""
        content: dict[str, Any] = {"error": error.code or "unauthorized"}
        if isinstance(error, SignatureMissing) and facts is not None:  # A2A has an error of its own for this
            content = required_error(facts.body)
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        headers += self._resource.challenges(error, origin_of(scope))
        if error.status == 503:
            headers.append((b"retry-after", b"5"))
        return Answer(error.status, headers, json.dumps(content).encode())

    async def _answer(self, scope: Scope, send: Send, answer: Answer, request: Signed | None) -> None:
        """Send an answer; signed, where there is a request to bind it to."""
        no_body = scope["method"] == "HEAD" or answer.status in (204, 304)
        body = b"" if no_body else answer.body
        headers = answer.headers
        if request is not None:
            credentials = self._source.current()
            signature = sign_response(
                credentials,
                chain=presented_to(scope, request) not in (None, credentials.thumbprint),
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


def _proxy(scope: Scope) -> dict[str, str]:
    """For the trail: the proxy whose word it is that the caller is the peer, where there is one."""
    proxy = (scope.get("extensions") or {}).get(PROXY_EXTENSION)
    return {"proxy": str(proxy.agent_id)} if isinstance(proxy, PeerIdentity) else {}


def _reference_of_public(scope: Scope) -> RequestReference | None:
    """What a public answer can be bound to: never under the header of another request, which a proxy may put here."""
    peer, headers = peer_of(scope), headers_of(scope)
    try:
        return reference_of(headers, peer.agent_id, received=(scope["method"], url_of(scope))) if peer else None
    except RequestMalformed:
        return None


def _without_token(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name not in (b"authorization", b"dpop")]
