"""Signed messages through a relay of the JavaScript SDK, between a client and a server of the Python SDK."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import rfc8785
from a2a.client import ClientConfig, ClientFactory
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import (
    AgentCard,
    Artifact,
    Message,
    SendMessageRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatusUpdateEvent,
)
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from tests.a2a_objects import EXAMPLES, MESSAGE, OBJECTS
from tests.endpoints import WEB, over_web
from tests.forge import Forge
from tests.interop.fleet import their_server
from tests.interop.programs import needs, save
from trust.authorize import exactly
from trust.clock import wall_clock
from trust.errors import SignatureWrong
from trust.identity import AgentID
from trust.peers import PeerVerifier
from trust.signing.http import new_message_id
from trust.signing.messages import EXTENSION, authenticate_message, sign_message
from trust.signing.proto_json import KINDS, Kind, canonical_form

pytestmark = [pytest.mark.slow, needs("node", "npm")]

FORGE = Forge()
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
VERIFIER = PeerVerifier(FORGE.bundles)
TYPES = {
    "Message": Message,
    "Artifact": Artifact,
    "Task": Task,
    "TaskStatusUpdateEvent": TaskStatusUpdateEvent,
    "TaskArtifactUpdateEvent": TaskArtifactUpdateEvent,
}


def sign(value: Any, kind: Kind, by: Any, to: AgentID) -> dict[str, Any]:
    return sign_message(value, kind, credentials=by, audience=to, now=wall_clock(), jti=new_message_id())


def payload(value: Any, kind: Kind, by: AgentID, to: AgentID) -> bytes:
    return authenticate_message(
        value, kind, audience=to, verifier=VERIFIER, now=wall_clock(), signers=exactly(by)
    ).payload


def answers(task: str, context: str) -> list[tuple[Kind, dict[str, Any]]]:
    """One object of each kind that a server sends, in the order of a stream, with an artifact that is signed, too."""
    here = {"contextId": context}
    artifact = sign(EXAMPLES["Artifact"], "Artifact", BILLING, PLANNER.agent_id)
    status = {**EXAMPLES["TaskStatusUpdateEvent"]["status"], "state": "TASK_STATE_COMPLETED"}
    return [
        ("Task", {**EXAMPLES["Task"], **here, "id": task}),
        (
            "TaskArtifactUpdateEvent",
            {**EXAMPLES["TaskArtifactUpdateEvent"], **here, "taskId": task, "artifact": artifact},
        ),
        ("TaskStatusUpdateEvent", {**here, "taskId": task, "status": status, "metadata": {"5": 5.0}}),
    ]


class Executor(AgentExecutor):
    """Answers `stream` with a task and its updates, everything else with a message; all of it signed."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        if context.message.message_id != "stream":
            message = {**MESSAGE, "role": "ROLE_AGENT", "contextId": context.context_id}
            signed = sign(message, "Message", BILLING, PLANNER.agent_id)
            await event_queue.enqueue_event(ParseDict(signed, Message()))
            return
        for kind, value in answers(context.task_id, context.context_id):
            signed = sign(value, kind, BILLING, PLANNER.agent_id)
            await event_queue.enqueue_event(ParseDict(signed, TYPES[kind]()))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def card(url: str) -> AgentCard:
    interface = {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    return ParseDict(
        {"name": "x", "capabilities": {"streaming": True}, "supportedInterfaces": [interface]}, AgentCard()
    )


@asynccontextmanager
async def relayed(js: Path, folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str, list[Any]]]:
    """A client, the URL of the relay, and what reached the server behind it, as it came over the wire."""
    received: list[Any] = []
    handler = DefaultRequestHandler(
        agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card("https://billing.example/")
    )
    application = Starlette(routes=create_jsonrpc_routes(handler, "/bundle"))

    async def in_front(scope: Any, receive: Any, send: Any) -> None:
        """The edge, where messages are verified: the SDK writes into them."""
        request = await receive()
        while request.get("more_body"):
            request["body"] += (more := await receive())["body"]
            request["more_body"] = more.get("more_body")
        received.append(json.loads(request["body"])["params"]["message"])
        waiting = [request]

        async def again() -> Any:
            return waiting.pop() if waiting else await receive()

        await application(scope, again, send)

    root = folder / "root.pem"
    root.write_bytes(WEB.root.public_bytes(Encoding.PEM))
    chain, key = save(folder, WEB.leaf("/relay"), "relay")
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(root)}
    async with (
        over_web(in_front, folder) as url,
        their_server("node", js / "relay.mjs", chain, key, url, env=environment) as relay,
        httpx.AsyncClient(verify=ssl.create_default_context(cafile=root), trust_env=False) as client,
    ):
        yield client, relay, received


