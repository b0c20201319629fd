"""The memory of a process that issues 100,000 certificates, beside what it was after the first 10,000."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.benchmarks.harness import Row
from tests.benchmarks.loads import resident

AGENT = "spiffe://fleet.example/billing"
FEW, MANY = 10_000, 100_000
TOGETHER = 50


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:  # a process of its own: this one has run other benchmarks
        command = [sys.executable, "-m", __name__, folder]
        few, many = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        Row(
            name=f"memory after {MANY:,} certificates",
            ours=many / 1e6,
            peer_name=f"after {FEW:,}",
            peer=few / 1e6,
            goal="~ 1x",
            unit="MB",
        )
    ]


def main(folder: Path) -> None:
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    csr = request.public_bytes(Encoding.DER)
    found = []
    with CertificateAuthority.create(folder / "ca", trust_domain="fleet.example", password="benchmark") as ca:
        for made in range(TOGETHER, MANY + 1, TOGETHER):
            for result in ca.together([ca.issuing(csr, AGENT) for _ in range(TOGETHER)]):
                if isinstance(result, Exception):
                    raise result
            if made in (FEW, MANY):
                found.append(resident())
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
