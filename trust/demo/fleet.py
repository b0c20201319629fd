"""What the chapters share: the fleet, its agents, and the audit trail of its servers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from pki import CertificateAuthority
from trust.agent import agent_client, serving
from trust.audit import AuditLog, Decision
from trust.authorize import Authorizer, exactly
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.identity import AgentID, Caller
from trust.middleware import AGENT_CARD_PATH, Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys
from trust.oauth.tokens import TokenValidator
from trust.signing.http import MessageSigner
from trust.sources import Live
from trust.tls import Deadlines

DOMAIN = "fleet.example"
NAMES = ("planner", "billing", "archive", "auditor", "guest", "authority")
ID = {name: AgentID.parse(f"spiffe://{DOMAIN}/{name}") for name in NAMES}
SHORT_LIFE = timedelta(seconds=2)  # of the auditor's tokens, so that one expires while we watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of the journey. `ok` is False as soon as anything was not as it must be."""

    chapter: int
    what: str
    outcome: str
    ok: bool = True
    check: str = ""  # of a refusal: the check that refused
    status: str = ""  # of a refusal: what the refused side saw


class Trail:
    """The audit trail of all three servers: written to a file by an `AuditLog`, and kept for the last chapter."""

    def __init__(self, file: TextIO) -> None:
        self._log = AuditLog.to(file)
        self.events: list[dict[str, Any]] = []

    def record(self, *, event: str, decision: Decision, check: str, **facts: Any) -> None:
        self.events.append({"event": event, "decision": decision, "check": check, **facts})
        self._log.record(event=event, decision=decision, check=check, **facts)


class Fleet:
    """What the chapters share: one CA, the credentials of each agent, the running servers, the trail."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.stack = stack
        self.trail = Trail(stack.enter_context((folder / "audit.jsonl").open("w")))
        self.crls = Live(RevocationLists())
        self.ca: CertificateAuthority
        self.bundles: TrustBundles
        self.credentials: dict[str, Credentials] = {}
        self.sockets = {name: _listen() for name in ("authority", "billing", "archive")}
        self.url = {name: f"https://localhost:{s.getsockname()[1]}" for name, s in self.sockets.items()}
        self.servers: dict[str, Any] = {}

    def client(self, name: str, to: str, **options: Any) -> httpx.AsyncClient:
        """A client of agent `name` that will talk to agent `to` and to no other."""
        client = agent_client(
            source=self.credentials[name], bundles=self.bundles, authorize=exactly(ID[to]), crls=self.crls, **options
        )
        self.stack.push_async_callback(client.aclose)
        return client

    def tokens(self, name: str, to: str, *scopes: str) -> TokenSource:
        """Where agent `name` gets its tokens for agent `to`."""
        return TokenSource(
            issuer=self.url["authority"],
            resource=str(ID[to]),
            scopes=scopes,
            origins=(self.url[to],),
            source=self.credentials[name],
            http=self.client(name, "authority"),
        )

    def signer(self, name: str, to: str) -> MessageSigner:
        return MessageSigner(self.credentials[name], audience=ID[to], bundles=self.bundles, crls=self.crls)


def _listen() -> socket.socket:
    """A bound loopback socket: the port is known before the Agent Card that names it is written."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


async def start(fleet: Fleet, name: str, app: Any, authorize: Authorizer) -> None:
    fleet.servers[name] = await fleet.stack.enter_async_context(
        serving(
            app,
            source=fleet.credentials[name],
            bundles=fleet.bundles,
            authorize=authorize,
            crls=fleet.crls,
            audit=fleet.trail,
            # A server ends the connections of a revoked peer by itself, usually within half a second. Here a request is
            # to come first, so that it is seen what the gate says to it.
            deadlines=Deadlines(trust_check=60),
            sockets=[fleet.sockets[name]],
        )
    )


