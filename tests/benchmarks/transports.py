"""Mutual TLS on real sockets, ours beside what people write by hand: uvicorn with the standard library's `ssl`.

Both servers run uvicorn with httptools and uvloop, each in a process of its own, and serve the same application. What
is compared is the CPU time that the server process spends, which a busy machine distorts less than the wall clock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding

from tests.benchmarks.harness import Row
from tests.forge import Forge
from trust.agent import agent_client
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import CHAIN_FILE, KEY_FILE, Credentials
from trust.identity import peer_of
from trust.tls.server import uvicorn_config

ROUNDS = 7
REQUESTS = 400  # of one round, on one connection kept alive
CONNECTIONS = 40  # of one round, with one request each
CALLS = 160  # of one round, 16 at a time
HEAD = b"GET / HTTP/1.1\r\nhost: localhost\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the CPU seconds that this process has spent; for ours, reads the peer as an application would."""
    if scope["type"] == "http":
        peer_of(scope)
        body = repr(time.process_time()).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def serve_ours(folder: str, port: int) -> None:
    config = uvicorn_config(
        application,
        source=Credentials.load(folder),
        bundles=TrustBundles.load(Path(folder) / "bundle.json"),
        authorize=exactly("spiffe://fleet.example/planner"),
        port=port,
        lifespan="off",
    )
    uvicorn.Server(config).run()


def serve_stdlib(folder: str, port: int) -> None:
    uvicorn.run(
        application,
        port=port,
        lifespan="off",
        access_log=False,
        log_level="warning",
        ssl_certfile=str(Path(folder) / CHAIN_FILE),
        ssl_keyfile=str(Path(folder) / KEY_FILE),
        ssl_ca_certs=str(Path(folder) / "root.pem"),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )


@contextmanager
def running(target: Any, folder: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder, port), daemon=True)
    process.start()
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    try:
        yield port
    finally:
        process.terminate()
        process.join(10)


class Caller:
    """A blocking client with the standard library's TLS, the same for both servers."""

    def __init__(self, port: int, credentials: str, root: str) -> None:
        self._address = ("127.0.0.1", port)
        self._context = ssl.create_default_context(cadata=root)
        self._context.load_cert_chain(str(Path(credentials) / CHAIN_FILE), str(Path(credentials) / KEY_FILE))

    @contextmanager
    def connection(self) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection(self._address) as tcp,
            self._context.wrap_socket(tcp, server_hostname="localhost") as tls,
        ):
            yield tls

    @staticmethod
    def ask(tls: ssl.SSLSocket) -> float:
        """One request; returns the server's CPU seconds so far."""
        tls.sendall(HEAD + b"\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.rpartition(b"\r\n\r\n")[2]:
            answer += tls.recv(4096)
        return float(answer.rpartition(b"\r\n\r\n")[2])

    def keep_alive(self) -> float:
        with self.connection() as tls:
            start = self.ask(tls)
            for _ in range(REQUESTS):
                end = self.ask(tls)
            return (end - start) / REQUESTS

    def new_connections(self) -> float:
        with self.connection() as watch:
            start = self.ask(watch)
            for _ in range(CONNECTIONS):
                with self.connection() as tls:
                    self.ask(tls)
            return (self.ask(watch) - start) / CONNECTIONS


async def _sixteen(client: httpx.AsyncClient, url: str) -> float:
    await asyncio.gather(*(client.get(url) for _ in range(16)))
    start = time.perf_counter()
    for _ in range(CALLS // 16):
        await asyncio.gather(*(client.get(url) for _ in range(16)))
    return (time.perf_counter() - start) / CALLS


def _clients(port: int, planner: Credentials, folder: str, root: str, forge: Forge) -> tuple[float, float]:
    async def measure() -> tuple[list[float], list[float]]:
        context = ssl.create_default_context(cadata=root)
        context.load_cert_chain(str(Path(folder) / CHAIN_FILE), str(Path(folder) / KEY_FILE))
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
        return ours, peer

    ours, peer = asyncio.run(measure())
    return statistics.median(ours), statistics.median(peer)


def rows() -> list[Row]:
    forge = Forge()
    root = forge.root.public_bytes(Encoding.PEM).decode()
    stdlib = "uvicorn, stdlib ssl"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        planner, billing = forge.leaf("/planner"), forge.leaf("/billing")
        for credentials, name in ((planner, "planner"), (billing, "billing")):
            credentials.save(f"{folder}/{name}")
            Path(folder, name, "root.pem").write_text(root)
            Path(folder, name, "bundle.json").write_text(forge.bundles.to_json())
        ports = [stack.enter_context(running(target, f"{folder}/billing")) for target in (serve_ours, serve_stdlib)]
        callers = [Caller(port, f"{folder}/planner", root) for port in ports]
        found: dict[str, list[list[float]]] = {"keep_alive": [[], []], "new_connections": [[], []]}
        for _ in range(ROUNDS):
            for name, sides in found.items():
                for caller, side in zip(callers, sides, strict=True):
                    side.append(getattr(caller, name)())
        medians = {name: [statistics.median(side) for side in sides] for name, sides in found.items()}
        client = _clients(ports[1], planner, f"{folder}/planner", root, forge)
    return [
        Row(
            name="mTLS keep-alive request, server CPU",
            ours=medians["keep_alive"][0],
            peer_name=stdlib,
            peer=medians["keep_alive"][1],
            goal="<= 1.25x",
        ),
        Row(
            name="new mTLS connection + request, server CPU",
            ours=medians["new_connections"][0],
            peer_name=stdlib,
            peer=medians["new_connections"][1],
            goal="<= 0.9x",
        ),
        Row(
            name="client, 16 concurrent calls, wall a call",
            ours=client[0],
            peer_name="httpx, stdlib ssl",
            peer=client[1],
            goal="<= 0.2x",
        ),
    ]
