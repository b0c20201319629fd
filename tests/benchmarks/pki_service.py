"""The CA service over HTTP, as agents use it, beside `cfssl serve`: one machine, one load, one run.

Wall time, and the CPU time that the server spends for an answer: the load takes its part of the same cores, and on a
shared machine so do others.

Renewal here is a client certificate verified, a request verified, a certificate made, written to disk with its ledger
entry, and a line in the audit trail. cfssl gets its requests over plain HTTP, asks for no credentials and keeps
nothing. Needs `go` for the load, and `cfssl` (Debian's golang-cfssl) for the comparison.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pki import CertificateAuthority
from tests.benchmarks.harness import Row, Spent
from tests.benchmarks.loads import Load, Process, free_port, our_server, server
from tests.forge import Forge

AGENT = "spiffe://fleet.example/billing"
PASSWORD = "benchmark"
ROUNDS = 3  # of each side in turn; the best counts, for what disturbs the machine only ever adds
REQUESTS = 2_000  # of a round
TOKENS = 300


def rows() -> list[Row]:
    if shutil.which("go") is None:
        return []
    result = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = Load(folder)
        agent = Agent(folder)
        cfssl = Cfssl(folder) if shutil.which("cfssl") else None
        for workers in (1, 2):
            processes = f"{workers} process{'es' if workers > 1 else ''}"
            ours, theirs = [], []
            with our_server(agent.ca, PASSWORD, workers=workers) as running:
                agent.renew(load, running, REQUESTS // 4)  # warm
                for _ in range(ROUNDS):
                    ours.append(agent.renew(load, running, REQUESTS))
                    if cfssl is not None:
                        theirs.append(cfssl.sign(load, REQUESTS))
                enrolled = agent.enrol(load, running, TOKENS)
            what = f"renew over mTLS, {processes}"
            if theirs:
                result.append(_row(what, _best(ours).wall, "cfssl serve, HTTP", _best(theirs).wall, "<= 1x"))
                result.append(_row(f"{what}, CPU", _best(ours).cpu, "cfssl serve, HTTP", _best(theirs).cpu, "<= 1x"))
            what = f"enrol by token and handshake, {processes}"
            result.append(_row(what, enrolled.wall, "the goal", 1 / 300, "<= 1x"))
            result.append(_row(f"{what}, CPU", enrolled.cpu, "the goal", 1 / 300, "-"))
    return result


def _best(rounds: Sequence[Spent]) -> Spent:
    return Spent(wall=min(spent.wall for spent in rounds), cpu=min(spent.cpu for spent in rounds))


def _row(name: str, ours: float, peer_name: str, peer: float, goal: str) -> Row:
    return Row(name=name, ours=ours, peer_name=peer_name, peer=peer, goal=goal)


class Agent:
    """A CA, and an agent with a certificate of it; what it sends is made before."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca"
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        with CertificateAuthority.create(self.ca, trust_domain="fleet.example", password=PASSWORD) as ca:
            issued = ca.issue(self.request.public_bytes(Encoding.DER), AGENT)
            (folder / "roots.pem").write_bytes(ca.root.public_bytes(Encoding.PEM))
        (folder / "agent.pem").write_bytes(issued.chain_pem)
        (folder / "agent.key").write_bytes(private_pem(self.key))
        self._body = base64.b64encode(self.request.public_bytes(Encoding.DER)).decode()

    @property
    def request(self) -> x509.CertificateSigningRequest:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(AGENT)])
        builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def renew(self, load: Load, server: Process, requests: int) -> Spent:
        return load.spent(
            server,
            f"https://127.0.0.1:{server.port}/.well-known/est/simplereenroll",
            [{"body": self._body}],
            requests=requests,
            type="application/pkcs10",
            roots=str(self.folder / "roots.pem"),
            chain=str(self.folder / "agent.pem"),
            key=str(self.folder / "agent.key"),
        )

    def enrol(self, load: Load, server: Process, requests: int, *, fresh: bool = True) -> Spent:
        """Each with a token, and over a connection of its own if it is to be `fresh`."""
        with CertificateAuthority.open(self.ca, password=PASSWORD) as ca:
            tokens = [ca.create_token(AGENT).text for _ in range(requests)]
        return load.spent(
            server,
            f"https://127.0.0.1:{server.port}/.well-known/est/simpleenroll",
            [{"header": f"Authorization: Bearer {token}", "body": self._body} for token in tokens],
            requests=requests,
            type="application/pkcs10",
            roots=str(self.folder / "roots.pem"),
            **({"fresh": True} if fresh else {}),
        )


class Cfssl:
    """`cfssl serve`, started for each measurement: what does not serve must not take of the cores."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        forge = Forge(now=datetime.now(UTC).replace(microsecond=0))
        (folder / "cfssl-ca.pem").write_bytes(forge.intermediate.public_bytes(Encoding.PEM))
        (folder / "cfssl-ca.key").write_bytes(private_pem(forge.key))
        usages = ["digital signature", "server auth", "client auth"]
        profile = {"signing": {"default": {"expiry": "24h", "usages": usages}}}
        (folder / "cfssl.json").write_text(json.dumps(profile))
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "billing")])
        request = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
        pem = request.public_bytes(Encoding.PEM).decode()
        self._body = json.dumps({"certificate_request": pem, "hosts": ["billing.fleet.example"]})

    def sign(self, load: Load, requests: int) -> Spent:
        port = free_port()
        files = {"-ca": "cfssl-ca.pem", "-ca-key": "cfssl-ca.key", "-config": "cfssl.json"}
        command = ["cfssl", "serve", "-loglevel", "5", "-address", "127.0.0.1", "-port", str(port)]
        for option, name in files.items():
            command += [option, str(self._folder / name)]
        with server(command, port=port, log=self._folder / "cfssl.log") as running:
            url = f"http://127.0.0.1:{port}/api/v1/cfssl/sign"
            load.seconds(url, [{"body": self._body}], requests=requests // 4)
            return load.spent(running, url, [{"body": self._body}], requests=requests)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
