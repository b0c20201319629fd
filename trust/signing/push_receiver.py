"""The ASGI edge of a webhook: only verified notifications reach the application, together with who sent each of them.

It has no gate's other proofs. A webhook takes notifications for tasks that its owner has asked for, and nobody acts for
anybody by sending one; so a signature of an allowed agent is what it asks for, and no token.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from trust.asgi import MAX_BODY_BYTES, body_of, check_declared_size, headers_of, target_of, with_body
from trust.audit import AuditLog, AuditSink
from trust.authorize import Authorizer, a_rule
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    RequestMalformed,
    TrustError,
    WebhookRefused,
    WebhookUnknown,
    WebSocketRefused,
)
from trust.identity import peer_of
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard, OffTheLoop, ReplayGuard
from trust.signing.envelope import VerifiedMessage
from trust.signing.exchange import HEADER, content_type_of, signature_of
from trust.signing.push import verify_push, webhook_uri
from trust.signing.targets import origin_of


class PushReceiver:
    """ASGI middleware: `app` gets a POST to one of our webhooks only with the notification that it is, verified.

    The application finds it in `request.state.notification`, a `VerifiedMessage`: `payload` (the body's exact bytes,
    which it may also read as ever), `signer.agent_id`, and `audience`, which is the webhook. It compares the push
    configuration's token (X-A2A-Notification-Token), if it gave one away, and looks whether the task is one of its own.

    A request is for the webhook whose path and query it has. The signature must name that webhook by its whole URL as
    it is here, and so it does not matter what a Host header says, or which proxies the request came through.

    Args:
        app: the application.
        webhooks: the URLs, as they were given to the agents that notify. Two with the same path and query cannot be
            told apart.
        bundles, authorize, crls: whom we trust, which agents may notify, what is revoked.
        replay: a shared guard where several processes receive; memory by default.
        audit: where decisions are recorded.
        max_body_bytes: larger notifications are refused with 413.

    Not checked: how many come. Where anybody can connect, bound the connections (`trust.tls.Limits`, or a proxy).

    Raises:
        ConfigurationError: an argument that cannot be meant.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        webhooks: Collection[str],
        bundles: BundleSource,
        authorize: Authorizer,
        crls: RevocationSource | None = None,
        replay: ReplayGuard | None = None,
        audit: AuditSink | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock: Clock = wall_clock,
    ) -> None:
        self._app = app
        self._webhooks = _by_target(webhooks)
        self._verifier = PeerVerifier(bundles, RevocationLists() if crls is None else crls)
        self._signers = a_rule(authorize)
        self._replay = MemoryReplayGuard(started_at=clock()) if replay is None else replay
        self._off_the_loop = OffTheLoop(self._replay)
        self._audit = AuditLog(clock=clock) if audit is None else audit
        self._max_body_bytes = max_body_bytes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            self._denied(scope, WebSocketRefused("WebSocket", expected="a notification"))
            await send({"type": "websocket.close", "code": 1008})
        else:  # an unknown kind of connection is not let through unseen
            raise ConfigurationError("ASGI connection", got=scope["type"], expected="http, websocket or lifespan")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        try:
            notification = await self._verified(scope, headers, receive)
        except TrustError as error:
            self._denied(scope, error)
            await _refuse(error, send)
            return
        self._audit.record(
            event="push",
            decision="allow",
            check="all",
            peer=str(notification.signer.agent_id),
            target=f"POST {scope['path']}",
            message=notification.message_id,
        )
        # The headers are those that were judged: a server may still add to its list.
        state = {**scope.get("state", {}), "notification": notification}
        judged = {**scope, "headers": list(headers), "state": state}
        await self._app(judged, with_body(notification.payload, receive), send)

    async def _verified(
        self, scope: Scope, headers: tuple[tuple[bytes, bytes], ...], receive: Receive
    ) -> VerifiedMessage:
        """What is cheap to refuse costs nobody memory or time: the body is read last."""
        webhook = self._webhooks.get(target_of(scope))
        if webhook is None:
            raise WebhookUnknown("no webhook of ours", got=scope["path"], expected="the path and query of one")
        if scope["method"] != "POST":
            raise RequestMalformed("method of a notification", got=scope["method"], expected="POST")
        check_declared_size(headers, self._max_body_bytes)
        jws = signature_of(headers)
        content_type = content_type_of(headers, BindingMismatch)
        body = await body_of(receive, self._max_body_bytes)
        return await self._off_the_loop.run(
            partial(
                verify_push,
                jws,
                webhook=webhook,
                body=body,
                verifier=self._verifier,
                peer=peer_of(scope),
                now=self._clock(),  # after all waiting
                signers=self._signers,
                replay=self._replay,
                content_type=content_type,
            )
        )

    def _denied(self, scope: Scope, error: TrustError) -> None:
        peer, client = peer_of(scope), scope.get("client")
        self._audit.record(
            event="push",
            decision="deny",
            check=error.check,
            peer=str(peer.agent_id) if peer else (f"{client[0]}:{client[1]}" if client else "unknown"),
            target=f"{scope.get('method', scope['type'])} {scope['path']}",
            reason=str(error),
        )


def _by_target(webhooks: Collection[str]) -> dict[str, str]:
    """The URLs by the path and query that requests for them have."""
    if isinstance(webhooks, str) or not webhooks:
        raise ConfigurationError("webhooks", got=webhooks or "none", expected="a collection of URLs")
    found: dict[str, str] = {}
    for url in webhooks:
        try:
            target = webhook_uri(url).removeprefix(origin_of(url))
        except WebhookRefused as error:
            raise ConfigurationError(str(error)) from None
        if target in found:
            raise ConfigurationError("two webhooks with one path and query", got=url, expected="a path for each")
        found[target] = url
    return found


async def _refuse(error: TrustError, send: Send) -> None:
    """What the wire learns: a status and an error code. Never the message."""
    body = json.dumps({"error": error.code}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", HEADER.encode()))  # RFC 9110 section 11.6.1: there has to be one
    if error.status == 503:
        headers.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
