"""a2a-sdk's server behind the gate, its client before it: scopes by operation and skill, and the card that says so."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

import httpx
import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_task, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryPushNotificationConfigStore, InMemoryTaskStore
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Role,
    SendMessageRequest,
    TaskPushNotificationConfig,
    TaskState,
)
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from tests.world import ISSUER, World
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import ConfigurationError
from trust.middleware import AGENT_CARD_PATH, Gate
from trust.oauth.cards import CardRequirements, check_card, read_card
from trust.oauth.operations import SkillScopes
from trust.signing.http import MessageSigner

W = World()
BINDINGS = ("JSONRPC", "HTTP+JSON")
SCOPES = SkillScopes(
    default="agent:execute",
    operations={"GetTask": "task:read", "ListTasks": "task:list", "CreateTaskPushNotificationConfig": "task:push"},
    skills={"bill": "bill:write", "pay": "pay:write"},
    jsonrpc="/rpc",
    rest="/rest",
)
CARD: dict[str, Any] = {
    "name": "billing",
    "description": "Bills and pays.",
    "version": "1.0.0",
    "capabilities": {"streaming": True, "pushNotifications": True},
    "defaultInputModes": ["text/plain"],
    "defaultOutputModes": ["text/plain"],
    "skills": [
        {"id": skill, "name": skill, "description": f"Can {skill}.", "tags": ["money"]} for skill in ("bill", "pay")
    ],
}


class Trail:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.events.append(facts)


class Executor(AgentExecutor):
    """Makes a task that stays open, and remembers what the gate said of the request."""

    def __init__(self) -> None:
        self.skills: list[str | None] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        auth = context.call_context.state["auth"]
        self.skills.append(auth.operation.skill)
        assert "agent:execute" in auth.scopes
        assert context.task_id and context.context_id
        await event_queue.enqueue_event(new_task(context.task_id, context.context_id, TaskState.TASK_STATE_WORKING))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("not asked for here")


class Agent:
    """A running agent: the gate, the card that it wrote, and its trail."""

    def __init__(self, **gate: Any) -> None:
        self.trail, self.executor, self.app = Trail(), Executor(), Starlette()
        settings: dict[str, Any] = {"scope": SCOPES, "tokens": W.validator(), "signatures": "required", **gate}
        self.gate = Gate(
            self.app,
            source=W.billing,
            bundles=W.forge.bundles,
            authorize=exactly(W.planner.agent_id),
            public_paths=(AGENT_CARD_PATH,),
            audit=self.trail,
            **settings,
        )
        self.card: dict[str, Any] = {}
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        async with serving(
            self.gate, source=W.billing, bundles=W.forge.bundles, authorize=members_of("fleet.example")
        ) as server:
            self.url = server.url
            interfaces = [
                {"url": f"{server.url}{path}", "protocolBinding": binding, "protocolVersion": "1.0"}
                for binding, path in zip(BINDINGS, ("/rpc", "/rest"), strict=True)
            ]
            self.card = self.gate.secured({**CARD, "supportedInterfaces": interfaces})
            parsed = ParseDict(self.card, AgentCard())
            handler = DefaultRequestHandler(
                self.executor, InMemoryTaskStore(), parsed, push_config_store=InMemoryPushNotificationConfigStore()
            )
            self.app.router.routes += [
                *create_agent_card_routes(parsed),
                *create_jsonrpc_routes(handler, "/rpc"),
                *create_rest_routes(handler, path_prefix="/rest"),
            ]
            yield self

    @contextlib.asynccontextmanager
    async def caller(
        self, scopes: Collection[str], binding: str, *, streaming: bool = False, signed: bool = True
    ) -> AsyncIterator[Client]:
        """a2a-sdk's client, with a token for these scopes."""
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles) if signed else None
        issued = int(time.time())
        token = W.token(iat=issued, exp=issued + 600, scope=" ".join(scopes))
        async with agent_client(
            source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id), signer=signer
        ) as http:
            http.headers["authorization"] = f"Bearer {token}"
            config = ClientConfig(
                httpx_client=http, supported_protocol_bindings=[binding], streaming=streaming, polling=not streaming
            )
            yield ClientFactory(config).create(ParseDict(self.card, AgentCard()))

    async def decides(self, call: Any) -> str:
        """What the gate says to a call: the check that refused it, or "all"; whatever the agent makes of it then."""
        before = len(self.trail.events)
        with contextlib.suppress(Exception):
            await call
        (event,) = self.trail.events[before:]
        return str(event["check"])


def say(skill: str | None) -> Message:
    message = new_text_message("do it", role=Role.ROLE_USER)
    if skill is not None:
        message.metadata.update({"skillId": skill})
    return message


async def sent(client: Client, skill: str | None, **configuration: Any) -> str:
    """Send a message; the ID of the task."""
    request = SendMessageRequest(message=say(skill))
    if configuration:
        ParseDict(configuration, request.configuration)
    task = ""
    async for answer in client.send_message(request):
        task = answer.task.id or task
        break
    return task


