"""Clients over mutual TLS: `agent_client` beside what people write by hand, httpx with the standard library's `ssl`.

Both ask the same server, uvicorn with the standard library's TLS, in a process of its own. And beside HTTP/2: httpx and
`h2` over our context, ours and it asking our server. `tests.benchmarks.servers` has the servers' side.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding

from tests.benchmarks.harness import Row
from tests.benchmarks.mtls_servers import ROOT_FILE, running
from tests.benchmarks.servers import prepare
from tests.forge import Forge
from trust.agent import agent_client
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import BUNDLE_FILE, CHAIN_FILE, KEY_FILE, Credentials
from trust.tls.engine import client_context

ROUNDS = 7
CALLS = 160  # of one round, 16 at a time


async def _sixteen(client: httpx.AsyncClient, url: str) -> tuple[float, float]:
    """Wall and CPU seconds of this process for a call."""
    await asyncio.gather(*(client.get(url) for _ in range(16)))
    start, spent = time.perf_counter(), time.process_time()
    for _ in range(CALLS // 16):
        await asyncio.gather(*(client.get(url) for _ in range(16)))
    return (time.perf_counter() - start) / CALLS, (time.process_time() - spent) / CALLS


async def _in_turn(url: str, *clients: httpx.AsyncClient) -> list[tuple[float, float]]:
    """For each client the medians: wall and CPU seconds of a call."""
    spent: list[list[tuple[float, float]]] = [[] for _ in clients]
    for _ in range(ROUNDS):
        for client, rounds in zip(clients, spent, strict=True):
            rounds.append(await _sixteen(client, url))
    return [
        (statistics.median(wall for wall, _ in rounds), statistics.median(cpu for _, cpu in rounds)) for rounds in spent
    ]


async def _beside_plain_httpx(port: int, forge: Forge, planner: Credentials, folder: Path) -> list[tuple[float, float]]:
    context = ssl.create_default_context(cadata=forge.root.public_bytes(Encoding.PEM).decode())
    context.load_cert_chain(folder / CHAIN_FILE, folder / KEY_FILE)
    rule = exactly("spiffe://fleet.example/billing")
    async with (
        agent_client(source=planner, bundles=forge.bundles, authorize=rule) as agent,
        httpx.AsyncClient(verify=context, trust_env=False) as plain,
    ):
        return await _in_turn(f"https://localhost:{port}/", agent, plain)


async def _beside_http2(port: int, folder: Path) -> list[tuple[float, float]]:
    """Many connections of one request at a time, and one connection of many: of the same server, over the same TLS."""
    source, bundles = Credentials.load(folder / "agent-0"), TrustBundles.load(folder / BUNDLE_FILE)
    rule = exactly("spiffe://fleet.example/server")
    context = client_context(source, bundles, rule)
    async with (
        agent_client(source=source, bundles=bundles, authorize=rule) as agent,
        httpx.AsyncClient(verify=context, http2=True, trust_env=False) as http2,
    ):
        url = f"https://localhost:{port}/"
        assert (await http2.get(url)).http_version == "HTTP/2"
        return await _in_turn(url, agent, http2)


def rows() -> list[Row]:
    forge = Forge()
    planner = forge.leaf("/planner")
    with tempfile.TemporaryDirectory() as name:
        client, server, fleet = Path(name, "planner"), Path(name, "billing"), Path(name, "fleet")
        planner.save(client)
        forge.leaf("/billing").save(server)
        (server / ROOT_FILE).write_bytes(forge.root.public_bytes(Encoding.PEM))
        with running("uvicorn", server) as process:
            ours, plain = asyncio.run(_beside_plain_httpx(process.port, forge, planner, client))
        fleet.mkdir()
        prepare(fleet)
        with running("ours", fleet, http2=True) as process:
            http1, http2 = asyncio.run(_beside_http2(process.port, fleet))
    peer, goal = "httpx, stdlib ssl", "<= 0.2x"
    return [
        Row(name="client, 16 concurrent calls, wall a call", ours=ours[0], peer_name=peer, peer=plain[0], goal=goal),
        Row(name="client, 16 concurrent calls, CPU a call", ours=ours[1], peer_name=peer, peer=plain[1], goal=goal),
        Row(
            name="client, 16 concurrent calls over HTTP/1.1, CPU a call",
            ours=http1[1],
            peer_name="httpx, HTTP/2 over our context",
            peer=http2[1],
            goal="<= 1x",
        ),
    ]
