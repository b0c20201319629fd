"""What the gRPC tests are made of: a service of every kind of method, our server with it, channels of both kinds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.trust.tls.parts import AGENT, AGENTS, FORGE, SERVER, SERVERS
from trust.credentials import Credentials
from trust.tls.grpc_channel import grpc_channel
from trust.tls.grpc_server import grpc_server, peer_of_call

SECONDS = 20.0
PATH = "/agent.Service/"


class Service(grpc.GenericRpcHandler):
    """Of every kind of method; it answers with who called, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.go_on = asyncio.Event()

    def service(self, handler_call_details: Any) -> Any:
        kind = handler_call_details.method.removeprefix(PATH)
        make = getattr(grpc, f"{kind}_rpc_method_handler", None)
        return make and make(getattr(self, kind))

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.asked.append(request)
        return str(peer_of_call().agent_id).encode()

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.asked.append(request)
        yield str(peer_of_call().agent_id).encode()
        await self.go_on.wait()
        yield b"more"

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for request in requests:
            self.asked.append(request)
        return str(peer_of_call().agent_id).encode()

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.asked.append(request)
            yield str(peer_of_call().agent_id).encode()


@contextlib.asynccontextmanager
async def serving(
    service: grpc.GenericRpcHandler, *, source: Any = SERVER, bundles: Any = FORGE.bundles, **options: Any
) -> AsyncIterator[str]:
    """The address of our server."""
    arguments = {"authorize": AGENTS, **options}
    server, port = grpc_server("127.0.0.1:0", source=source, bundles=bundles, **arguments)
    server.add_generic_rpc_handlers((service,))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def stock(target: str, credentials: Credentials | None, *options: tuple[str, Any]) -> grpc.aio.Channel:
    """A channel as anybody makes it, by root and host name."""
    own = {"private_key": credentials.key_pem(), "certificate_chain": credentials.chain_pem} if credentials else {}
    tls = grpc.ssl_channel_credentials(FORGE.root.public_bytes(Encoding.PEM), **own)
    return grpc.aio.secure_channel(target, tls, options=[("grpc.ssl_target_name_override", "localhost"), *options])


async def call(channel: grpc.aio.Channel, kind: str = "unary_unary") -> bytes:
    """The first message of the answer."""
    method = getattr(channel, kind)(PATH + kind)
    request: Any = iter([b"hello"]) if kind.startswith("stream") else b"hello"
    answer = method(request, timeout=SECONDS)
    if kind.endswith("unary"):
        return bytes(await answer)
    async for message in answer:
        answer.cancel()
        return bytes(message)
    raise AssertionError("no answer")


async def refused(calling: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await calling
    return error.value.code(), error.value.details()


async def refusal(channel: grpc.aio.Channel, kind: str) -> tuple[grpc.StatusCode, str | None]:
    """How a call of this kind is refused.

    Where grpcio still writes to a call that has ended, it may say so instead of how it ended: then it is asked again.
    """
    for _ in range(3):
        found = await refused(call(channel, kind))
        if found != (grpc.StatusCode.INTERNAL, "Internal error from Core"):
            break
    return found


@contextlib.asynccontextmanager
async def channel_to(target: str, credentials: Any = AGENT, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    arguments = {"bundles": FORGE.bundles, "authorize": SERVERS, **options}
    async with await grpc_channel(target, source=credentials, **arguments) as channel:
        yield channel