async def send(client: httpx.AsyncClient, url: str, message: dict[str, Any], *, streaming: bool) -> list[Any]:
    """What a2a-sdk's client gets in answer to a message, as JSON."""
    a2a = ClientFactory(ClientConfig(httpx_client=client, streaming=streaming)).create(card(url))
    request = SendMessageRequest(message=ParseDict(message, Message()))
    return [MessageToDict(answer) async for answer in a2a.send_message(request)]


def test_messages_keep_their_signatures(js: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with relayed(js, tmp_path) as (client, relay, received):
            message = sign(MESSAGE, "Message", PLANNER, BILLING.agent_id)
            (answer,) = await send(client, relay, message, streaming=False)
            form = payload(received[0], "Message", PLANNER.agent_id, BILLING.agent_id)
            assert form == canonical_form("Message", MESSAGE)
            assert json.loads(payload(answer["message"], "Message", BILLING.agent_id, PLANNER.agent_id))["contextId"]

    asyncio.run(main())


def test_tasks_and_their_updates_keep_their_signatures(js: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with relayed(js, tmp_path) as (client, relay, _):
            message = sign({**MESSAGE, "messageId": "stream"}, "Message", PLANNER, BILLING.agent_id)
            task, artifact, status = await send(client, relay, message, streaming=True)
        forms = [
            payload(task["task"], "Task", BILLING.agent_id, PLANNER.agent_id),
            payload(artifact["artifactUpdate"], "TaskArtifactUpdateEvent", BILLING.agent_id, PLANNER.agent_id),
            payload(status["statusUpdate"], "TaskStatusUpdateEvent", BILLING.agent_id, PLANNER.agent_id),
        ]
        assert [json.loads(form).get("taskId") for form in forms] == [None, *[task["task"]["id"]] * 2]
        inner = artifact["artifactUpdate"]["artifact"]
        assert payload(inner, "Artifact", BILLING.agent_id, PLANNER.agent_id)
        inner["parts"][1]["data"] = 1
        with pytest.raises(SignatureWrong):
            payload(inner, "Artifact", BILLING.agent_id, PLANNER.agent_id)

    asyncio.run(main())


def test_the_relay_does_drop_what_no_signature_could_cover(js: Path, tmp_path: Path) -> None:
    """It is a real one: unknown members and defaults are gone when it has written the message again."""

    async def main() -> None:
        async with relayed(js, tmp_path) as (client, relay, received):
            signed = sign({"messageId": "m", "parts": [{"text": "a"}]}, "Message", PLANNER, BILLING.agent_id)
            message = {**signed, "contextId": "", "priority": 1}
            request = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
            await client.post(relay, json=request, headers={"a2a-version": "1.0"})
            assert set(received[0]) == {"messageId", "parts", "metadata"}
            assert set(received[0]["metadata"]) == {EXTENSION}
            assert payload(received[0], "Message", PLANNER.agent_id, BILLING.agent_id)

    asyncio.run(main())


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(KINDS).flatmap(lambda k: st.tuples(st.just(k), OBJECTS[k])), min_size=20, max_size=40))
def test_the_form_of_every_object_survives_javascript(js: Path, objects: list[tuple[Kind, Any]]) -> None:
    """In the form it comes back byte for byte, but for the order of members, which RFC 8785 sets right."""
    forms = [canonical_form(kind, value) for kind, value in objects]
    lines = [
        b'{"kind":"%s","value":%s}' % (kind.encode(), form) for (kind, _), form in zip(objects, forms, strict=True)
    ]
    done = subprocess.run(
        ["node", js / "round_trip.mjs"], input=b"\n".join(lines), capture_output=True, check=True, timeout=60
    )
    assert [rfc8785.dumps(json.loads(line)) for line in done.stdout.splitlines()] == forms
