"""`a2a-pki serve --authority`: enrolment and tokens from one process, over real sockets."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.pki.cli.parts import Run, one_line
from tests.pki.cli.test_journey import Service
from tests.pki.conftest import DOMAIN
from trust.agent import agent_client, serving
from trust.audit import AuditLog
from trust.authorize import exactly, members_of
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys
from trust.oauth.tokens import TokenValidator

PLANNER, BILLING = f"spiffe://{DOMAIN}/planner", f"spiffe://{DOMAIN}/billing"
SERVER = exactly(f"spiffe://{DOMAIN}/a2a-pki/server")
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""
SECONDS = 60


def enrolled(service: Service, agent: str, out: Path, run: Run) -> Credentials:
    token = run("token", service.ca, agent, "--json").json["token"]
    done = run(*service.enrol(token, out))
    assert done.code == 0, done.err
    return Credentials.load(out)


def test_an_agent_enrols_gets_a_token_calls_with_it_and_is_revoked(tmp_path: Path, run: Run, password: None) -> None:
    (tmp_path / "clients.toml").write_text(CLIENTS)
    service = Service(tmp_path, "--authority", tmp_path / "clients.toml", "--issuer", "https://127.0.0.1:{port}")
    try:
        planner = enrolled(service, PLANNER, tmp_path / "planner", run)
        billing = enrolled(service, BILLING, tmp_path / "billing", run)
        bundles = TrustBundles.load(tmp_path / "planner" / "bundle.json")
        answer = asyncio.run(_call(service.url, planner, billing, bundles))
        assert answer == {"caller": PLANNER, "scopes": ["agent:execute"]}
        # A revoked agent gets no more tokens, although EST must still let it in and say what is wrong.
        assert run("revoke", service.ca, PLANNER).code == 0
        assert asyncio.run(_refused(service.url, planner, bundles)) == (401, {"error": "invalid_client"})
        assert asyncio.run(_asked(service.url, None, bundles)).status_code == 401
    finally:
        service.process.send_signal(signal.SIGTERM)
        code = service.process.wait(SECONDS)
        said = service.said()
        service.log.close()
    assert code == 0, said
    assert "Traceback" not in said
    assert {p.name for p in (service.ca / "authority").iterdir()} >= {"tokens.db", "signing-key.password"}
    for event in ('"event": "enrol"', '"event": "token"', '"event": "signing key"', "peer.revoked"):
        assert event in said


async def _call(issuer: str, planner: Credentials, billing: Credentials, bundles: TrustBundles) -> Any:
    async def call(request: Request) -> JSONResponse:
        return JSONResponse({"caller": str(request.user.display_name), "scopes": list(request.auth.scopes)})

    async with agent_client(source=billing, bundles=bundles, authorize=SERVER) as own:
        validator = TokenValidator(issuer=issuer, audience=BILLING, keys=RemoteKeys(f"{issuer}/jwks", own))
        fleet: dict[str, Any] = {"source": billing, "bundles": bundles, "authorize": members_of(DOMAIN)}
        gate = Gate(
            Starlette(routes=[Route("/", call)]),
            tokens=validator,
            scope="agent:execute",
            signatures="optional",
            public_paths=(),
            audit=AuditLog(),
            **fleet,
        )
        async with (
            serving(gate, port=0, **fleet) as resource,
            agent_client(source=planner, bundles=bundles, authorize=SERVER) as http,
        ):
            url = resource.url
            tokens = TokenSource(
                issuer=issuer, resource=BILLING, scopes=["agent:execute"], http=http, source=planner, origins=[url]
            )
            async with agent_client(
                source=planner, bundles=bundles, authorize=exactly(BILLING), tokens=tokens
            ) as client:
                answer = await client.get(url)
                assert answer.status_code == 200, answer.text
                return answer.json()


async def _asked(issuer: str, credentials: Credentials | None, bundles: TrustBundles) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": PLANNER, "resource": BILLING, "scope": "agent:execute"}
    async with agent_client(source=credentials, bundles=bundles, authorize=SERVER) as http:
        return await http.post(f"{issuer}/token", data=form)


async def _refused(issuer: str, credentials: Credentials, bundles: TrustBundles) -> tuple[int, Any]:
    until = time.monotonic() + SECONDS
    while (answer := await _asked(issuer, credentials, bundles)).status_code == 200:
        assert time.monotonic() < until, "the agent is revoked, and still gets tokens"
        await asyncio.sleep(0.2)
    return answer.status_code, answer.json()


def test_what_cannot_be_served_is_one_line(tmp_path: Path, run: Run, password: None) -> None:
    assert run("init", "ca", "--trust-domain", DOMAIN).code == 0
    issuer = ("--issuer", "https://localhost")
    assert "--issuer URL go together" in one_line(run("serve", "ca", "--authority", "clients.toml"), code=2)
    assert "--issuer URL go together" in one_line(run("serve", "ca", *issuer), code=2)
    assert "cannot read clients.toml" in one_line(
        run("serve", "ca", "--port", 0, "--authority", "clients.toml", *issuer)
    )
    Path("clients.toml").write_text(CLIENTS)
    wrong = ("serve", "ca", "--port", 0, "--authority", "clients.toml", "--issuer", "http://localhost")
    assert "expected an https URL" in one_line(run(*wrong))
    assert "--authority-state" in one_line(
        run("serve", "postgresql://x/y", "--authority", "clients.toml", *issuer), code=2
    )
    assert not Path("ca/authority").exists()
