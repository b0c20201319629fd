"""The agent `billing`: an a2a-sdk server as you would write it anyway, behind the gate."""

import sys

from a2a.helpers.proto_helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

import trust

ISSUER, URL = "https://localhost:8400", "https://localhost:8443"
us = trust.Credentials.load("fleet/billing")
bundles = trust.TrustBundles.load("fleet/billing/bundle.json")
callers = trust.exactly("spiffe://fleet.example/planner")


class Billing(AgentExecutor):
    async def execute(self, context, event_queue):
        caller = context.call_context.state["auth"].caller
        answer = f"billed to {caller.subject}: {context.get_user_input()}"
        await event_queue.enqueue_event(new_text_message(answer, role=Role.ROLE_AGENT))

    async def cancel(self, context, event_queue):
        raise NotImplementedError("this agent answers at once")


app = Starlette()
authority = trust.agent_client(source=us, bundles=bundles, authorize=trust.exactly("spiffe://fleet.example/authority"))
keys = trust.RemoteKeys(f"{ISSUER}/jwks", authority)
tokens = trust.TokenValidator(issuer=ISSUER, audience=str(us.agent_id), keys=keys)
who = {"source": us, "bundles": bundles, "authorize": callers, "audit": trust.AuditLog.to(sys.stdout)}
public = ["/.well-known/agent-card.json"]
gate = trust.Gate(app, **who, tokens=tokens, scope="agent:execute", signatures="required", public_paths=public)

card = {"name": "billing", "description": "bills", "version": "1"}
card["skills"] = [{"id": "bill", "name": "bill", "description": "bills what you say", "tags": ["billing"]}]
card |= {"defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"]}
card["supportedInterfaces"] = [{"url": f"{URL}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]
parsed = ParseDict(gate.secured(card, descriptions={"agent:execute": "use the billing agent"}), AgentCard())
handler = DefaultRequestHandler(Billing(), InMemoryTaskStore(), parsed)
app.router.routes += [*create_agent_card_routes(parsed), *create_jsonrpc_routes(handler, "/a2a")]
trust.serve(gate, **who, port=8443)
