"""Issuing, durable: one CA in this process, its database on this disk. Wall time, for a disk is waited for.

Peers: the cryptography that issuing cannot do without (a request's signature verified, a certificate's made), to which
the CPU time is compared, and `openssl ca` where it is on the PATH, which writes its index without waiting for the disk.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pki import CertificateAuthority
from tests.benchmarks.harness import Row, Spent, medians
from tests.forge import Forge

AGENT = "spiffe://fleet.example/billing"
ISSUED = 2_000
ENROLLED = 500
OPENSSL_ISSUED = 40
TOGETHER = 50  # of one caller who has many
THREADS = 32  # callers that wait at the same time, as those of a service do; their commits are grouped


def rows() -> list[Row]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(AGENT)])
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
    csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    with tempfile.TemporaryDirectory() as folder:
        one, together, many, enrolled = _ours(Path(folder) / "ca", csr)
    limit = _cryptography(key)
    callers, batched = f"issue, {THREADS} callers", f"issue, one caller, {TOGETHER} at a time"
    result = [
        Row(name=callers, ours=many.wall, peer_name="the goal", peer=1 / 2_000, goal="<= 1x"),
        Row(name=batched, ours=together.wall, peer_name="the goal", peer=1 / 2_000, goal="<= 1x"),
        Row(name=f"enrol, {THREADS} callers", ours=enrolled.wall, peer_name="the goal", peer=1 / 300, goal="<= 1x"),
        *(
            Row(name=f"{name}, CPU", ours=spent.cpu, peer_name="raw verify + sign", peer=limit, goal="-")
            for name, spent in ((batched, together), (callers, many), ("issue, one caller", one))
        ),
    ]
    if openssl := shutil.which("openssl"):
        with tempfile.TemporaryDirectory() as folder:
            seconds = _openssl(openssl, Path(folder))
        result.append(Row(name=callers, ours=many.wall, peer_name="openssl ca", peer=seconds, goal="< 1x"))
    return result


def _spent(count: int, work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(wall=(time.perf_counter() - wall) / count, cpu=(time.process_time() - cpu) / count)


def _ours(folder: Path, csr: bytes) -> tuple[Spent, Spent, Spent, Spent]:
    """A certificate: issued one by one, many at a time, by many callers, and by many with a token each."""
    with CertificateAuthority.create(folder, trust_domain="fleet.example", password="benchmark") as ca:
        alone = ISSUED // 10

        def batches() -> None:
            for _ in range(ISSUED // TOGETHER):
                made = ca.together([ca.issuing(csr, AGENT) for _ in range(TOGETHER)])
                assert not any(isinstance(result, Exception) for result in made)

        one = _spent(alone, lambda: [ca.issue(csr, AGENT) for _ in range(alone)])
        together = _spent(ISSUED, batches)
        tokens = [ca.create_token(AGENT).text for _ in range(ENROLLED)]
        with ThreadPoolExecutor(THREADS) as pool:
            many = _spent(ISSUED, lambda: list(pool.map(lambda _: ca.issue(csr, AGENT), range(ISSUED))))
            enrolled = _spent(ENROLLED, lambda: list(pool.map(lambda token: ca.enrol(csr, token), tokens)))
        assert len(ca.certificates(kind="agent")) == alone + 2 * ISSUED + ENROLLED
    return one, together, many, enrolled


def _cryptography(key: Any) -> float:
    data = b"x" * 600
    algorithm = ec.ECDSA(hashes.SHA256())
    public, signature = key.public_key(), key.sign(data, algorithm)

    def both() -> None:
        public.verify(signature, data, algorithm)
        key.sign(data, algorithm)

    return medians(both)[0]


_CONFIGURATION = """
[ca]
default_ca = ca
[ca]
database = {folder}/index.txt
new_certs_dir = {folder}/new
serial = {folder}/serial
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
default_days = 1
policy = policy
unique_subject = no
rand_serial = yes
x509_extensions = leaf
[policy]
commonName = optional
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = URI:{agent}
"""


def _openssl(openssl: str, folder: Path) -> float:
    """Seconds for a certificate of `openssl ca`, many requests to one process."""
    forge = Forge(now=datetime.now(UTC).replace(microsecond=0))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "billing")])
    request = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    (folder / "new").mkdir()
    (folder / "index.txt").touch()
    (folder / "ca.pem").write_bytes(forge.intermediate.public_bytes(Encoding.PEM))
    private = forge.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.key").write_bytes(private)
    (folder / "ca.cnf").write_text(_CONFIGURATION.format(folder=folder, agent=AGENT))
    paths = []
    for number in range(OPENSSL_ISSUED):
        path = folder / f"{number}.pem"
        path.write_bytes(request.public_bytes(Encoding.PEM))
        paths.append(str(path))
    command = [openssl, "ca", "-batch", "-notext", "-config", str(folder / "ca.cnf")]

    def run(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([*command, *arguments], check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - start

    one = run("-in", paths[0], "-out", str(folder / "out.pem"))
    all_of_them = run("-infiles", *paths)
    assert len((folder / "index.txt").read_text().splitlines()) == OPENSSL_ISSUED + 1
    return max(all_of_them - one, 1e-6) / (OPENSSL_ISSUED - 1)  # without the start of the process
