"""The commands of the README's first chapter: serve, token, enrol, renew, and what an operator does.

The service, an agent that enrols and renews, and the daemon are processes of their own; all else runs in this one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.interop.programs import needs
from tests.pki.cli.parts import ROOT, SECONDS, Run, Service, answer, one_line
from tests.pki.conftest import AGENT, DOMAIN
from tests.ports import free_port
from tests.redis_server import RedisServer
from trust.agent import agent_client, serving
from trust.audit import AuditLog
from trust.authorize import exactly, members_of
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.denylist import RedisDenylist
from trust.oauth.keys import RemoteKeys
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, CLIENT_CREDENTIALS, JWT_BEARER, JWT_TYPE, TOKEN_EXCHANGE
from trust.oauth.server.state import authorization_server
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier

PLANNER, BILLING = f"spiffe://{DOMAIN}/planner", f"spiffe://{DOMAIN}/rates"
SERVER = exactly(f"spiffe://{DOMAIN}/a2a-pki/server")
PARTNER, LEDGER = f"spiffe://{DOMAIN}/partner", f"spiffe://{DOMAIN}/ledger"
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]

[[client]]
agent_id = "{BILLING}"
assertion_scopes = ["agent:execute"]
resources = ["{LEDGER}"]

[[partner]]
issuer = "PARTNER"
jwks_uri = "PARTNER/jwks"
agent_id = "{PARTNER}"
trust_domains = ["{DOMAIN}"]
scopes = ["agent:execute"]
"""
PARTNERS_CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute", "delegate:rates"]
resources = ["{BILLING}"]

[[client]]
agent_id = "{BILLING}"
exchange_scopes = ["agent:execute"]
assertion_audiences = ["ISSUER"]
resources = []
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with contextlib.ExitStack() as stack:
        partner = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        where = f"https://127.0.0.1:{partner.getsockname()[1]}"
        (folder / "clients.toml").write_text(CLIENTS.replace("PARTNER", where))
        more: tuple[object, ...] = ("--authority", folder / "clients.toml", "--issuer", "https://127.0.0.1:{port}")
        redis = ""
        if shutil.which("redis-server"):
            redis = stack.enter_context(RedisServer(folder)).url
            more += ("--authority-redis", redis)
        running = Service(folder, *more)
        running.partner, running.redis = partner, redis
        yield running
        running.process.send_signal(signal.SIGTERM)
        code = running.process.wait(SECONDS)
        said = running.said()
        running.log.close()
    assert code == 0
    assert "Traceback" not in said


