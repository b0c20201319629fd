"""One CA and all that it publishes, a CA without addresses, agents, and the Go programs built from `go/`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from pki import CertificateAuthority, revocation
from tests.interop.fleet import DOMAIN, Fleet, make_fleet
from tests.interop.oracle import with_modules
from trust.credentials import Credentials

PUBLIC_URL = "http://pki.fleet.example"
GO = Path(__file__).parent / "go"


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs `spiffe` and `zlint`, built once, of the very modules that go.sum names."""
    folder = tmp_path_factory.mktemp("go")
    command = ["go", "build", "-mod=readonly", "-o", f"{folder}{os.sep}", "./..."]
    built = subprocess.run(command, cwd=GO, capture_output=True, text=True, env={**os.environ, "CGO_ENABLED": "0"})
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts of `js/` and the packages of the very versions that its lock names."""
    return with_modules(tmp_path_factory.mktemp("js"))


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """A CA, an agent of each kind, and every file that others get from it, by a name that says what it is."""

    ca: CertificateAuthority
    agent: Credentials
    revoked: Credentials
    certificates: dict[str, bytes] = field(default_factory=dict)
    crls: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertificateAuthority]:
    with new_ca(tmp_path_factory, public_url=PUBLIC_URL) as authority:
        yield authority


@pytest.fixture(scope="session")
def published(ca: CertificateAuthority) -> Publisher:
    """By a CA that certificates point to for CRLs, OCSP and issuers."""
    publisher = populated(ca)
    now = datetime.now(UTC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revocation, "DELTA_FROM", 1)  # entries, for a delta to be made beside a list
        publisher.crls.update(ca.revocations.published(now))
    assert any(name.endswith(".delta.crl") for name in publisher.crls)
    for name, credentials in {"good": publisher.agent, "revoked": publisher.revoked}.items():
        request = ocsp.OCSPRequestBuilder().add_certificate(*credentials.chain[:2], hashes.SHA256()).build()
        answer = ca.revocations.respond(request.public_bytes(Encoding.DER), now)
        publisher.answers[name] = answer
        (signer,) = ocsp.load_der_ocsp_response(answer).certificates
        publisher.certificates["OCSP signer"] = signer.public_bytes(Encoding.DER)
    return publisher


@pytest.fixture(scope="session")
def fleet(plain: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Agents of the CA without addresses: none of the programs tries to fetch a list."""
    return make_fleet(plain.ca, tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    """By a CA without addresses: its CRLs come by other ways, and each is the whole list of its issuer."""
    with new_ca(tmp_path_factory) as authority:
        publisher = populated(authority)
        for number, crl in enumerate(authority.crl().crls):
            publisher.crls[f"{number}.crl"] = crl.public_bytes(Encoding.DER)
        yield publisher


def new_ca(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> CertificateAuthority:
    folder = tmp_path_factory.mktemp("ca") / "ca"
    return CertificateAuthority.create(folder, trust_domain=DOMAIN, password="pw", name_constraint=True, **options)


def populated(ca: CertificateAuthority) -> Publisher:
    names = {"dns_names": ["billing.fleet.example"], "ip_addresses": ["192.0.2.1", "2001:db8::1"]}
    agent = ca.issue_credentials(f"spiffe://{DOMAIN}/billing", **names)  # type: ignore[arg-type]
    brief = ca.issue_credentials(f"spiffe://{DOMAIN}/brief", lifetime=timedelta(minutes=30))
    revoked = ca.issue_credentials(f"spiffe://{DOMAIN}/revoked")
    ca.revoke(revoked.certificate.serial_number, x509.ReasonFlags.key_compromise)
    certificates = {
        "root": ca.root,
        "intermediate": ca.intermediate,
        "agent": agent.certificate,
        "brief agent": brief.certificate,
    }
    return Publisher(
        ca=ca,
        agent=agent,
        revoked=revoked,
        certificates={name: made.public_bytes(Encoding.DER) for name, made in certificates.items()},
    )
