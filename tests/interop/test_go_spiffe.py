"""go-spiffe, the reference library of SPIFFE, takes our certificates and bundles, and talks to our agents."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.forge import Forge
from tests.interop.conftest import DOMAIN
from tests.interop.programs import needs, run, save, save_bundle
from trust.agent import agent_client, serving
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import HandshakeRefused, PeerNotAllowed
from trust.identity import peer_of

pytestmark = [
    pytest.mark.slow,
    needs("go"),
    pytest.mark.timeout(300),
]  # the modules may have to be fetched and built first

PLANNER, BILLING, OTHER = (f"spiffe://{DOMAIN}/{name}" for name in ("planner", "billing", "other"))


@dataclass(frozen=True, kw_only=True)
class Party:
    """An agent, and its files for the Go side."""

    credentials: Credentials
    files: tuple[Path, Path]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    program: Path
    ca: CertificateAuthority
    bundle: Path
    planner: Party
    billing: Party

    @property
    def bundles(self) -> TrustBundles:
        return TrustBundles.of(self.ca.bundle())

    def go(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.program, *arguments)


@pytest.fixture(scope="module")
def fleet(go: Path, ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")

    def party(agent: str, name: str) -> Party:
        credentials = ca.issue_credentials(agent)
        return Party(credentials=credentials, files=save(folder, credentials, name))

    return Fleet(
        program=go / "spiffe",
        ca=ca,
        bundle=save_bundle(folder, ca.bundle()),
        planner=party(PLANNER, "planner"),
        billing=party(BILLING, "billing"),
    )


def test_an_svid_with_its_key(fleet: Fleet) -> None:
    result = fleet.go("svid", *fleet.planner.files)
    assert result.stdout == f"{PLANNER}\n", result.stderr


def test_the_key_of_another_agent_does_not_fit(fleet: Fleet) -> None:
    result = fleet.go("svid", fleet.planner.files[0], fleet.billing.files[1])
    assert result.returncode == 1
    assert "does not match" in result.stderr


def test_a_chain_leads_to_the_bundle(fleet: Fleet) -> None:
    result = fleet.go("verify", fleet.planner.files[0], fleet.bundle, DOMAIN)
    assert result.stdout == f"{PLANNER}\n", result.stderr


def test_a_chain_does_not_lead_to_a_foreign_root(fleet: Fleet, tmp_path: Path) -> None:
    """What is refused for us is refused for them: the same name, another key."""
    foreign = save_bundle(tmp_path, Forge(DOMAIN).bundle)
    assert "unknown authority" in fleet.go("verify", fleet.planner.files[0], foreign, DOMAIN).stderr


def test_a_bundle(fleet: Fleet) -> None:
    bundle = fleet.ca.bundle()
    result = fleet.go("bundle", fleet.bundle, DOMAIN)
    assert described(result) == {
        "domain": DOMAIN,
        "roots": [base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in bundle.roots],
        "sequence": bundle.sequence,
        "refreshHint": bundle.refresh_hint,
    }


def described(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# A client in Go, a server of ours.


async def whoami(scope: Any, receive: Any, send: Any) -> None:
    peer = peer_of(scope)
    assert peer is not None
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(peer.agent_id).encode()})


async def got(fleet: Fleet, *, allowed: str, server: str) -> subprocess.CompletedProcess[str]:
    """What the Go planner got from our billing agent, which lets in `allowed`, when it asks for `server`."""
    async with serving(
        whoami, source=fleet.billing.credentials, bundles=fleet.bundles, authorize=exactly(allowed)
    ) as running:
        arguments = ("get", running.url, *fleet.planner.files, fleet.bundle, DOMAIN, server)
        return await asyncio.to_thread(fleet.go, *arguments)


def test_a_go_client_calls_our_server(fleet: Fleet) -> None:
    result = asyncio.run(got(fleet, allowed=PLANNER, server=BILLING))
    assert (result.returncode, result.stdout) == (0, PLANNER), result.stderr


def test_our_server_refuses_a_go_client_with_another_id(fleet: Fleet) -> None:
    result = asyncio.run(got(fleet, allowed=OTHER, server=BILLING))
    assert result.returncode == 1
    assert "remote error: tls:" in result.stderr


def test_a_go_client_refuses_our_server_with_another_id(fleet: Fleet) -> None:
    result = asyncio.run(got(fleet, allowed=PLANNER, server=OTHER))
    assert result.returncode == 1
    assert f'unexpected ID "{BILLING}"' in result.stderr


# A client of ours, a server in Go.


@pytest.fixture
def go_server(fleet: Fleet) -> Iterator[str]:
    """The URL of a billing agent in Go that lets in the planner."""
    arguments = [fleet.program, "serve", *fleet.billing.files, fleet.bundle, DOMAIN, PLANNER]
    with subprocess.Popen(
        [*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield f"https://{server.stdout.readline().strip()}/"
        finally:
            server.kill()


async def ask(fleet: Fleet, url: str, *, as_: Credentials, server: str) -> str:
    async with agent_client(source=as_, bundles=fleet.bundles, authorize=exactly(server)) as client:
        return (await client.get(url)).text


def test_our_client_calls_a_go_server(fleet: Fleet, go_server: str) -> None:
    assert asyncio.run(ask(fleet, go_server, as_=fleet.planner.credentials, server=BILLING)) == PLANNER


def test_a_go_server_refuses_our_client_with_another_id(fleet: Fleet, go_server: str) -> None:
    with pytest.raises(HandshakeRefused):
        asyncio.run(ask(fleet, go_server, as_=fleet.billing.credentials, server=BILLING))


def test_our_client_refuses_a_go_server_with_another_id(fleet: Fleet, go_server: str) -> None:
    with pytest.raises(PeerNotAllowed):
        asyncio.run(ask(fleet, go_server, as_=fleet.planner.credentials, server=OTHER))


# The bundle endpoint, in both profiles.


@contextlib.asynccontextmanager
async def endpoint(ca: CertificateAuthority, **options: Any) -> AsyncIterator[Any]:
    from pki.service import serving as serving_the_ca

    async with serving_the_ca(ca, **options) as running:
        yield running


def test_the_bundle_endpoint_with_spiffe_authentication(fleet: Fleet) -> None:
    async def main() -> None:
        async with endpoint(fleet.ca) as running:
            fetch = ("fetch-spiffe", f"{running.url}/bundle", DOMAIN, fleet.bundle)
            result = await asyncio.to_thread(fleet.go, *fetch, f"spiffe://{DOMAIN}/a2a-pki/server")
            assert described(result) == described(fleet.go("bundle", fleet.bundle, DOMAIN))
            result = await asyncio.to_thread(fleet.go, *fetch, BILLING)
            assert (result.returncode, "unexpected ID" in result.stderr) == (1, True), result.stderr

    asyncio.run(main())


def test_the_bundle_endpoint_with_the_web_pki(fleet: Fleet, tmp_path: Path) -> None:
    """A certificate for an address, by a root that the client knows as one of the Web PKI's."""
    web = Forge("web.example")
    names = [x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://web.example/web")]
    files = save(tmp_path, web.leaf("/web", sans=names), "web")
    roots, foreign = tmp_path / "roots.pem", tmp_path / "foreign.pem"
    roots.write_bytes(web.root.public_bytes(Encoding.PEM))
    foreign.write_bytes(Forge("web.example").root.public_bytes(Encoding.PEM))

    async def main() -> None:
        async with endpoint(fleet.ca, web_port=0, web_certificate=files) as running:
            url = running.web_url.replace("127.0.0.1", "localhost") + "/bundle"
            result = await asyncio.to_thread(fleet.go, "fetch-web", url, DOMAIN, roots)
            assert described(result) == described(fleet.go("bundle", fleet.bundle, DOMAIN))
            result = await asyncio.to_thread(fleet.go, "fetch-web", url, DOMAIN, foreign)
            assert (result.returncode, "unknown authority" in result.stderr) == (1, True), result.stderr

    asyncio.run(main())
