"""An unchanged a2a-sdk agent and an unchanged a2a-sdk client, with signed streams between them, over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from a2a.client import ClientCallContext, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_text_message, new_text_status_update_event
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest, SubscribeToTaskRequest, Task, TaskState, TaskStatus
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from tests.world import ISSUER, World
from trust import answers
from trust.agent import agent_client, serving
from trust.authorize import exactly
from trust.clock import wall_clock
from trust.errors import StreamTruncated
from trust.middleware import Gate
from trust.oauth.denylist import MemoryDenylist
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import MessageSigner

W = World()
PATIENCE = 20.0
TEXT = 'Grüße\u2028data: {"jsonrpc":"2.0"}\n\ndata: x'  # a text that would be several lines to a reader of lines
BINDINGS = ("JSONRPC", "HTTP+JSON")
TOKEN_ID = "token-1"


class Worker(AgentExecutor):
    """Says that it works, says it again when it is told, and that it is done when it is told; or fails."""

    def __init__(self) -> None:
        self.go_on = [asyncio.Event(), asyncio.Event()]

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task, where = context.task_id, context.context_id
        assert task and where
        if context.get_user_input() == "fail":
            raise RuntimeError("it failed")
        status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        await event_queue.enqueue_event(Task(id=task, context_id=where, status=status))
        states = (TaskState.TASK_STATE_WORKING, TaskState.TASK_STATE_WORKING, TaskState.TASK_STATE_COMPLETED)
        told = asyncio.Event()
        told.set()
        for state, text, wait in zip(states, (TEXT, "still", "done"), (told, *self.go_on), strict=True):
            await wait.wait()
            await event_queue.enqueue_event(
                new_text_status_update_event(task_id=task, context_id=where, state=state, text=text)
            )

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("nobody cancels here")


def card(url: str) -> AgentCard:
    interfaces = [
        {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
        {"url": f"{url}/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
    ]
    streaming = {"name": "worker", "capabilities": {"streaming": True}, "supportedInterfaces": interfaces}
    return ParseDict(streaming, AgentCard())


class Cutting:
    """Between the gate and the server: cuts the next stream behind so many of its events."""

    def __init__(self, app: Any) -> None:
        self.app, self.left = app, 1000
        self.wire: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def cutting(message: Any) -> None:
            if body := message.get("body", b""):
                if self.left == 0:
                    raise ConnectionResetError("cut")
                self.left -= body.startswith((b"data:", b"event:"))
                self.wire.append(body)
            await send(message)

        await self.app(scope, receive, cutting)


class SignsOnly(httpx.AsyncBaseTransport):
    """A client that signs what it asks and reads answers as everybody does, without looking at their signatures."""

    def __init__(self, verifying: httpx.AsyncClient, signer: MessageSigner) -> None:
        self.inner = verifying._transport._inner  # type: ignore[attr-defined]  # below what verifies
        self.signer = signer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        signed = self.signer.sign(
            method=request.method,
            url=str(request.url),
            body=await request.aread(),
            content_type=request.headers["content-type"],
            version=request.headers["a2a-version"],
        )
        request.headers["JWS-Signature"] = signed.jws
        return await self.inner.handle_async_request(request)  # type: ignore[no-any-return]  # as above


@contextlib.asynccontextmanager
async def called(
    worker: Worker,
    binding: str,
    seen: list[VerifiedMessage],
    *,
    verifying: bool = True,
    denylist: MemoryDenylist | None = None,
) -> AsyncIterator[tuple[Any, Cutting]]:
    handler = DefaultRequestHandler(worker, InMemoryTaskStore(), card("https://localhost"))
    gate = Gate(
        Starlette(routes=[*create_jsonrpc_routes(handler, "/rpc"), *create_rest_routes(handler, path_prefix="/rest")]),
        source=W.billing,
        bundles=W.forge.bundles,
        authorize=exactly(W.planner.agent_id),
        tokens=W.validator(denylist=denylist),
        scope="agent:execute",
        signatures="required",
        public_paths=(),
    )
    app = Cutting(gate)
    signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles, received=seen.append)
    ends: dict[str, Any] = {"bundles": W.forge.bundles}
    async with (
        asyncio.timeout(3 * PATIENCE),
        serving(app, source=W.billing, authorize=exactly(W.planner.agent_id), **ends) as server,
        agent_client(source=W.planner, authorize=exactly(W.billing.agent_id), signer=signer, **ends) as http,
    ):
        issued = int(time.time())
        if not verifying:
            http._transport = SignsOnly(http, signer)
        http.headers["authorization"] = f"Bearer {W.token(iat=issued, exp=issued + 600, jti=TOKEN_ID)}"
        config = ClientConfig(httpx_client=http, streaming=True, supported_protocol_bindings=[binding])
        yield ClientFactory(config).create(card(server.url)), app


def says(text: str) -> SendMessageRequest:
    return SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))


def shown(event: Any) -> str:
    """What the client's application sees of an event."""
    kind = event.WhichOneof("payload")
    if kind == "task":
        return f"task {TaskState.Name(event.task.status.state)}"
    return f"{TaskState.Name(event.status_update.status.state)} {event.status_update.status.message.parts[0].text}"


