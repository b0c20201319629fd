"""Clients over mutual TLS: `agent_client` beside what people write by hand, httpx with the standard library's `ssl`.

Both ask the same server, uvicorn with the standard library's TLS, in a process of its own. `tests.benchmarks.servers`
has the servers' side.
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
from tests.forge import Forge
from trust.agent import agent_client
from trust.authorize import exactly
from trust.credentials import CHAIN_FILE, KEY_FILE, Credentials

ROUNDS = 7
CALLS = 160  # of one round, 16 at a time


async def _sixteen(client: httpx.AsyncClient, url: str) -> tuple[float, float]:
    """Wall and CPU seconds of this process for a call."""
    await asyncio.gather(*(client.get(url) for _ in range(16)))
    start, spent = time.perf_counter(), time.process_time()
    for _ in range(CALLS // 16):
        await asyncio.gather(*(client.get(url) for _ in range(16)))
    return (time.perf_counter() - start) / CALLS, (time.process_time() - spent) / CALLS


async def _measured(port: int, forge: Forge, planner: Credentials, folder: Path) -> list[list[float]]:
    """For wall and for CPU: ours and the peer's."""
    context = ssl.create_default_context(cadata=forge.root.public_bytes(Encoding.PEM).decode())
    context.load_cert_chain(folder / CHAIN_FILE, folder / KEY_FILE)
    url = f"https://localhost:{port}/"
    ours, peer = [], []
    async with (
        agent_client(
            source=planner, bundles=forge.bundles, authorize=exactly("spiffe://fleet.example/billing")
        ) as agent,
        httpx.AsyncClient(verify=context, trust_env=False) as plain,
    ):
        for _ in range(ROUNDS):
            ours.append(await _sixteen(agent, url))
            peer.append(await _sixteen(plain, url))
    return [[statistics.median(each[what] for each in side) for side in (ours, peer)] for what in (0, 1)]


def rows() -> list[Row]:
    forge = Forge()
    planner = forge.leaf("/planner")
    with tempfile.TemporaryDirectory() as name:
        client, server = Path(name, "planner"), Path(name, "billing")
        planner.save(client)
        forge.leaf("/billing").save(server)
        (server / ROOT_FILE).write_bytes(forge.root.public_bytes(Encoding.PEM))
        with running("uvicorn", server) as process:
            wall, cpu = asyncio.run(_measured(process.port, forge, planner, client))
    peer, goal = "httpx, stdlib ssl", "<= 0.2x"
    return [
        Row(name="client, 16 concurrent calls, wall a call", ours=wall[0], peer_name=peer, peer=wall[1], goal=goal),
        Row(name="client, 16 concurrent calls, CPU a call", ours=cpu[0], peer_name=peer, peer=cpu[1], goal=goal),
    ]
