"""go-spiffe, the reference library of SPIFFE, takes our certificates and bundles, and talks to our agents."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.forge import Forge
from tests.interop.fleet import (
    BILLING,
    DOMAIN,
    OTHER,
    PLANNER,
    REFUSED,
    Fleet,
    answer_of,
    ask,
    is_refused,
    judged_by_our_client,
    our_server,
    refuses_our_client,
    their_server,
)
from tests.interop.programs import needs, run, save, save_bundle

pytestmark = [
    pytest.mark.slow,
    needs("go"),
    pytest.mark.timeout(300),
]  # the modules may have to be fetched and built first


@pytest.fixture(scope="session")
def program(go: Path) -> Path:
    return go / "spiffe"


@pytest.fixture(scope="session")
def bundle(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the fleet's own domain."""
    return save_bundle(tmp_path_factory.mktemp("bundle"), fleet.bundles.by_domain[DOMAIN])


def test_an_svid_with_its_key(program: Path, fleet: Fleet) -> None:
    result = run(program, "svid", fleet["planner"].chain, fleet["planner"].key)
    assert result.stdout == f"{PLANNER}\n", result.stderr


def test_the_key_of_another_agent_does_not_fit(program: Path, fleet: Fleet) -> None:
    result = run(program, "svid", fleet["planner"].chain, fleet["billing"].key)
    assert result.returncode == 1
    assert "does not match" in result.stderr


def test_a_chain_leads_to_the_bundle(program: Path, fleet: Fleet, bundle: Path) -> None:
    result = run(program, "verify", fleet["planner"].chain, bundle, DOMAIN)
    assert result.stdout == f"{PLANNER}\n", result.stderr


def test_a_chain_does_not_lead_to_a_foreign_root(program: Path, fleet: Fleet, tmp_path: Path) -> None:
    """What is refused for us is refused for them: the same name, another key."""
    foreign = save_bundle(tmp_path, Forge(DOMAIN).bundle)
    assert "unknown authority" in run(program, "verify", fleet["planner"].chain, foreign, DOMAIN).stderr


def test_a_bundle(program: Path, fleet: Fleet, bundle: Path) -> None:
    ours = fleet.bundles.by_domain[DOMAIN]
    assert described(run(program, "bundle", bundle, DOMAIN)) == {
        "domain": DOMAIN,
        "roots": [base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in ours.roots],
        "sequence": ours.sequence,
        "refreshHint": ours.refresh_hint,
    }


def described(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# A client in Go, a server of ours.

ALERTS = {
    "unknown_ca": "remote error: tls: unknown certificate authority",
    "certificate_revoked": "remote error: tls: revoked certificate",
    "handshake_failure": "remote error: tls: handshake failure",
}


async def got(program: Path, fleet: Fleet, bundle: Path, url: str, who: str, *, server: str = BILLING) -> str:
    """What an agent in Go got from our server, when it wanted `server`."""
    return await answer_of(program, "get", url, fleet[who].chain, fleet[who].key, bundle, DOMAIN, server)


def test_a_go_client_calls_our_server(program: Path, fleet: Fleet, bundle: Path) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            assert await got(program, fleet, bundle, server.url, "planner") == PLANNER
        assert (server.refused, [*map(str, server.callers)]) == ([], [PLANNER])

    asyncio.run(main())


@pytest.mark.parametrize("who", [who for who in REFUSED if who])  # it has no way to present nothing
def test_our_server_tells_a_go_client_why(program: Path, fleet: Fleet, bundle: Path, who: str) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            assert ALERTS[REFUSED[who][1]] in await got(program, fleet, bundle, server.url, who)
        is_refused(server, who)

    asyncio.run(main())


def test_a_go_client_refuses_our_server_with_another_id(program: Path, fleet: Fleet, bundle: Path) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            said = await got(program, fleet, bundle, server.url, "planner", server=OTHER)
        assert f'unexpected ID "{BILLING}"' in said
        assert server.callers == []

    asyncio.run(main())


# A client of ours, a server in Go.


def test_our_client_calls_a_go_server(program: Path, fleet: Fleet, bundle: Path) -> None:
    async def main() -> None:
        files = (fleet["billing"].chain, fleet["billing"].key, bundle)
        async with their_server(program, "serve", *files, DOMAIN, PLANNER) as url:
            assert await ask(fleet, url) == PLANNER
            await judged_by_our_client(fleet, url)
            await refuses_our_client(fleet, url, None, "foreign", "other")

    asyncio.run(main())


# The bundle endpoint, in both profiles.


@contextlib.asynccontextmanager
async def endpoint(ca: CertificateAuthority, **options: Any) -> AsyncIterator[Any]:
    from pki.service import serving as serving_the_ca

    async with serving_the_ca(ca, **options) as running:
        yield running


def test_the_bundle_endpoint_with_spiffe_authentication(
    program: Path, ca: CertificateAuthority, tmp_path: Path
) -> None:
    bundle = save_bundle(tmp_path, ca.bundle())

    async def main() -> None:
        async with endpoint(ca) as running:
            fetch = ("fetch-spiffe", f"{running.url}/bundle", DOMAIN, bundle)
            result = await asyncio.to_thread(run, program, *fetch, f"spiffe://{DOMAIN}/a2a-pki/server")
            assert described(result) == described(run(program, "bundle", bundle, DOMAIN))
            result = await asyncio.to_thread(run, program, *fetch, BILLING)
            assert (result.returncode, "unexpected ID" in result.stderr) == (1, True), result.stderr

    asyncio.run(main())


def test_the_bundle_endpoint_with_the_web_pki(program: Path, ca: CertificateAuthority, tmp_path: Path) -> None:
    """A certificate for an address, by a root that the client knows as one of the Web PKI's."""
    bundle = save_bundle(tmp_path, ca.bundle())
    web = Forge("web.example")
    names = [x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://web.example/web")]
    files = save(tmp_path, web.leaf("/web", sans=names), "web")
    roots, foreign = tmp_path / "roots.pem", tmp_path / "foreign.pem"
    roots.write_bytes(web.root.public_bytes(Encoding.PEM))
    foreign.write_bytes(Forge("web.example").root.public_bytes(Encoding.PEM))

    async def main() -> None:
        async with endpoint(ca, web_port=0, web_certificate=files) as running:
            url = running.web_url.replace("127.0.0.1", "localhost") + "/bundle"
            result = await asyncio.to_thread(run, program, "fetch-web", url, DOMAIN, roots)
            assert described(result) == described(run(program, "bundle", bundle, DOMAIN))
            result = await asyncio.to_thread(run, program, "fetch-web", url, DOMAIN, foreign)
            assert (result.returncode, "unknown authority" in result.stderr) == (1, True), result.stderr

    asyncio.run(main())
