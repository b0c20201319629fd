"""Another application behind the CA's listener: its own paths, and nobody whose certificate is revoked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pki import CertificateAuthority
from pki.service import upkeep
from pki.service.beside import Beside, Lent
from tests.authority import WithPeer
from tests.forge import NOW, Forge
from tests.pki.service.parts import Trail, ready, started, until
from trust.bundles import RevocationSource
from trust.errors import ConfigurationError
from trust.identity import peer_of
from trust.peers import PeerVerifier
from trust.sources import Live

FORGE = Forge()


async def who(request: Request) -> PlainTextResponse:
    peer = peer_of(request.scope)
    return PlainTextResponse(f"{request.url.path} {peer.agent_id if peer else 'nobody'}")


async def others(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("others")(scope, receive, send)


def app(*paths: str) -> Starlette:
    return Starlette(routes=[Route(path, who) for path in paths])


def lent(trail: Trail, crls: RevocationSource) -> Lent:
    ours = FORGE.leaf("/a2a-pki/server")
    return Lent(audit=trail, clock=lambda: NOW, credentials=Live(ours), bundles=FORGE.bundles, crls=crls)


def asked(beside: Beside, path: str, agent: Any = None) -> str:
    async def work() -> str:
        peer = None
        if agent is not None:
            peer = PeerVerifier(FORGE.bundles).verify(agent.chain_der, now=NOW, usage="client")
        transport = httpx.ASGITransport(WithPeer(beside, peer))
        async with httpx.AsyncClient(transport=transport, base_url="https://ca") as http:
            return (await http.get(path)).text

    return asyncio.run(work())


def test_each_has_its_paths_and_a_revoked_agent_is_nobody() -> None:
    trail, lists = Trail(), Live(FORGE.crls())
    beside = Beside(app("/token", "/jwks"), others, lent(trail, lists))
    agent = FORGE.leaf("/planner")
    assert asked(beside, "/token", agent) == "/token spiffe://fleet.example/planner"
    assert asked(beside, "/jwks") == "/jwks nobody"
    assert [asked(beside, path, agent) for path in ("/", "/token/", "/bundle")] == ["others"] * 3
    assert trail.records == []
    lists.replace(FORGE.crls(agent))
    assert asked(beside, "/token", agent) == "/token nobody"
    assert asked(beside, "/bundle", agent) == "others"  # EST decides by itself
    (record,) = trail.records
    assert (record["decision"], record["check"], record["peer"]) == ("deny", "peer.revoked", str(agent.agent_id))


def test_what_is_no_request_is_the_services() -> None:
    beside = Beside(app("/token"), others, lent(Trail(), FORGE.crls()))
    seen = []

    async def heard(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    beside._others = heard
    asyncio.run(beside({"type": "lifespan"}, None, None))  # type: ignore[arg-type]  # neither is called
    assert seen == ["lifespan"]


@pytest.mark.parametrize("path", ["/.well-known/est/simpleenroll", "/crl/x", "/ca/x"])
def test_a_path_of_the_service_is_not_taken(path: str) -> None:
    with pytest.raises(ConfigurationError, match="paths of the application beside the CA"):
        Beside(app(path), others, lent(Trail(), FORGE.crls()))


@contextlib.contextmanager
def checked(problems: list[str], _: Lent) -> Iterator[Starlette]:
    """An application that is not ready while there is a problem."""

    class Readiness:
        def check(self) -> None:
            if problems:
                raise ConfigurationError("authorization server is not ready", got=problems[0])

    beside = app("/health", "/ready", "/eu/ready")
    beside.state.readiness = Readiness()
    yield beside


def test_the_services_own_ready_speaks_for_both(
    own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.05)
    problems: list[str] = []
    with started(own_ca, beside=partial(checked, problems)) as running:
        assert all(ready(running).values())
        assert running.ask("GET", "/health").json() == {"status": "ok"}  # and not the application's
        assert running.ask("GET", "/ready").json()["ready"] is True
        assert running.ask("GET", "/eu/ready").text == "/eu/ready nobody"
        problems.append("database away")
        until(lambda: ready(running).get("upkeep.authorization server") is False)
        assert running.ask("GET", "/ready").status_code == 503
        assert "database away" not in running.ask("GET", "/ready").text
        problems.clear()
        until(lambda: all(ready(running).values()))
    assert "authorization server failed, and will be tried again: authorization server is not ready" in caplog.text
