"""Beside step-ca: certificates by one-time token, renewal over mutual TLS, and the server's memory. Wall time.

One machine, one load, one run, the same work for both: a P-256 request, a 24-hour certificate, a database on disk,
connections that stay open. step-ca is installed from its source at one release, which takes minutes the first time;
needs `go`. Its database (badger) does not wait for the disk by default; ours does.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.benchmarks.harness import Row
from tests.benchmarks.loads import Load, Process, free_port, our_server, server
from tests.benchmarks.pki_service import AGENT, PASSWORD, Agent, private_pem
from tests.forge import Forge
from trust.signing import jws

VERSION = "v0.30.2"
MODULE = "github.com/smallstep/certificates/cmd/step-ca"
CACHE = Path("~/.cache/a2a-trust/benchmarks").expanduser() / f"step-ca-{VERSION}"
ROUNDS = 3  # of each side in turn; the best counts, for what disturbs the machine only ever adds
ISSUED = 500  # of a round
RENEWED = 2_000


def rows() -> list[Row]:
    if shutil.which("go") is None:
        return []
    try:
        program = _installed()
    except subprocess.CalledProcessError:
        sys.stderr.write(f"step_ca: {MODULE}@{VERSION} cannot be installed here; left out\n")
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = Load(folder)
        agent, step = Agent(folder), StepCA(folder, program)
        # One after the other: what does not serve must not take of the cores.
        with our_server(agent.ca, PASSWORD, workers=1) as running:
            ours = _measured(
                running,
                lambda: agent.enrol(load, running, ISSUED, fresh=False).wall,
                lambda: agent.renew(load, running, RENEWED).wall,
            )
        with step.server() as running:
            step.first_certificate(running.port)
            theirs = _measured(
                running,
                lambda: step.sign(load, running.port, ISSUED),
                lambda: step.renew(load, running.port, RENEWED),
            )
    peer = f"step-ca {VERSION}"
    total = ROUNDS * (ISSUED + RENEWED)
    return [
        Row(name="issue by one-time token", ours=ours[0], peer_name=peer, peer=theirs[0], goal="-"),
        Row(name="renew over mTLS", ours=ours[1], peer_name=peer, peer=theirs[1], goal="-"),
        Row(name=f"memory after {total:,}", ours=ours[2], peer_name=peer, peer=theirs[2], goal="-", unit="MB"),
    ]


def _measured(running: Process, issue: Any, renew: Any) -> tuple[float, float, float]:
    """Seconds for a certificate by token and by renewal, and megabytes of memory after all of them."""
    issued = min(issue() for _ in range(ROUNDS))
    renewed = min(renew() for _ in range(ROUNDS))
    return issued, renewed, running.resident() / 1e6


def _installed() -> Path:
    program = CACHE / "step-ca"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(CACHE)}
        subprocess.run(["go", "install", f"{MODULE}@{VERSION}"], check=True, env=environment)
    return program


class StepCA:
    """A step-ca with a JWK provisioner, whose one-time tokens are made here."""

    def __init__(self, folder: Path, program: Path) -> None:
        self._folder = folder / "step"
        self._folder.mkdir()
        self._program = program
        self._port = free_port()
        forge = Forge(now=datetime.now(UTC).replace(microsecond=0))
        self._provisioner = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        files = {
            "root.pem": forge.root.public_bytes(Encoding.PEM),
            "intermediate.pem": forge.intermediate.public_bytes(Encoding.PEM),
            "intermediate.key": private_pem(forge.key),
            "agent.key": private_pem(self._key),
            "ca.json": json.dumps(self._configuration()).encode(),
        }
        for name, content in files.items():
            (self._folder / name).write_bytes(content)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(AGENT)])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "billing")])
        request = x509.CertificateSigningRequestBuilder(subject).add_extension(names, critical=False)
        self._csr = request.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def _configuration(self) -> dict[str, Any]:
        numbers = self._provisioner.public_key().public_numbers()
        key = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "use": "sig",
            "kid": "benchmark",
            "x": jws.encode(numbers.x.to_bytes(32)),
            "y": jws.encode(numbers.y.to_bytes(32)),
        }
        return {
            "root": str(self._folder / "root.pem"),
            "crt": str(self._folder / "intermediate.pem"),
            "key": str(self._folder / "intermediate.key"),
            "address": f"127.0.0.1:{self._port}",
            "dnsNames": ["127.0.0.1"],
            "logger": {"format": "json"},
            "db": {"type": "badgerv2", "dataSource": str(self._folder / "db")},
            "authority": {"provisioners": [{"type": "JWK", "name": "benchmark", "key": key}]},
        }

    def server(self) -> Any:
        command = [str(self._program), str(self._folder / "ca.json")]
        return server(command, port=self._port, log=self._folder / "step.log", STEPPATH=str(self._folder))

    def first_certificate(self, port: int) -> None:
        """The one that `renew` presents."""
        context = ssl.create_default_context(cafile=str(self._folder / "root.pem"))
        answer = httpx.post(f"https://127.0.0.1:{port}/1.0/sign", content=self._body(port), verify=context)
        assert answer.status_code == 201, answer.text
        (self._folder / "agent.pem").write_text(answer.json()["crt"] + answer.json()["ca"])

    def sign(self, load: Load, port: int, requests: int) -> float:
        lines = [{"body": self._body(port)} for _ in range(requests)]
        return load.seconds(
            f"https://127.0.0.1:{port}/1.0/sign", lines, requests=requests, roots=str(self._folder / "root.pem")
        )

    def renew(self, load: Load, port: int, requests: int) -> float:
        return load.seconds(
            f"https://127.0.0.1:{port}/1.0/renew",
            [{"body": ""}],
            requests=requests,
            roots=str(self._folder / "root.pem"),
            chain=str(self._folder / "agent.pem"),
            key=str(self._folder / "agent.key"),
        )

    def _body(self, port: int) -> str:
        now = int(time.time())
        claims = {
            "iss": "benchmark",
            "aud": f"https://127.0.0.1:{port}/1.0/sign",
            "sub": "billing",
            "sans": [AGENT],
            "jti": secrets.token_hex(32),
            "iat": now,
            "nbf": now - 60,
            "exp": now + 300,
        }
        header = {"typ": "JWT", "kid": "benchmark"}
        token = jws.sign_compact(json.dumps(claims).encode(), key=self._provisioner, header=header)
        return json.dumps({"csr": self._csr, "ott": token})
