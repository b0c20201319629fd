"""Signed push notifications: the signature, the client that makes it, and an unchanged a2a-sdk server that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)
from a2a.types import AgentCard, Role, SendMessageConfiguration, SendMessageRequest, Task, TaskPushNotificationConfig
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.endpoints import WEB, over_web, web_roots
from tests.forge import HOUR, NOW, Forge
from trust.agent import agent_client, push_client, serving
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.errors import ConfigurationError, Replayed, TypeWrong, WebhookRefused
from trust.peers import PeerVerifier
from trust.private_keys import generate
from trust.replay import MemoryReplayGuard
from trust.signing.evidence import verify_evidence
from trust.signing.exchange import HEADER, authenticate_request
from trust.signing.http import new_message_id
from trust.signing.push import PushSigningTransport, sign_push, verify_push, webhook_uri
from trust.signing.push_receiver import PushReceiver
from trust.sources import Live
from trust.tls.destinations import WebPKI

FORGE = Forge()
BILLING = FORGE.leaf("/billing")
PLANNER = FORGE.leaf("/planner")
VERIFIER = PeerVerifier(FORGE.bundles)
HOOK = "https://hooks.example/tasks?for=7"
BODY = b'{"task":{"id":"7"}}'
JSON = "application/json"
LOOPBACK = ("127.0.0.0/8", "::1/128")


def sign(**changes: Any) -> str:
    settings: dict[str, Any] = {"webhook": HOOK, "body": BODY, "now": NOW, "jti": new_message_id(), **changes}
    return sign_push(BILLING, content_type=JSON, **settings)


def verify(jws: str, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "webhook": HOOK,
        "body": BODY,
        "content_type": JSON,
        "verifier": VERIFIER,
        "peer": None,
        "now": NOW,
        "signers": exactly(BILLING.agent_id),
        "replay": MemoryReplayGuard(started_at=NOW - HOUR),
        **changes,
    }
    return verify_push(jws, **settings)


def test_what_is_signed_is_what_is_verified() -> None:
    guard = MemoryReplayGuard(started_at=NOW - HOUR)
    jws = sign(lifetime=timedelta(seconds=300))
    notification = verify(jws, replay=guard)
    assert (notification.payload, notification.audience) == (BODY, HOOK)
    assert notification.signer.agent_id == BILLING.agent_id
    assert notification.header["typ"] == "a2a-push+jws"
    assert len(notification.header["x5c"]) == 2  # so that a receiver without client certificates can verify it
    assert notification.expires_at - notification.issued_at == timedelta(seconds=300)
    with pytest.raises(Replayed):
        verify(jws, replay=guard)


def test_a_notification_is_no_call() -> None:
    """Somebody names an agent's own endpoint as the webhook: what comes there is signed, and is no request."""
    call: dict[str, Any] = {"method": "POST", "url": HOOK, "body": BODY, "audience": HOOK, "content_type": JSON}
    with pytest.raises(TypeWrong):
        authenticate_request(sign(), verifier=VERIFIER, peer=None, now=NOW, **call)


def test_a_notification_is_evidence() -> None:
    notification = verify(sign())
    bundle = notification.evidence(credentials=PLANNER, verifier=VERIFIER, jti=new_message_id())
    shown = verify_evidence(bundle, FORGE.bundles, at=NOW, receivers=exactly(PLANNER.agent_id))
    assert (shown.message.payload, shown.message.audience) == (BODY, HOOK)
    assert shown.receiver.agent_id == PLANNER.agent_id


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://hooks.example", "https://hooks.example/"),
        ("HTTPS://Hooks.Example:443/A?b=c", "https://hooks.example/A?b=c"),
        ("https://hooks.example:8443/a/%7Eb", "https://hooks.example:8443/a/%7Eb"),
    ],
)
def test_the_normal_form_of_a_webhook(url: str, normal: str) -> None:
    assert webhook_uri(url) == normal


class Noted(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(204)

    async def aclose(self) -> None:
        self.closed = True


async def post(url: str, *, method: str = "POST", headers: Any = None, source: Any = BILLING) -> httpx.Request:
    noted = Noted()
    transport = PushSigningTransport(noted, source, clock=lambda: NOW)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        await client.request(method, url, content=BODY, headers=headers)
    assert noted.closed
    return noted.requests[0]


def test_the_transport_signs_what_goes_over_the_wire() -> None:
    async def main() -> None:
        request = await post(HOOK, headers={"content-type": JSON, "x-a2a-notification-token": "t", HEADER: "a forgery"})
        assert verify(request.headers[HEADER]).payload == await request.aread()
        assert request.headers["x-a2a-notification-token"] == "t"

    asyncio.run(main())


def test_renewed_credentials_sign_the_next_notification() -> None:
    async def main() -> None:
        source = Live(BILLING)
        noted = Noted()
        async with httpx.AsyncClient(transport=PushSigningTransport(noted, source, clock=lambda: NOW)) as client:
            await client.post(HOOK, content=BODY)
            source.replace(renewed := FORGE.leaf("/billing"))
            await client.post(HOOK, content=BODY)
        signers = [verify(r.headers[HEADER], content_type="").signer.thumbprint for r in noted.requests]
        assert signers == [BILLING.thumbprint, renewed.thumbprint]

    asyncio.run(main())


def test_only_a_post_is_a_notification() -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="got GET, expected POST"):
            await post(HOOK, method="GET")

    asyncio.run(main())


def test_a_key_that_signs_nothing_here_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match="signing key: got MLDSA44PrivateKey"):
        push_client(
            source=FORGE.leaf("/billing", key=generate("ML-DSA-44")),
            bundles=FORGE.bundles,
            webhooks={},
            others=WebPKI(),
        )