WEBHOOK = {"url": "https://hooks.fleet.example/x"}
CALLS: dict[str, Any] = {
    "bill": lambda client, task: sent(client, "bill"),
    "pay": lambda client, task: sent(client, "pay"),
    "no skill": lambda client, task: sent(client, None),
    "unknown skill": lambda client, task: sent(client, "admin"),
    "bill, with a webhook": lambda client, task: sent(client, "bill", taskPushNotificationConfig=WEBHOOK),
    "get": lambda client, task: client.get_task(GetTaskRequest(id=task)),
    "list": lambda client, task: client.list_tasks(ListTasksRequest()),
    "cancel": lambda client, task: client.cancel_task(CancelTaskRequest(id=task)),
    "webhook": lambda client, task: client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task, **WEBHOOK)
    ),
}
ALL = "agent:execute bill:write pay:write task:read task:list task:push"
UNKNOWN = {"unknown skill": "scope.operation"}
MAY: dict[str, set[str]] = {
    ALL: set(CALLS) - {"unknown skill"},
    "agent:execute": {"cancel"},
    "agent:execute bill:write": {"bill", "cancel"},
    "agent:execute bill:write task:push": {"bill", "bill, with a webhook", "webhook", "cancel"},
    "agent:execute *:write pay:** bill:*": {"bill", "pay", "no skill", "cancel"},
    "bill:write pay:write": set(),
    "task:*": {"get", "list", "webhook"},
    "task:read": {"get"},
}


def test_both_bindings_get_the_same_decision() -> None:
    async def go() -> dict[str, dict[str, dict[str, str]]]:
        found: dict[str, dict[str, dict[str, str]]] = {}
        agent = Agent()
        async with agent.running():
            async with agent.caller(ALL.split(), "JSONRPC") as client:
                task = await sent(client, "bill")
            assert task
            for binding in BINDINGS:
                for scopes in MAY:
                    async with agent.caller(scopes.split(), binding) as client:
                        found.setdefault(binding, {})[scopes] = {
                            name: await agent.decides(call(client, task)) for name, call in CALLS.items()
                        }
        assert set(agent.executor.skills) == {"bill", "pay", None}
        return found

    found = asyncio.run(go())
    assert found["JSONRPC"] == found["HTTP+JSON"]
    assert found["JSONRPC"] == {
        scopes: {name: "all" if name in allowed else UNKNOWN.get(name, "scope.insufficient") for name in CALLS}
        for scopes, allowed in MAY.items()
    }


def test_streams_need_what_messages_need() -> None:
    async def go(binding: str) -> tuple[str, str]:
        agent = Agent()
        scopes = ["agent:execute", "bill:write"]
        async with agent.running(), agent.caller(scopes, binding, streaming=True) as client:
            return await agent.decides(sent(client, "bill")), await agent.decides(sent(client, "pay"))

    for binding in BINDINGS:
        assert asyncio.run(go(binding)) == ("all", "scope.insufficient")


# The card


async def follows(agent: Agent, scopes: Collection[str], skill: str | None, **options: Any) -> set[str]:
    """What the gate says to whoever sends a message and follows the task."""
    said = set()
    for binding in BINDINGS:
        async with agent.caller(scopes, binding, **options) as client:
            said.add(await agent.decides(sent(client, skill)))
            said.add(await agent.decides(client.get_task(GetTaskRequest(id="none"))))
            said.add(await agent.decides(client.cancel_task(CancelTaskRequest(id="none"))))
    return said


def test_whoever_does_what_the_card_says_gets_in_and_whoever_leaves_a_part_out_does_not() -> None:
    async def go() -> None:
        agent = Agent()
        async with agent.running():
            async with agent_client(
                source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id)
            ) as http:
                served = (await http.get(agent.url + AGENT_CARD_PATH)).json()
            needs = read_card(served)
            assert needs == read_card(agent.card)
            assert check_card(needs, issuers=[ISSUER]) == ISSUER
            assert needs.signatures_required and needs.mtls
            for skill, scopes in {None: needs.scopes, **{s: needs.scopes_for(s) for s in ("bill", "pay")}}.items():
                assert await follows(agent, scopes, skill) == {"all"}
                for left_out in scopes:
                    fewer = [scope for scope in scopes if scope != left_out]
                    assert "scope.insufficient" in await follows(agent, fewer, skill), (skill, left_out)
            assert await follows(agent, needs.scopes, None, signed=False) == {"signature.missing"}
            trusting = ssl.create_default_context(cadata=W.forge.root.public_bytes(Encoding.PEM).decode())
            trusting.check_hostname = False
            async with httpx.AsyncClient(verify=trusting) as stranger:
                with pytest.raises((httpx.TransportError, ssl.SSLError)):  # without a certificate, not even the card
                    await stranger.get(agent.url + AGENT_CARD_PATH)

    asyncio.run(go())


def card_of(**gate: Any) -> dict[str, Any]:
    agent = Agent(**gate)
    interfaces = [{"url": "https://billing.fleet.example/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]
    return agent.gate.secured({**CARD, "supportedInterfaces": interfaces})


def needs_of(**gate: Any) -> CardRequirements:
    return read_card(card_of(**gate))


def test_another_gate_is_another_card() -> None:
    usual = needs_of()
    assert usual.scopes == ("agent:execute", "bill:write", "pay:write", "task:read")
    assert usual.skills["bill"] == ("agent:execute", "bill:write", "task:read")

    one = needs_of(scope="agent:admin")
    assert (one.scopes, one.skills) == (("agent:admin",), {})

    optional = needs_of(signatures="optional")
    assert usual.signatures_required and not optional.signatures_required

    other = needs_of(tokens=W.validator(issuer="https://login.example"))
    assert other.servers[0][1] == "https://login.example/.well-known/oauth-authorization-server"

    stricter = SkillScopes(default="agent:x", skills={"bill": "b:x", "pay": "p:x"}, jsonrpc="/rpc")
    assert needs_of(scope=stricter).skills == {"bill": ("agent:x", "b:x"), "pay": ("agent:x", "p:x")}

    for scope in (SkillScopes(default="a:b", skills={"bill": "b:x"}, jsonrpc="/rpc"), lambda facts: "a:b"):
        with pytest.raises(ConfigurationError):
            card_of(scope=scope)
