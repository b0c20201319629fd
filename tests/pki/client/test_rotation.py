"""No call is dropped while the CAs change beneath the agents: by the schedule, by force, and after a compromise.

The CA service in a process of its own, two servers, and workers that call them again and again. Every one of them has
certificates of seconds, renews them by itself, and checks revocation.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pki import CertificateAuthority
from pki.client import Condition, RenewingCredentials, enrol
from pki.records import State
from tests.authority import Trail
from tests.pki.client.hurried import LIFETIME, hurry
from tests.pki.client.parts import DOMAIN, PASSWORD
from tests.pki.client.test_renewal import until
from tests.ports import free_port, listens
from trust import agent_client
from trust.authorize import exactly, members_of
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, TrustError, UntrustedChain
from trust.identity import fingerprint
from trust.peers import verify_peer
from trust.tls import serving

SERVERS, WORKERS = ("billing", "ledger"), ("one", "two", "three")
ROOT = Path(__file__).parents[3]


class Fleet:
    """The CA, its service, and the agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = CertificateAuthority.create(
            folder / "ca", trust_domain=DOMAIN, password=PASSWORD, public_url="http://pki.fleet.example"
        )
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = (folder / "log").open("wb")
        self.agents: dict[str, RenewingCredentials] = {}

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.pki.client.hurried", str(self.folder / "ca"), str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log)
        until(self.listens, 30)

    def listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
        return listens(self.port)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        self.log.close()
        self.ca.close()

    def enrol(self, name: str, lifetime: timedelta = LIFETIME) -> Path:
        root = fingerprint(self.ca.root.public_bytes(Encoding.DER))
        token = self.ca.create_token(agent_id(name), lifetime=lifetime).text
        enrol(self.url, root_fingerprint=root, token=token, folder=self.folder / name)
        return self.folder / name

    def states(self, kind: str) -> list[State]:
        return [record.state for record in self.ca.issuers() if record.kind == kind]

    def everybody(self, condition: Callable[[RenewingCredentials], bool]) -> bool:
        return all(condition(agent) for agent in self.agents.values())

    def below(self, intermediate: x509.Certificate) -> bool:
        return self.everybody(lambda agent: agent.current().chain[1] == intermediate)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    hurry(monkeypatch.setattr)
    made = Fleet(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def agent_id(name: str) -> str:
    return f"spiffe://{DOMAIN}/{name}"


def key_id(certificate: x509.Certificate) -> str:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def parent(certificate: x509.Certificate) -> str:
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return (issuer.key_identifier or b"").hex()


async def answer(_: Request) -> Response:
    await asyncio.sleep(0.002)  # so that what changes meets requests that are under way
    return PlainTextResponse("done")


async def reached(condition: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


class Calls:
    """Workers that call every server in turn until they are told to stop, and what came of it."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[str] = []
        self.phase = "start"
        self.stop = False

    async def work(self, client: Any, urls: list[str]) -> None:
        for url in itertools.cycle(urls):
            if self.stop:
                return
            try:
                response = await client.get(url)
                assert (response.status_code, response.text) == (200, "done")
            except Exception as error:
                self.failures.append(f"{self.phase}: {type(error).__name__}: {str(error)[:200]}")
            self.count += 1
            await asyncio.sleep(0.02)  # the agents and the service need the processor, too


async def call(url: str, server: str, source: Credentials, trusting: RenewingCredentials) -> int:
    async with agent_client(
        source=source, bundles=trusting.bundles, authorize=exactly(agent_id(server)), crls=trusting.crls
    ) as client:
        return (await client.get(url)).status_code


@pytest.mark.slow
def test_no_call_fails_across_rotations_a_restart_and_a_compromise(fleet: Fleet) -> None:
    calls = Calls()
    sleeper = fleet.enrol("sleeper", timedelta(hours=1))
    first_root = fleet.ca.root

    async def scenario(urls: dict[str, str]) -> None:
        ca, everybody = fleet.ca, fleet.everybody

        calls.phase = "root, prepared"
        ca.rotate(kind="root", force=True)
        assert fleet.states("root") == [State.ACTIVE, State.PREPARED]

        calls.phase = "intermediate"
        former = ca.intermediate
        ca.rotate(kind="intermediate", force=True)
        await reached(lambda: ca.intermediate != former)
        await reached(lambda: fleet.below(ca.intermediate))
        await reached(lambda: everybody(lambda agent: len(bundle(agent).roots) == 2))

        # Everybody has a whole life left for as long as a busy machine takes to start the service.
        await asyncio.to_thread(lambda: [agent.renew() for agent in fleet.agents.values()])
        calls.phase = "restart"
        fleet.kill()
        await asyncio.to_thread(fleet.start)
        await reached(lambda: fleet.states("root") == [State.RETIRING, State.ACTIVE])
        calls.phase = "root, active"
        assert ca.root != first_root
        # Its own intermediate follows when its lists have been out for a poll; then everybody is below the new root.
        await reached(lambda: parent(ca.intermediate) == key_id(ca.root))
        await reached(lambda: fleet.below(ca.intermediate))
        await reached(lambda: fleet.states("root") == [State.REVOKED, State.ACTIVE])
        calls.phase = "root, withdrawn"
        await reached(lambda: everybody(lambda agent: bundle(agent).roots == (ca.root,)))

        calls.phase = "compromise"
        tainted = ca.intermediate
        thief = ca.issue_credentials(agent_id("thief"))
        brief = ca.issue_credentials(agent_id("thief"), lifetime=LIFETIME * 60)
        trusting = fleet.agents["one"]
        assert await call(urls["billing"], "billing", brief, trusting) == 200
        ca.taint(key_id(tainted))
        assert ca.intermediate != tainted
        await reached(lambda: fleet.below(ca.intermediate))
        await reached(lambda: everybody(lambda agent: believed(agent, brief, ca) is CertificateRevoked))
        calls.phase = "revoked"
        for server, url in urls.items():
            for stolen in (thief, brief):
                with pytest.raises(TrustError, match="revoked"):
                    await call(url, server, stolen, trusting)
        before = calls.count
        await reached(lambda: calls.count > before + 50)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            urls = {}
            for name in SERVERS:
                source = fleet.agents[name]
                server = serving(
                    Starlette(routes=[Route("/", answer)]),
                    source=source,
                    bundles=source.bundles,
                    crls=source.crls,
                    authorize=members_of(DOMAIN),
                    audit=Trail(),
                )
                urls[name] = (await stack.enter_async_context(server)).url
            tasks = []
            for name in WORKERS:
                source = fleet.agents[name]
                client = agent_client(
                    source=source,
                    bundles=source.bundles,
                    crls=source.crls,
                    authorize=exactly(*map(agent_id, SERVERS)),
                )
                await stack.enter_async_context(client)
                tasks.append(asyncio.ensure_future(calls.work(client, list(urls.values()))))
            try:
                await scenario(urls)
            except BaseException as error:
                error.add_note(f"{calls.phase}: {[str(agent.health) for agent in fleet.agents.values()]}")
                raise
            finally:
                calls.stop = True
                await asyncio.gather(*tasks)

    with ExitStack() as stack:
        for name in (*SERVERS, *WORKERS):
            fleet.agents[name] = stack.enter_context(RenewingCredentials(fleet.enrol(name)))
        asyncio.run(main())
        assert not calls.failures, (calls.count, Counter(calls.failures))
        assert calls.count > 100
        assert fleet.everybody(lambda agent: agent.health.condition is Condition.HEALTHY)
    away_during_all_of_it(fleet, sleeper)


def bundle(agent: RenewingCredentials) -> Any:
    return agent.bundles.current().by_domain[DOMAIN]


def believed(agent: RenewingCredentials, credentials: Credentials, ca: CertificateAuthority) -> type[TrustError] | None:
    """How an agent judges another's certificate, with what it knows now."""
    try:
        verify_peer(
            credentials.chain_der,
            bundles=agent.bundles.current(),
            now=ca._clock(),
            crls=agent.crls.current(),
            usage="client",
        )
    except TrustError as error:
        return type(error)
    return None


def away_during_all_of_it(fleet: Fleet, sleeper: Path) -> None:
    """It knows the first root only, which nobody proves anything with any more: it says so, and what to do."""
    with RenewingCredentials(sleeper) as agent:
        until(lambda: agent.health.trust_problem)
        assert agent.health.condition is Condition.HEALTHY, "its own certificate is good for a while"
        with pytest.raises(UntrustedChain, match="enrol again"):
            agent.renew()
        for problem in (agent.health.trust_problem or "", str(agent.health)):
            assert "root that this agent does not know" in problem
            assert "enrol again: with a new token, and with the new root's fingerprint" in problem
        fleet.enrol("sleeper", timedelta(hours=1))
        until(lambda: agent.health.condition is Condition.HEALTHY)
        assert bundle(agent).roots == (fleet.ca.root,)
        assert agent.renew().chain[1] == fleet.ca.intermediate
        agent.poll()
        assert agent.health.trust_problem is None
