"""The clients of a user: what they are made with, and what they do besides their transports."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.authority import BILLING, PLANNER, Trail
from tests.endpoints import WEB, over_web
from tests.trust.oauth import test_over_mtls as authority
from tests.trust.tls.parts import AGENT, FORGE, SERVER, SERVERS, echo, run
from trust.agent import agent_client, httpx2_agent_client, serving, sync_agent_client
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.errors import ConfigurationError, DestinationRefused, ResponseNotSigned
from trust.middleware import Gate
from trust.oauth.keys import RemoteKeys
from trust.oauth.tokens import TokenValidator
from trust.signing.http import HEADER, MessageSigner
from trust.tls import peer_of_response
from trust.tls.destinations import WebPKI

WEB_ROOT = WEB.root.public_bytes(Encoding.PEM).decode()
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


def signer(audience: Any) -> MessageSigner:
    return MessageSigner(AGENT, audience=audience, bundles=FORGE.bundles, signers=SERVERS)


@pytest.mark.parametrize(
    "audience",
    [SERVER.agent_id, "https://agent.example", {"https://agent.example": SERVER.agent_id}],
    ids=["one agent for everywhere", "one URL for everywhere", "agents by origin"],
)
@pytest.mark.parametrize("make", [agent_client, sync_agent_client, httpx2_agent_client])
def test_no_web_server_gets_a_signature_that_nobody_asked_for(make: Any, audience: Any) -> None:
    """It would learn who we are, and from whom it may say that it has come."""
    rules = {"https://agent.example": SERVERS, "https://web.example:8443": WebPKI()}
    with pytest.raises(ConfigurationError, match=r"got https://web.example:8443 without an audience"):
        make(**{**ARGUMENTS, "authorize": rules}, signer=signer(audience))


def test_a_web_server_that_the_signer_names_gets_a_signature_for_itself(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == HEADER.lower().encode())
        await echo(scope, receive, send)

    async def main() -> None:
        async with over_web(app, tmp_path) as url:
            origin = url.removesuffix("/bundle")
            rules = {"https://agent.example": SERVERS, origin: WebPKI(roots=WEB_ROOT)}
            by_origin = signer({"https://agent.example": SERVER.agent_id, origin: origin})
            async with agent_client(**{**ARGUMENTS, "authorize": rules}, signer=by_origin) as agent:
                with pytest.raises(ResponseNotSigned):  # not signed, and so not an answer
                    await agent.post(url, content=b"question")
            header = json.loads(base64.urlsafe_b64decode(seen[0].split(b".")[0] + b"=="))
            assert header["a2a"]["aud"] == origin

    run(main())


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


# httpx2.


def test_the_same_for_httpx2() -> None:
    async def main() -> None:
        async with here() as server, httpx2_agent_client(**ARGUMENTS, timeout=httpx2.Timeout(50)) as agent:
            response = await agent.post(server.url, content=b"question")
            assert (response.content, peer_of_response(response).agent_id) == (b"question", SERVER.agent_id)
            assert agent.timeout == httpx2.Timeout(50) and not agent.trust_env
            elsewhere = {**ARGUMENTS, "authorize": {"https://a.example": SERVERS}}
            async with httpx2_agent_client(**elsewhere) as other:
                assert other.timeout == httpx2.Timeout(60.0, connect=10.0, pool=10.0)
                with pytest.raises(DestinationRefused):
                    await other.get(server.url)

    run(main())


def test_a_token_and_a_signature_with_httpx2(tmp_path: Path) -> None:
    """Through the gate of a whole agent, and its signed answer is verified on the way back."""
    planner, billing = authority.FORGE.leaf(PLANNER), authority.FORGE.leaf(BILLING)
    fleet: dict[str, Any] = {"bundles": authority.FORGE.bundles}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = str(scope["state"]["caller"].subject).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def main() -> None:
        async with authority.world(tmp_path) as world:
            keys = RemoteKeys(f"{world.issuer}/jwks", world.http(billing))
            gate = Gate(
                app,
                source=billing,
                authorize=exactly(PLANNER),
                tokens=TokenValidator(issuer=world.issuer, audience=BILLING, keys=keys),
                scope="read:ledger.eu",
                signatures="required",
                public_paths=(),
                audit=Trail(),
                **fleet,
            )
            async with here(gate, source=billing, **fleet) as server:
                tokens = world.tokens(planner, origins=[server.url])
                signer = MessageSigner(planner, audience=BILLING, **fleet)
                arguments: dict[str, Any] = {"source": planner, "authorize": exactly(BILLING), **fleet}
                async with httpx2_agent_client(**arguments, tokens=tokens, signer=signer) as agent:
                    response = await agent.post(server.url, content=b"question")
                    assert (response.status_code, response.text) == (200, PLANNER)
                    assert HEADER in response.headers
                async with httpx2_agent_client(**arguments, signer=signer) as agent:
                    with pytest.raises(ResponseNotSigned, match="status 401"):
                        await agent.post(server.url, content=b"question")
                async with httpx2_agent_client(**arguments, tokens=tokens) as agent:
                    assert (await agent.post(server.url, content=b"question")).status_code == 401

    run(main())


@pytest.mark.parametrize("make", [agent_client, httpx2_agent_client])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": "creds/x"}, "source: got a value of type str, expected Credentials; use Credentials.load(path)"),
        ({"bundles": "b.json"}, "bundles: got a value of type str, expected TrustBundles; use TrustBundles.load(path)"),
        ({"tokens": "abc"}, "tokens: got a value of type str, expected a TokenSource"),
    ],
    ids=["source", "bundles", "tokens"],
)
def test_a_path_or_a_token_is_no_argument(make: Any, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(**{**ARGUMENTS, **changes})
    assert str(caught.value) == expected


def test_without_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trust.tls.httpx2", raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigurationError, match="this client needs httpx2"):
        httpx2_agent_client(**ARGUMENTS)
