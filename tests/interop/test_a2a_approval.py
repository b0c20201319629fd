"""A person approves what an unchanged a2a-sdk agent does: its task waits as AUTH_REQUIRED, and goes on by itself.

All over real mutual TLS: the planner calls billing, and billing wants a refund of the ledger, whose gate demands that a
person has approved it. The person is at the command line of the authorization server.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_text_message, new_text_status_update_event
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, GetTaskRequest, Role, SendMessageRequest, Task, TaskState, TaskStatus
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.authority import BILLING, LEDGER, PLANNER, Trail
from tests.forge import Forge
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.cli import main as cli
from trust.errors import ApprovalRequired, TokenRequestRefused
from trust.identity import AgentID
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.metadata import APPROVED
from trust.oauth.server import create_app
from trust.oauth.server.approvals import ApprovalRules
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.signing.http import MessageSigner

AUTHORITY = "spiffe://fleet.example/authority"
FORGE = Forge()
PATIENCE = 30.0
CLIENTS = (
    Client(agent_id=AgentID.parse(PLANNER), scopes=("agent:execute",), resources=(BILLING,)),
    Client(agent_id=AgentID.parse(BILLING), scopes=("approve:refund",), resources=(LEDGER,)),
)


class Refunds(AgentExecutor):
    """Refunds at the ledger, and says how its task stands."""

    def __init__(self) -> None:
        self.http: Any = None
        self.url = ""
        self.tokens: Any = None

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task, where = context.task_id, context.context_id
        assert task and where

        async def say(state: TaskState.ValueType, text: str) -> None:
            event = new_text_status_update_event(task_id=task, context_id=where, state=state, text=text)
            await event_queue.enqueue_event(event)

        status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        await event_queue.enqueue_event(Task(id=task, context_id=where, status=status))
        try:
            try:
                answer = await self.http.post(self.url + "/refund", content=b"{}", auth=self.tokens)
            except ApprovalRequired as pending:
                await say(TaskState.TASK_STATE_AUTH_REQUIRED, f"a person has to approve {pending.approval_id}")
                await self.tokens.approved(pending)
                await say(TaskState.TASK_STATE_WORKING, "approved")
                answer = await self.http.post(self.url + "/refund", content=b"{}", auth=self.tokens)
        except TokenRequestRefused as refused:
            await say(TaskState.TASK_STATE_REJECTED, refused.error)
            return
        await say(TaskState.TASK_STATE_COMPLETED, f"{answer.status_code} {answer.text}")

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("nobody cancels here")


def decide(folder: Path, word: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The person at the command line."""
    capfd.readouterr()
    assert cli(["approval", "list", "--state", str(folder), "--json"]) == 0
    (shown,) = json.loads(capfd.readouterr().out)
    assert (shown["agent_id"], shown["resource"], shown["scope"]) == (BILLING, LEDGER, "approve:refund")
    assert cli(["approval", word, shown["id"], "--by", "alice", "--state", str(folder)]) == 0