def test_an_agent_enrols_and_renews(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    token = run("token", service.ca, AGENT, "--lifetime", "2h", "--json").json["token"]
    enrolled = answer(*service.enrol(token, tmp_path / "billing"))
    first = Credentials.load(tmp_path / "billing")
    assert (enrolled["agent_id"], enrolled["thumbprint"]) == (AGENT, first.thumbprint)
    renewed = answer("renew", tmp_path / "billing")
    second = Credentials.load(tmp_path / "billing")
    assert renewed["thumbprint"] == second.thumbprint != first.thumbprint
    assert second.private_key.public_key() != first.private_key.public_key()
    assert {r["status"] for r in run("list", service.ca, "--agent", AGENT, "--json").json} == {"valid"}


def test_what_serve_says_is_what_enrol_needs(service: Service) -> None:
    assert service.fingerprint in service.said()
    assert service.url in service.said()


def test_one_line_for_what_is_refused(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    token = run("token", service.ca, AGENT, "--json").json["token"]
    pinned = ("--root-fingerprint", service.fingerprint)
    out = tmp_path / "out"
    wrong = ("enrol", "--ca", service.url, "--root-fingerprint", "sha256:" + "0" * 64, "--token", token, "--out", out)
    assert "fingerprint" in one_line(run(*wrong))
    assert "token" in one_line(run(*service.enrol(token[:-1] + ("0" if token[-1] != "0" else "1"), out)))
    assert run(*service.enrol(token, out)).code == 0
    assert "used" in one_line(run(*service.enrol(token, tmp_path / "another")))
    unreachable = f"https://127.0.0.1:{free_port()}"
    line = one_line(run("enrol", "--ca", unreachable, *pinned, "--token", token, "--out", tmp_path / "x"))
    assert unreachable in line
    assert token not in line
    assert "no token" in one_line(run("enrol", "--ca", service.url, *pinned))


def test_a_banned_agent_cannot_renew(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    name = f"spiffe://{DOMAIN}/banned"
    token = run("token", service.ca, name, "--json").json["token"]
    assert run(*service.enrol(token, tmp_path / "agent")).code == 0
    kept = Credentials.load(tmp_path / "agent")
    assert run("revoke", service.ca, name, "--ban").code == 0
    one_line(run("renew", tmp_path / "agent"))
    assert Credentials.load(tmp_path / "agent").thumbprint == kept.thumbprint


def test_the_daemon_renews_and_runs_the_hook(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    # The first is due at once, as its life counts from a minute before, and ends in 25 s. Where the machine is too busy
    # for a daemon to start within these, there is one that is due after half a minute, and lasts.
    for seconds in (25, 90):
        folder, ran = tmp_path / f"agent{seconds}", tmp_path / f"ran{seconds}"
        name = f"spiffe://{DOMAIN}/daemon{seconds}"
        token = run("token", service.ca, name, "--lifetime", f"{seconds}s", "--json").json["token"]
        assert run(*service.enrol(token, folder)).code == 0
        first = Credentials.load(folder)
        ends = time.monotonic() + seconds
        command = [sys.executable, "-m", "pki.cli", "renew", str(folder), "--daemon", "--hook", f"touch {ran}"]
        daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            while not ran.exists() and daemon.poll() is None and time.monotonic() < ends:
                time.sleep(0.05)
        finally:
            daemon.send_signal(signal.SIGTERM)
            errors = daemon.communicate(timeout=SECONDS)[1]
        if ran.exists():
            break
    assert ran.exists() and daemon.returncode == 0, errors
    assert "Traceback" not in errors
    assert Credentials.load(folder).thumbprint != first.thumbprint


def test_metrics_name_what_happened(service: Service) -> None:
    text = httpx.get(f"http://127.0.0.1:{service.http_port}/metrics").text
    for line in (
        r'a2a_pki_request_seconds_count\{event="enrol",status="200"\} [1-9]',
        r'a2a_pki_refused_total\{check="pki.token.used",event="enrol"\} [1-9]',
        r'a2a_pki_certificates\{state="valid"\} [1-9]',
    ):
        assert re.search(f"^{line}", text, re.MULTILINE), text


def test_the_public_port_enrols_nobody(service: Service) -> None:
    for path in ("simpleenroll", "simplereenroll", "cacerts"):
        assert httpx.post(f"http://127.0.0.1:{service.http_port}/.well-known/est/{path}").status_code == 404


# tokens from the same process


def enrolled(service: Service, agent: str, out: Path, run: Run) -> Credentials:
    token = run("token", service.ca, agent, "--json").json["token"]
    done = run(*service.enrol(token, out))
    assert done.code == 0, done.err
    return Credentials.load(out)


def test_an_agent_enrols_gets_a_token_calls_with_it_and_is_revoked(
    service: Service, tmp_path: Path, run: Run, password: None
) -> None:
    planner = enrolled(service, PLANNER, tmp_path / "planner", run)
    billing = enrolled(service, BILLING, tmp_path / "billing", run)
    bundles = TrustBundles.load(tmp_path / "planner" / "bundle.json")
    answer = asyncio.run(_call(service.url, planner, billing, bundles))
    assert answer == {"caller": PLANNER, "scopes": ["agent:execute"]}
    # A revoked agent gets no more tokens, although EST must still let it in and say what is wrong.
    assert run("revoke", service.ca, PLANNER).code == 0
    assert asyncio.run(_refused(service.url, planner, bundles)) == (401, {"error": "invalid_client"})
    assert asyncio.run(_asked(service.url, None, bundles)).status_code == 401
    assert {p.name for p in (service.ca / "authority").iterdir()} >= {"tokens.db", "signing-key.password"}
    said = service.said()
    for record in ('"event": "enrol"', '"event": "token"', '"event": "signing key"', "peer.revoked"):
        assert record in said
    assert "Traceback" not in said


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


async def _token(http: httpx.AsyncClient, issuer: str, **form: str) -> str:
    answer = await http.post(f"{issuer}/token", data=form)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def test_a_partner_vouches_for_a_caller(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    """Another authorization server, whose keys are fetched over mutual TLS; each assertion is good for one token."""
    planner, billing, partner = (
        enrolled(service, agent, tmp_path / agent.rpartition("/")[2], run) for agent in (PLANNER, BILLING, PARTNER)
    )
    bundles = TrustBundles.load(tmp_path / "planner" / "bundle.json")
    (tmp_path / "clients.toml").write_text(PARTNERS_CLIENTS.replace("ISSUER", service.url))
    there = f"https://127.0.0.1:{service.partner.getsockname()[1]}"
    server = authorization_server(
        clients=tmp_path / "clients.toml",
        issuer=there,
        folder=tmp_path / "state",
        url=None,
        password="secret",
        audit=AuditLog(),
    )

    async def work() -> tuple[dict[str, Any], int]:
        rule = exactly(PARTNER)
        with server as app:
            async with (
                serving(
                    app, source=partner, bundles=bundles, authorize=members_of(DOMAIN), sockets=[service.partner.dup()]
                ),
                agent_client(source=planner, bundles=bundles, authorize=rule) as of_planner,
                agent_client(source=billing, bundles=bundles, authorize=rule) as of_billing,
                agent_client(source=billing, bundles=bundles, authorize=SERVER) as http,
            ):
                subject = await _token(
                    of_planner,
                    there,
                    grant_type=CLIENT_CREDENTIALS,
                    client_id=PLANNER,
                    resource=BILLING,
                    scope="agent:execute delegate:rates",
                )
                assertion = await _token(
                    of_billing,
                    there,
                    grant_type=TOKEN_EXCHANGE,
                    client_id=BILLING,
                    subject_token=subject,
                    subject_token_type=ACCESS_TOKEN_TYPE,
                    requested_token_type=JWT_TYPE,
                    resource=service.url,
                    scope="agent:execute",
                )
                form = {
                    "grant_type": JWT_BEARER,
                    "client_id": BILLING,
                    "assertion": assertion,
                    "resource": LEDGER,
                    "scope": "agent:execute",
                }
                token = await _token(http, service.url, **form)
                again = await http.post(f"{service.url}/token", data=form)
                payload = token.split(".")[1]
                return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))), again.status_code

    claims, again = asyncio.run(work())
    assert (claims["iss"], claims["sub"], claims["act"]["sub"]) == (service.url, PLANNER, BILLING)
    assert again == 400
    assert "Traceback" not in service.said()


@needs("redis-server")
def test_redis_has_the_list_of_revoked_tokens(service: Service, tmp_path: Path, run: Run, password: None) -> None:
    planner = enrolled(service, PLANNER, tmp_path / "planner", run)
    bundles = TrustBundles.load(tmp_path / "planner" / "bundle.json")

    async def work() -> None:
        async with agent_client(source=planner, bundles=bundles, authorize=SERVER) as http:
            form = {"client_id": PLANNER, "resource": BILLING, "scope": "agent:execute"}
            token = await _token(http, service.url, grant_type=CLIENT_CREDENTIALS, **form)
            keys = RemoteKeys(f"{service.url}/jwks", http)
            await keys.prepare(None, now=datetime.now(UTC))
            validator = TokenValidator(issuer=service.url, audience=BILLING, keys=keys)
            peer = PeerVerifier(bundles).verify(planner.chain_der, now=datetime.now(UTC), usage="client")
            token_id = validator.validate(token, peer=peer, now=datetime.now(UTC)).token_id
            answer = await http.post(f"{service.url}/revoke", data={"client_id": PLANNER, "token": token})
            assert answer.status_code == 200
            until = time.monotonic() + SECONDS
            while True:
                denylist = RedisDenylist(service.redis, issuer=service.url, keys=keys)
                await denylist.prepare()
                if denylist.contains(service.url, token_id):
                    return
                assert time.monotonic() < until, "the token is revoked, and not on the list"
                await asyncio.sleep(0.2)

    asyncio.run(work())