WORKING, STILL, DONE = f"TASK_STATE_WORKING {TEXT}", "TASK_STATE_WORKING still", "TASK_STATE_COMPLETED done"


@pytest.mark.parametrize("verifying", [True, False], ids=["verified", "as everybody reads it"])
@pytest.mark.parametrize("binding", BINDINGS)
def test_a_streaming_call(binding: str, verifying: bool) -> None:
    async def main() -> None:
        worker, seen = Worker(), list[VerifiedMessage]()
        for told in worker.go_on:
            told.set()
        async with called(worker, binding, seen, verifying=verifying) as (client, app):
            got = [shown(event) async for event in client.send_message(says("work"))]
        assert got == ["task TASK_STATE_SUBMITTED", WORKING, STILL, DONE]
        assert sum(body.startswith(b'data: {"metadata":{"urn:a2a-trust:') for body in app.wire) == 4
        assert [message.header["a2a"]["seq"] for message in seen] == ([0, 1, 2, 3, 4] if verifying else [])

    asyncio.run(main())


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_stream_that_was_cut_is_gone_on_with_by_subscribing_again(binding: str) -> None:
    async def main() -> None:
        worker, seen = Worker(), list[VerifiedMessage]()
        async with called(worker, binding, seen) as (client, app):
            app.left = 2
            stream = client.send_message(says("work"))
            first = [await anext(stream), await anext(stream)]
            assert [shown(event) for event in first] == ["task TASK_STATE_SUBMITTED", WORKING]
            worker.go_on[0].set()
            with pytest.raises(StreamTruncated) as cut:
                await anext(stream)
            last = cut.value.last_event_id
            assert [message.message_id for message in seen][-1] == last
            app.left, before = 1000, len(seen)
            resumed = client.subscribe(
                SubscribeToTaskRequest(id=first[0].task.id),
                context=ClientCallContext(service_parameters={"Last-Event-ID": last}),
            )
            # As A2A 1.0 has it (section 3.1.6): the task as it stands, and what comes then.
            assert shown(await anext(resumed)) == "task TASK_STATE_WORKING"
            worker.go_on[1].set()
            assert [shown(event) async for event in resumed][-1] == DONE
            claims = [message.header["a2a"] for message in seen[before:]]
            assert {named["last"] for named in claims} == {last}
            assert {named["sid"] for named in claims} & {seen[0].header["a2a"]["sid"]} == set()
            assert claims[-1]["fin"] is True

    asyncio.run(main())


@pytest.mark.parametrize("binding", BINDINGS)
def test_an_error_event_is_signed_like_any_other(binding: str) -> None:
    async def main() -> None:
        seen = list[VerifiedMessage]()
        async with called(Worker(), binding, seen) as (client, _):
            with pytest.raises(Exception) as caught:  # the SDK's own, of many kinds
                [event async for event in client.send_message(says("fail"))]
            assert not isinstance(caught.value, httpx.HTTPError | StreamTruncated), caught.value
        assert seen and b"error" in b"".join(message.payload for message in seen)

    asyncio.run(main())


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_stream_whose_token_is_revoked_is_cut(
    binding: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 0.0)
    worker, denylist = Worker(), MemoryDenylist()

    async def main() -> list[str]:
        got: list[str] = []
        async with called(worker, binding, [], denylist=denylist) as (client, _):
            with pytest.raises(StreamTruncated):
                async for event in client.send_message(says("work")):
                    got.append(shown(event))
                    if TEXT in got[-1]:
                        now = wall_clock()
                        denylist.deny(ISSUER, TOKEN_ID, expires_at=now + timedelta(minutes=10), now=now)
                        worker.go_on[0].set()
                        worker.go_on[1].set()
        return got

    got = asyncio.run(main())
    assert any(TEXT in text for text in got)
    assert not any("done" in text or "still" in text for text in got)
    assert [record for record in caplog.records if record.name == "a2a_trust"] == []