# An unchanged a2a-sdk server, over real TLS.


class Work(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = Task(id=context.task_id, context_id=context.context_id)
        task.status.state = 1
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, str(context.task_id), str(context.context_id))
        await updater.start_work()
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("nobody cancels here")


def billing_agent(pushes: httpx.AsyncClient) -> tuple[Starlette, AgentCard]:
    """a2a-sdk's own server with a2a-sdk's own sender; ours is the client alone."""
    card: AgentCard = ParseDict(
        {
            "name": "billing",
            "version": "1",
            "capabilities": {"pushNotifications": True},
            "supportedInterfaces": [
                {"url": "https://localhost/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
            ],
        },
        AgentCard(),
    )
    configs = InMemoryPushNotificationConfigStore()
    handler = DefaultRequestHandler(
        agent_executor=Work(),
        task_store=InMemoryTaskStore(),
        agent_card=card,
        push_config_store=configs,
        push_sender=BasePushNotificationSender(pushes, configs),
    )
    return Starlette(routes=create_jsonrpc_routes(handler, "/rpc")), card


class Inbox:
    """The application behind a receiver: what it got, and by whom."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, str | None, dict[str, Any]]] = []
        self.done = asyncio.Event()

    async def take(self, request: Request) -> Response:
        notification = request.state.notification
        body = await request.json()
        assert json.loads(notification.payload) == body
        self.got.append((notification, request.headers.get("x-a2a-notification-token"), body))
        if body.get("statusUpdate", {}).get("status", {}).get("state") == "TASK_STATE_COMPLETED":
            self.done.set()
        return Response(status_code=204)

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/hook", self.take, methods=["POST"])])


class Late:
    """An application whose receiver is made when its port is known."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def ask(url: str, card: AgentCard, hook: str, token: str) -> None:
    """The planner sends a message with a2a-sdk's own client, and names a webhook."""
    card.supported_interfaces[0].url = f"{url}/rpc"
    async with agent_client(source=PLANNER, bundles=FORGE.bundles, authorize=exactly(BILLING.agent_id)) as http:
        a2a = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
        request = SendMessageRequest(
            message=new_text_message("bill it", role=Role.ROLE_USER),
            configuration=SendMessageConfiguration(
                task_push_notification_config=TaskPushNotificationConfig(url=hook, token=token)
            ),
        )
        assert [event async for event in a2a.send_message(request)]


@pytest.mark.parametrize("kind", ["an agent, by mutual TLS", "a web server"])
def test_an_unchanged_sdk_server_notifies(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        inbox, late, token = Inbox(), Late(), secrets.token_urlsafe()
        async with contextlib.AsyncExitStack() as stack:
            if kind == "a web server":
                hook = (await stack.enter_async_context(over_web(late, tmp_path))).replace("/bundle", "/hook")
                rules: dict[str, Any] = {
                    "webhooks": {},
                    "others": WebPKI(roots=web_roots(tmp_path).read_text()),
                    "networks": LOOPBACK,
                    "ports": (httpx.URL(hook).port,),
                }
            else:
                server = await stack.enter_async_context(
                    serving(
                        late,
                        source=PLANNER,
                        bundles=FORGE.bundles,
                        authorize=exactly(BILLING.agent_id),
                        lifespan="off",
                    )
                )
                hook = f"{server.url}/hook"
                rules = {"webhooks": {server.url: exactly(PLANNER.agent_id)}, "others": None}
            late.app = PushReceiver(
                inbox.app, webhooks=[hook], bundles=FORGE.bundles, authorize=exactly(BILLING.agent_id)
            )
            pushes = await stack.enter_async_context(push_client(source=BILLING, bundles=FORGE.bundles, **rules))
            app, card = billing_agent(pushes)
            billing = await stack.enter_async_context(
                serving(app, source=BILLING, bundles=FORGE.bundles, authorize=exactly(PLANNER.agent_id))
            )
            await ask(billing.url, card, hook, token)
            async with asyncio.timeout(20):
                await inbox.done.wait()
        assert {n.signer.agent_id for n, _, _ in inbox.got} == {BILLING.agent_id}
        assert {(n.audience, got) for n, got, _ in inbox.got} == {(hook, token)}
        assert len({n.message_id for n, _, _ in inbox.got}) == len(inbox.got) >= 2

    asyncio.run(main())


def test_the_webhook_is_signed_as_it_was_given(tmp_path: Path) -> None:
    """httpx writes the URL in its normal form; whoever gave it away compares with what was given."""

    async def main() -> None:
        inbox, late = Inbox(), Late()
        async with over_web(late, tmp_path) as url:
            hook = url.replace("https://localhost", "HTTPS://LocalHost").replace("/bundle", "/hook")
            late.app = PushReceiver(
                inbox.app, webhooks=[hook], bundles=FORGE.bundles, authorize=exactly(BILLING.agent_id)
            )
            origin = url.removesuffix("/bundle")
            async with push_client(
                source=BILLING,
                bundles=TrustBundles.of(WEB.bundle),
                webhooks={origin: WebPKI(roots=web_roots(tmp_path).read_text())},
                others=None,
            ) as client:
                answer = await client.post(hook, json={"task": {"id": "7"}})
                assert (answer.status_code, answer.content, dict(answer.headers)) == (204, b"", {})
                with pytest.raises(WebhookRefused, match="read in two ways"):
                    await client.post(hook.replace("/hook", "/x/../hook"), json={})
        assert [n.audience for n, _, _ in inbox.got] == [hook]

    asyncio.run(main())