@pytest.mark.parametrize("rules", [ApprovalRules(scopes=("approve:**",)), ApprovalRules(scopes=("other:x",))])
@pytest.mark.parametrize(("word", "end"), [("approve", "COMPLETED"), ("deny", "REJECTED")])
def test_a_task_waits_for_a_person_and_goes_on(
    rules: ApprovalRules,
    word: str,
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Asked for by the server's rules, or only by the ledger: then its gate answers with a step-up challenge."""
    monkeypatch.setattr("trust.oauth.server.approvals.INTERVAL_SECONDS", 1)
    seen: list[tuple[str, object]] = []
    trail = Trail()

    async def refund(request: Request) -> PlainTextResponse:
        seen.append((str(request.state.caller.agent_id), request.state.caller.subject))
        return PlainTextResponse("refunded")

    async def main() -> None:
        ours = {agent: FORGE.leaf(agent) for agent in (PLANNER, BILLING, LEDGER, AUTHORITY)}
        fleet: dict[str, Any] = {"bundles": FORGE.bundles}
        async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
            listener = socket.create_server(("127.0.0.1", 0))
            issuer = f"https://localhost:{listener.getsockname()[1]}"
            store = Store(f"sqlite:///{tmp_path / 'tokens.db'}")
            stack.callback(store.close)
            authority = create_app(
                issuer=issuer,
                clients=ClientRegistry(CLIENTS),
                store=store,
                keys=[SigningKey.generate()],
                audit=trail,
                approvals=rules,
            )
            members = members_of("fleet.example")
            await stack.enter_async_context(
                serving(authority, source=ours[AUTHORITY], authorize=members, sockets=[listener], **fleet)
            )

            async def http(agent: str, to: str, **options: Any) -> Any:
                client = agent_client(source=ours[agent], authorize=exactly(to), **options, **fleet)
                return await stack.enter_async_context(client)

            async def agent(name: str, app: Any, caller: str, scope: str, **options: Any) -> str:
                keys = RemoteKeys(f"{issuer}/jwks", await http(name, AUTHORITY))
                gate = Gate(
                    app,
                    source=ours[name],
                    authorize=exactly(caller),
                    tokens=TokenValidator(issuer=issuer, audience=name, keys=keys),
                    scope=scope,
                    signatures="required",
                    public_paths=(),
                    audit=trail,
                    **options,
                    **fleet,
                )
                server = serving(gate, source=ours[name], authorize=exactly(caller), **fleet)
                return (await stack.enter_async_context(server)).url

            async def tokens(name: str, to: str, scope: str, url: str) -> TokenSource:
                client = await http(name, AUTHORITY)
                return TokenSource(
                    issuer=issuer, http=client, source=ours[name], resource=to, scopes=[scope], origins=[url]
                )

            refunds = Refunds()
            ledger = Starlette(routes=[Route("/refund", refund, methods=["POST"])])
            refunds.url = await agent(LEDGER, ledger, BILLING, "approve:refund", approvals=["approve:**"])
            refunds.tokens = await tokens(BILLING, LEDGER, "approve:refund", refunds.url)
            signer = MessageSigner(ours[BILLING], audience=AgentID.parse(LEDGER), **fleet)
            refunds.http = await http(BILLING, LEDGER, signer=signer)

            if "other:x" in rules.scopes:
                plain = f"Bearer {(await refunds.tokens.token()).value}"
                answer = await refunds.http.post(
                    refunds.url + "/refund", content=b"{}", headers={"authorization": plain}
                )
                assert (answer.status_code, answer.json()) == (401, {"error": "insufficient_user_authentication"})
                challenge = answer.headers["www-authenticate"]
                assert challenge.startswith('Bearer error="insufficient_user_authentication"')
                assert f'acr_values="{APPROVED}"' in challenge
                assert 'scope="approve:refund"' in challenge

            handler = DefaultRequestHandler(refunds, InMemoryTaskStore(), AgentCard(name="billing"))
            app = Starlette(routes=create_jsonrpc_routes(handler, "/rpc"))
            url = await agent(BILLING, app, PLANNER, "agent:execute")
            signer = MessageSigner(ours[PLANNER], audience=AgentID.parse(BILLING), **fleet)
            asking = await tokens(PLANNER, BILLING, "agent:execute", url)
            config = ClientConfig(
                httpx_client=await http(PLANNER, BILLING, signer=signer, tokens=asking),
                streaming=False,
                supported_protocol_bindings=["JSONRPC"],
            )
            interface = {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
            card = ParseDict({"name": "billing", "capabilities": {}, "supportedInterfaces": [interface]}, AgentCard())
            planner = ClientFactory(config).create(card)

            message = new_text_message("refund it", role=Role.ROLE_USER)
            (answer,) = [a async for a in planner.send_message(SendMessageRequest(message=message))]
            assert answer.task.status.state == TaskState.TASK_STATE_AUTH_REQUIRED  # the call has been answered
            assert seen == []
            await asyncio.to_thread(decide, tmp_path, word, capfd)
            while True:
                task = await planner.get_task(GetTaskRequest(id=answer.task.id))
                if task.status.state not in (TaskState.TASK_STATE_AUTH_REQUIRED, TaskState.TASK_STATE_WORKING):
                    break
                await asyncio.sleep(0.1)
            assert task.status.state == TaskState.Value(f"TASK_STATE_{end}")
            text = task.status.message.parts[0].text
            assert text == ("200 refunded" if word == "approve" else "access_denied")
            assert seen == ([(BILLING, BILLING)] if word == "approve" else [])

    asyncio.run(main())
    approved = [r for r in trail.records if r.get("approved_by")]
    assert [r["approved_by"] for r in approved] == (["alice"] if word == "approve" else [])
    # Where the server's rules ask for nobody, the ledger's gate has, in words that any client understands.
    stepped_up = [r for r in trail.records if r["check"] == "scope.approval"]
    assert len(stepped_up) == (2 if "other:x" in rules.scopes else 0)
