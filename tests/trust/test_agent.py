"""The clients of a user: what they are made with, and what they do besides their transports."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.trust.tls.parts import AGENT, FORGE, SERVER, SERVERS, echo, run
from trust.agent import agent_client, serving, sync_agent_client
from trust.authorize import unsafe_allow_any_peer
from trust.errors import DestinationRefused, ResponseNotSigned
from trust.signing.http import HEADER, MessageSigner
from trust.tls import peer_of_response

ARGUMENTS: dict[str, Any] = {"source": AGENT, "bundles": FORGE.bundles, "authorize": SERVERS}


def here(app: Any = echo, **options: Any) -> Any:
    defaults = {"source": SERVER, "bundles": FORGE.bundles, "authorize": unsafe_allow_any_peer(), "lifespan": "off"}
    return serving(app, **{**defaults, **options})


def test_a_call_from_a_thread() -> None:
    def talk(url: str) -> None:
        with sync_agent_client(**ARGUMENTS) as agent:
            response = agent.post(url, content=b"question")
            assert (response.content, peer_of_response(response).agent_id) == (b"question", SERVER.agent_id)
        elsewhere = {**ARGUMENTS, "authorize": {"https://a.example": SERVERS}}
        with sync_agent_client(**elsewhere) as agent, pytest.raises(DestinationRefused):
            agent.get(url)
        with sync_agent_client(**ARGUMENTS, crls=None, post_quantum="required") as agent:
            assert agent.get(url).status_code == 200

    async def main() -> None:
        async with here() as server:
            await asyncio.to_thread(talk, server.url)

    run(main())


def test_signed_from_a_thread() -> None:
    """Our server signs nothing, so its answer is none to a signed request."""
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == HEADER.lower().encode())
        await echo(scope, receive, send)

    def talk(url: str) -> None:
        signer = MessageSigner(AGENT, audience=SERVER.agent_id, bundles=FORGE.bundles)
        with sync_agent_client(**ARGUMENTS, signer=signer) as agent, pytest.raises(ResponseNotSigned):
            agent.post(url, content=b"question")

    async def main() -> None:
        async with here(app) as server:
            await asyncio.to_thread(talk, server.url)

    run(main())
    assert len(seen) == 1


def test_cookies_are_those_of_httpx() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent = [value for name, value in scope["headers"] if name == b"cookie"]
        headers = [(b"set-cookie", b"a=1"), (b"x-cookie", b", ".join(sent) or b"none")]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with here(app) as server, agent_client(**ARGUMENTS) as agent:
            assert (await agent.get(server.url)).headers["x-cookie"] == "none"
            assert (await agent.get(server.url)).headers["x-cookie"] == "a=1"
            agent.cookies = httpx.Cookies({"b": "2"})
            assert (await agent.get(server.url)).headers["x-cookie"] == "b=2"
            assert agent.cookies["a"] == "1"

    run(main())
