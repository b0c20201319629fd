"""Wherever an agent's identity comes from, the same agent stands on it, and follows it to the next certificate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pki.client import RenewingCredentials, enrol
from tests.forge import Forge
from tests.pki.client.parts import CA
from tests.trust.tls.parts import echo, run
from tests.trust.workload_agent import WorkloadAgent, answer, svid
from trust.agent import agent_client
from trust.authorize import members_of
from trust.bundles import BundleSource, TrustBundle
from trust.credentials import Credentials, CredentialSource
from trust.files import WatchedBundles, WatchedCredentials
from trust.sources import Live
from trust.tls import peer_of_response, serving
from trust.workload_api import WorkloadSource

FORGE = Forge()
DOMAIN = members_of("fleet.example")
Given = tuple[CredentialSource, BundleSource, Callable[[], None]]  # and what replaces the certificate
Kind = Callable[[Path], contextlib.AbstractContextManager[Given]]


def billing() -> Credentials:
    return FORGE.leaf("/billing")


def put(file: Path, data: bytes) -> None:
    new = file.with_name(file.name + ".new")
    new.write_bytes(data)
    new.replace(file)


@contextlib.contextmanager
def memory(_: Path) -> Iterator[Given]:
    source = Live(billing())
    yield source, FORGE.bundles, lambda: source.replace(billing())


def files(chain: str, key: str, roots: str) -> Kind:
    """As another program writes them: PEM, under its own names."""

    @contextlib.contextmanager
    def written(folder: Path) -> Iterator[Given]:
        def write() -> None:
            credentials = billing()
            put(folder / key, credentials.key_pem())
            put(folder / chain, credentials.chain_pem)

        write()
        put(folder / roots, FORGE.root.public_bytes(Encoding.PEM))
        source = WatchedCredentials(folder / chain, key=folder / key)
        yield source, WatchedBundles({"fleet.example": folder / roots}), write

    return written


@contextlib.contextmanager
def our_folder(folder: Path) -> Iterator[Given]:
    billing().save(folder, "secret")
    (folder / "bundle.json").write_text(FORGE.bundles.to_json())
    source = WatchedCredentials(folder, password="secret")
    yield source, WatchedBundles(folder / "bundle.json"), lambda: billing().save(folder, "secret")


@contextlib.contextmanager
def workload_api(folder: Path) -> Iterator[Given]:
    def given() -> bytes:
        return answer(svid(billing(), (FORGE.root,)))

    with WorkloadAgent(folder, given()) as agent, WorkloadSource(agent.endpoint) as source:
        yield source, source.bundles, lambda: agent.say(given())


@contextlib.contextmanager
def ca_service(folder: Path) -> Iterator[Given]:
    ca = CA(folder)
    try:
        ca.start()
        enrol(**ca.enrolling(folder / "agent"))
        source = RenewingCredentials(folder / "agent")
        yield source, source.bundles, source.renew
    finally:
        ca.close()


KINDS: dict[str, Kind] = {
    "memory": memory,
    "our folder, encrypted": our_folder,
    "spiffe-helper": files("svid.pem", "svid_key.pem", "svid_bundle.pem"),
    "cert-manager": files("tls.crt", "tls.key", "ca.crt"),
    "step": files("agent.crt", "agent.key", "root_ca.crt"),
    "Workload API": workload_api,
    "pki.client": ca_service,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_serves_and_calls_with_it_and_follows_it(kind: str, tmp_path: Path) -> None:
    async def main(source: Any, bundles: Any, renew: Callable[[], None]) -> None:
        async with (
            serving(echo, source=source, bundles=bundles, authorize=DOMAIN) as live,
            agent_client(source=source, bundles=bundles, authorize=DOMAIN) as http,
        ):

            async def shown() -> str:
                answered = await http.post(live.url, content=b"hello")
                assert (answered.content, answered.headers["x-peer"]) == (b"hello", "/billing")
                return peer_of_response(answered).thumbprint

            first = await shown()
            assert first == source.current().thumbprint
            await asyncio.to_thread(renew)
            async with asyncio.timeout(30):
                while await shown() == first:
                    await asyncio.sleep(0.05)
            assert await shown() == source.current().thumbprint

    with KINDS[kind](tmp_path) as given:
        run(main(*given))


def test_the_roots_of_each_kind_are_the_same_trust(tmp_path: Path) -> None:
    for number, kind in enumerate(k for k in KINDS if k != "pki.client"):
        folder = tmp_path / str(number)
        folder.mkdir()
        with KINDS[kind](folder) as (_, bundles, _):
            assert bundles.current().by_domain["fleet.example"].roots == FORGE.bundle.roots, kind
            assert isinstance(bundles.current().by_domain["fleet.example"], TrustBundle)