def _gate(fleet: Fleet, name: str, app: Any, authorize: Authorizer, scope: str) -> Gate:
    keys = RemoteKeys(f"{fleet.url['authority']}/jwks", fleet.client(name, "authority"))
    return Gate(
        app,
        source=fleet.credentials[name],
        bundles=fleet.bundles,
        crls=fleet.crls,
        authorize=authorize,
        tokens=TokenValidator(issuer=fleet.url["authority"], audience=str(ID[name]), keys=keys),
        scope=scope,
        signatures="required",
        public_paths=(AGENT_CARD_PATH,),
        audit=fleet.trail,
    )


class _Executor(AgentExecutor):
    """An a2a-sdk agent whose whole work is one function of the verified caller and the text."""

    def __init__(self, work: Callable[[Caller, str], Awaitable[str]]) -> None:
        self._work = work

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        caller: Caller = context.call_context.state["auth"].caller
        answer = await self._work(caller, context.get_user_input())
        await event_queue.enqueue_event(new_text_message(answer, role=Role.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("this agent answers at once")


def _agent(
    fleet: Fleet, name: str, authorize: Authorizer, scope: str, work: Callable[[Caller, str], Awaitable[str]]
) -> Gate:
    """An unchanged a2a-sdk server, with JSON-RPC binding and REST binding, behind the gate, which writes its card."""
    app, url = Starlette(), fleet.url[name]
    gate = _gate(fleet, name, app, authorize, scope)
    card = {
        "name": name,
        "description": f"The {name} agent of the demo",
        "version": "1.0.0",
        "supportedInterfaces": [
            {"url": f"{url}/a2a/jsonrpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": f"{url}/a2a/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
        ],
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": [{"id": name, "name": name, "description": "answers in one line", "tags": ["demo"]}],
    }
    parsed: AgentCard = ParseDict(gate.secured(card, descriptions={scope: f"use the {name} agent"}), AgentCard())
    handler = DefaultRequestHandler(agent_executor=_Executor(work), task_store=InMemoryTaskStore(), agent_card=parsed)
    app.router.routes += [
        *create_agent_card_routes(parsed),
        *create_jsonrpc_routes(handler, "/a2a/jsonrpc"),
        *create_rest_routes(handler, path_prefix="/a2a/rest"),
    ]
    return gate


def archive_agent(fleet: Fleet) -> Gate:
    async def work(caller: Caller, text: str) -> str:
        return json.dumps({"sub": caller.subject, "act": caller.actors, "cnf": caller.peer.thumbprint, "read": text})

    return _agent(fleet, "archive", exactly(ID["billing"]), "archive:read", work)


def billing_agent(fleet: Fleet) -> Gate:
    tokens = fleet.tokens("billing", "archive", "archive:read")

    async def work(caller: Caller, text: str) -> str:
        if not text.startswith("archive:"):
            return f"billed to {caller.subject}: {text}"
        on_behalf = tokens.on_behalf_of(
            caller.access_token,
            resource=str(ID["archive"]),
            scopes=["archive:read"],
            origins=[fleet.url["archive"]],
        )
        client = fleet.client("billing", "archive", tokens=on_behalf, signer=fleet.signer("billing", "archive"))
        return await say(client, fleet.url["archive"], text.removeprefix("archive:").strip(), binding="HTTP+JSON")

    return _agent(fleet, "billing", exactly(ID["planner"], ID["auditor"]), "agent:execute", work)


async def say(client: httpx.AsyncClient, url: str, text: str, *, binding: str = "JSONRPC") -> str:
    """Send one message with a2a-sdk's own client and return the text of the answer."""
    card = await A2ACardResolver(client, url).get_agent_card()
    config = ClientConfig(httpx_client=client, supported_protocol_bindings=[binding], streaming=False)
    a2a = ClientFactory(config).create(card)
    answers = [
        a async for a in a2a.send_message(SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER)))
    ]
    return get_message_text(answers[-1].message)
