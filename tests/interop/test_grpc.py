"""gRPC, A2A's third binding: a2a-sdk on both ends, and servers and channels that were made by grpcio alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from a2a.auth.user import User
from a2a.client import ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.grpc_handler import DefaultGrpcServerCallContextBuilder, GrpcHandler
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest
from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server
from google.protobuf.json_format import ParseDict

from tests.interop.fleet import BILLING, OTHER, PLANNER, Fleet
from trust.authorize import exactly
from trust.errors import PeerNotAllowed, UntrustedChain
from trust.identity import PeerIdentity
from trust.tls.grpc_channel import grpc_channel
from trust.tls.grpc_server import grpc_server, peer_of_call

SECONDS = 20.0


class Peer(User):
    """The verified caller, for a2a-sdk."""

    def __init__(self, peer: PeerIdentity) -> None:
        self._peer = peer

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def user_name(self) -> str:
        return str(self._peer.agent_id)


class Verified(DefaultGrpcServerCallContextBuilder):
    def build_user(self, context: grpc.aio.ServicerContext) -> User:
        return Peer(peer_of_call())


class Echo(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        answer = f"{context.call_context.user.user_name} said {context.get_user_input()}"
        await event_queue.enqueue_event(new_text_message(answer, role=Role.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def card(target: str) -> AgentCard:
    return ParseDict(
        {
            "name": "billing",
            "description": "answers",
            "version": "1.0.0",
            "supportedInterfaces": [{"url": target, "protocolBinding": "GRPC", "protocolVersion": "1.0"}],
            "capabilities": {"streaming": True},
            "defaultInputModes": ["text/plain"],
            "defaultOutputModes": ["text/plain"],
            "skills": [{"id": "echo", "name": "echo", "description": "answers", "tags": ["echo"]}],
        },
        AgentCard(),
    )


@asynccontextmanager
async def billing(fleet: Fleet, who: str = "billing") -> AsyncIterator[str]:
    """An a2a-sdk agent on our server."""
    server, port = grpc_server(
        "127.0.0.1:0",
        source=fleet[who].credentials,
        bundles=fleet.bundles,
        authorize=exactly(PLANNER),
        crls=fleet.lists,
    )
    target = f"127.0.0.1:{port}"
    handler = DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card(target))
    add_A2AServiceServicer_to_server(GrpcHandler(handler, Verified()), server)
    await server.start()
    try:
        yield target
    finally:
        await server.stop(None)


async def send(channel: grpc.aio.Channel, target: str, *, streaming: bool = False) -> str:
    """The answer to a message, by an a2a-sdk client."""
    config = ClientConfig(
        streaming=streaming, grpc_channel_factory=lambda _: channel, supported_protocol_bindings=["GRPC"]
    )
    client = ClientFactory(config).create(card(target))
    request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
    return "".join([get_message_text(part.message) async for part in client.send_message(request)])


def channel_of(fleet: Fleet, who: str, target: str, server: str = BILLING) -> Any:
    return grpc_channel(
        target,
        source=fleet[who].credentials,
        bundles=fleet.bundles,
        authorize=exactly(server),
        crls=fleet.lists,
    )


def stock_channel(fleet: Fleet, who: str | None, target: str) -> grpc.aio.Channel:
    """By the root and the name in the certificate."""
    own = (fleet[who].key.read_bytes(), fleet[who].chain.read_bytes()) if who else (None, None)
    tls = grpc.ssl_channel_credentials(fleet.root.read_bytes(), *own)
    return grpc.aio.secure_channel(f"localhost:{target.rpartition(':')[2]}", tls)


@pytest.mark.parametrize("streaming", [False, True], ids=["once", "stream"])
def test_a2a_over_our_grpc_on_both_ends(fleet: Fleet, streaming: bool) -> None:
    async def main() -> None:
        async with billing(fleet) as target, await channel_of(fleet, "planner", target) as channel:
            assert await send(channel, target, streaming=streaming) == f"{PLANNER} said hello"

    asyncio.run(main())


@pytest.mark.parametrize("streaming", [False, True], ids=["once", "stream"])
@pytest.mark.parametrize(
    ("who", "said"),
    [("other", "PERMISSION_DENIED: access_denied"), ("revoked", "UNAUTHENTICATED: invalid_token")],
)
def test_our_grpc_server_refuses_an_agent(fleet: Fleet, who: str, said: str, streaming: bool) -> None:
    async def main() -> None:
        async with billing(fleet) as target, await channel_of(fleet, who, target) as channel:
            with pytest.raises(A2AClientError, match=said):
                await send(channel, target, streaming=streaming)

    asyncio.run(main())


def test_our_channel_refuses_a_grpc_server(fleet: Fleet) -> None:
    async def main() -> None:
        async with billing(fleet) as target:
            with pytest.raises(PeerNotAllowed):
                await channel_of(fleet, "planner", target, OTHER)
        async with billing(fleet, "foreign server") as target:
            with pytest.raises(UntrustedChain):
                await channel_of(fleet, "planner", target)

    asyncio.run(main())


def test_a_stock_channel_calls_our_server(fleet: Fleet) -> None:
    async def main() -> None:
        async with billing(fleet) as target:
            async with stock_channel(fleet, "planner", target) as channel:
                assert await send(channel, target) == f"{PLANNER} said hello"
            for who in (None, "foreign"):
                async with stock_channel(fleet, who, target) as channel:
                    with pytest.raises(A2AClientError, match="UNAVAILABLE"):
                        await send(channel, target)

    asyncio.run(main())


@asynccontextmanager
async def stock_server(fleet: Fleet, who: str) -> AsyncIterator[str]:
    """It requires certificates of our CA, and answers with what grpcio itself found in the caller's."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b" ".join(context.auth_context()["peer_uri"])

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("agent.Service", {"who": method}),))
    pair = (fleet[who].key.read_bytes(), fleet[who].chain.read_bytes())
    tls = grpc.ssl_server_credentials([pair], fleet.root.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


def test_our_channel_calls_a_stock_server(fleet: Fleet) -> None:
    async def main() -> None:
        async with stock_server(fleet, "billing") as target:
            async with await channel_of(fleet, "planner", target) as channel:
                assert await channel.unary_unary("/agent.Service/who")(b"", timeout=SECONDS) == PLANNER.encode()
            with pytest.raises(PeerNotAllowed):
                await channel_of(fleet, "planner", target, OTHER)
            async with await channel_of(fleet, "foreign", target) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary("/agent.Service/who")(b"", timeout=SECONDS)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())
