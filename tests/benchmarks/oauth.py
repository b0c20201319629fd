"""The token endpoint over mutual TLS, beside npm oidc-provider: one machine, one load, one run.

Each server has one core to itself, the load the others; connections are kept alive. A token here is a client
authenticated by its certificate, a grant decided, the token's identifier on disk before it is handed out, a line in the
audit trail, and a signature. oidc-provider keeps what it issues in memory, and no trail.

Needs `go` for the load, and `node` and `npm` for the comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from jwcrypto.jwk import JWK

from tests.benchmarks.harness import Row, Spent
from tests.benchmarks.loads import Load, Process, free_port, server
from tests.forge import Forge
from tests.interop.oracle import with_modules
from tests.interop.programs import save
from trust.agent import agent_client
from trust.authorize import exactly
from trust.credentials import BUNDLE_FILE
from trust.oauth.client import TokenSource

PLANNER, BILLING = "spiffe://fleet.example/planner", "spiffe://fleet.example/billing"
AUTHORITY = "spiffe://fleet.example/authority"
SCOPE = "agent:execute read:ledger.eu"
CORE = 0  # of the server that is measured
ROUNDS = 5  # of each side in turn
REQUESTS = 2_000  # of a round
CALLERS = 200

CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute", "read:ledger.eu"]
resources = ["{BILLING}"]
"""


def rows() -> list[Row]:
    if shutil.which("go") is None:
        return []
    cores = os.sched_getaffinity(0)
    result: list[Row] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        fleet, load = _Fleet(Path(name)), Load(Path(name))
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, cores - {CORE} or cores)
        ours = stack.enter_context(fleet.ours())
        theirs = stack.enter_context(fleet.theirs()) if shutil.which("npm") else None
        sides = [side for side in (ours, theirs) if side is not None]
        spent: dict[int, list[Spent]] = {side.pid: [] for side in sides}
        for side in sides:
            fleet.tokens(load, side, REQUESTS // 2)  # warm
        for _ in range(ROUNDS):
            for side in sides:
                spent[side.pid].append(fleet.tokens(load, side, REQUESTS))
        wall, cpu = _medians(spent[ours.pid])
        result.append(Row(name="token, mTLS, one core", ours=wall, peer_name="500/s", peer=1 / 500, goal="<= 1x"))
        if theirs is not None:
            their_wall, their_cpu = _medians(spent[theirs.pid])
            peer = "oidc-provider, in memory"
            result.append(Row(name="token, mTLS, one core", ours=wall, peer_name=peer, peer=their_wall, goal="<= 2x"))
            result.append(Row(name="token, mTLS, CPU", ours=cpu, peer_name=peer, peer=their_cpu, goal="<= 2x"))
        fetches = asyncio.run(fleet.fetches(ours))
        what = f"{CALLERS} callers at once, fetches"
        result.append(Row(name=what, ours=fetches, peer_name="the goal", peer=1, goal="<= 1x", unit=""))
    return result


def _medians(rounds: list[Spent]) -> tuple[float, float]:
    return statistics.median(r.wall for r in rounds), statistics.median(r.cpu for r in rounds)


class _Fleet:
    """The agents, and both servers, each of which knows the planner by its certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        forge = Forge(now=datetime.now(UTC).replace(microsecond=0))
        self._authority, self._planner = forge.leaf(AUTHORITY), forge.leaf(PLANNER)
        self._bundles = forge.bundles
        self._authority.save(folder / "authority")
        (folder / "authority" / BUNDLE_FILE).write_text(forge.bundles.to_json())
        (folder / "clients.toml").write_text(CLIENTS)
        (folder / "root.pem").write_bytes(forge.root.public_bytes(Encoding.PEM))
        self._chain, self._key = save(folder, self._planner, "planner")

    @contextlib.contextmanager
    def ours(self) -> Iterator[Process]:
        port, folder = free_port(), self._folder
        command = [*_on_one_core(), sys.executable, "-m", "tests.benchmarks.issuing", "serve"]
        command += ["--authority", str(folder / "clients.toml"), "--issuer", f"https://127.0.0.1:{port}"]
        command += ["--credentials", str(folder / "authority"), "--state", str(folder / "state")]
        command += ["--allow", "fleet.example", "--port", str(port)]
        with server(command, port=port, log=folder / "authority.log") as running:
            yield running

    @contextlib.contextmanager
    def theirs(self) -> Iterator[Process]:
        folder = self._folder / "js"
        folder.mkdir()
        certificate, key = save(self._folder, self._authority, "provider")
        jwk = JWK.from_pyca(ec.generate_private_key(ec.SECP256R1()))
        client = {
            "client_id": PLANNER,
            "token_endpoint_auth_method": "tls_client_auth",
            "tls_client_auth_san_uri": PLANNER,
            "grant_types": ["client_credentials"],
            "redirect_uris": [],
            "response_types": [],
            "tls_client_certificate_bound_access_tokens": True,
        }
        configuration = {
            "certificate": str(certificate),
            "key": str(key),
            "root": str(self._folder / "root.pem"),
            "port": 0,
            "keys": [{**jwk.export_private(as_dict=True), "kid": jwk.thumbprint(), "use": "sig", "alg": "ES256"}],
            "scopes": SCOPE,
            "resources": {BILLING: {"accessTokenFormat": "jwt", "jwt": {"sign": {"alg": "ES256"}}}},
            "clients": [client],
        }
        with subprocess.Popen(
            [*_on_one_core(), "node", "oidc_provider.mjs"],
            cwd=with_modules(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NODE_ENV": "production"},
            text=True,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(configuration) + "\n")
            process.stdin.flush()
            try:
                yield Process(pid=process.pid, port=int(process.stdout.readline()))
            finally:
                process.kill()

    def tokens(self, load: Load, server: Process, requests: int) -> Spent:
        form = {"grant_type": "client_credentials", "client_id": PLANNER, "resource": BILLING, "scope": SCOPE}
        return load.spent(
            server,
            f"https://127.0.0.1:{server.port}/token",
            [{"body": urlencode(form)}],
            requests=requests,
            type="application/x-www-form-urlencoded",
            roots=str(self._folder / "root.pem"),
            chain=str(self._chain),
            key=str(self._key),
        )

    async def fetches(self, server: Process) -> int:
        """How many tokens so many callers of one source cause to be fetched."""
        fetched = []

        async def count(request: httpx.Request) -> None:
            fetched.append(request.url.path)

        http = agent_client(source=self._planner, bundles=self._bundles, authorize=exactly(AUTHORITY))
        http.event_hooks["request"].append(count)
        async with http:
            tokens = TokenSource(
                issuer=f"https://127.0.0.1:{server.port}",
                resource=BILLING,
                scopes=SCOPE.split(),
                http=http,
                source=self._planner,
                origins=["https://billing.fleet.example"],
            )
            found = await asyncio.gather(*(tokens.token() for _ in range(CALLERS)))
        assert len(set(map(id, found))) == 1
        return fetched.count("/token")


def _on_one_core() -> list[str]:
    return ["taskset", "-c", str(CORE)] if shutil.which("taskset") else []
