"""The commands of the README's first chapter: serve, token, enrol, renew, and what an operator does.

The service, an agent that enrols and renews, and the daemon are processes of their own; all else runs in this one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.pki.cli.parts import Run, one_line
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD
from trust.agent import agent_client, serving
from trust.audit import AuditLog
from trust.authorize import exactly, members_of
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys
from trust.oauth.tokens import TokenValidator

ROOT = Path(__file__).parents[3]
SECONDS = 150
PLANNER, BILLING = f"spiffe://{DOMAIN}/planner", f"spiffe://{DOMAIN}/rates"
SERVER = exactly(f"spiffe://{DOMAIN}/a2a-pki/server")
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


def a2a_pki(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pki.cli", *map(str, arguments)],
        env={**os.environ, "A2A_PKI_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
    )


def answer(*arguments: object) -> Any:
    done = a2a_pki(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Service:
    """A CA in a folder, served by a process of its own."""

    def __init__(self, folder: Path, *more: object) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.ca = folder / "ca"
        made = answer("init", self.ca, "--trust-domain", DOMAIN, "--public-url", f"http://127.0.0.1:{self.http_port}")
        self.fingerprint = made["root_fingerprint"]
        self.url = f"https://127.0.0.1:{self.port}"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pki.cli", "serve", str(self.ca)),
                *("--port", str(self.port), "--http-port", str(self.http_port)),
                *(str(argument).replace("{port}", str(self.port)) for argument in more),
            ],
            env={**os.environ, "A2A_PKI_PASSWORD": PASSWORD},
            stderr=self.log,
            cwd=ROOT,
        )
        deadline = time.monotonic() + SECONDS
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.http_port}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def enrol(self, token: str, out: Path) -> tuple[object, ...]:
        return ("enrol", "--ca", self.url, "--root-fingerprint", self.fingerprint, "--token", token, "--out", out)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "clients.toml").write_text(CLIENTS)
    running = Service(folder, "--authority", folder / "clients.toml", "--issuer", "https://127.0.0.1:{port}")
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
    folder, ran = tmp_path / "agent", tmp_path / "ran"
    name = f"spiffe://{DOMAIN}/daemon"
    # Due at once, as its life counts from a minute before, and still valid for a daemon that is slow to start.
    token = run("token", service.ca, name, "--lifetime", "25s", "--json").json["token"]
    assert run(*service.enrol(token, folder)).code == 0
    first = Credentials.load(folder).thumbprint
    command = [sys.executable, "-m", "pki.cli", "renew", str(folder), "--daemon", "--hook", f"touch {ran}"]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + SECONDS
        while not ran.exists():
            assert daemon.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        daemon.send_signal(signal.SIGTERM)
        errors = daemon.communicate(timeout=SECONDS)[1]
    assert daemon.returncode == 0, errors
    assert "Traceback" not in errors
    assert Credentials.load(folder).thumbprint != first


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
