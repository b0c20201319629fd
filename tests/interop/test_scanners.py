"""Scanners as judges of our server: they find TLS 1.3 with client certificates, and nothing that we do not know of.

They know less than our server: neither has a post-quantum key exchange. That it is preferred, others show.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.interop.conftest import DOMAIN
from tests.interop.programs import needs, run, save
from tests.trust.tls.parts import echo
from trust.agent import serving
from trust.authorize import exactly
from trust.bundles import TrustBundles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AGENT = f"spiffe://{DOMAIN}/billing"
SECONDS = 500.0  # for one scan; a free machine takes half a minute

SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}  # all of OpenSSL's
CURVES = {"X25519", "secp256r1", "secp384r1"}


class Scanned:
    """One server for each of the two ways to ask for client certificates, and the files that scanners read."""

    def __init__(self, ca: CertificateAuthority, folder: Path) -> None:
        self.bundles = TrustBundles.of(ca.bundle())
        self.server = ca.issue_credentials(
            f"spiffe://{DOMAIN}/server", dns_names=["localhost"], ip_addresses=["127.0.0.1"]
        )
        self.agent = save(folder, ca.issue_credentials(AGENT), "agent")
        self.root = folder / "root.pem"
        self.root.write_bytes(ca.root.public_bytes(Encoding.PEM))

    @contextlib.asynccontextmanager
    async def serving(self, client_certificates: Any) -> AsyncIterator[str]:
        async with serving(
            echo,
            source=self.server,
            bundles=self.bundles,
            authorize=exactly(AGENT),
            client_certificates=client_certificates,
            on_refused=lambda error, address: None,
            lifespan="off",
            log_level="critical",
        ) as server:
            yield server.url.removeprefix("https://")


@pytest.fixture(scope="module")
def scanned(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    return Scanned(ca, tmp_path_factory.mktemp("scanned"))


def sslyze(scanned: Scanned, client_certificates: str, report: Path, *options: str | Path) -> dict[str, Any]:
    async def main() -> None:
        async with scanned.serving(client_certificates) as address:
            command = ("sslyze", "--quiet", "--mozilla_config", "disable", "--json_out", report, *options, address)
            await asyncio.to_thread(run, *command, timeout=SECONDS)

    asyncio.run(main())
    (result,) = json.loads(report.read_text())["server_scan_results"]
    assert isinstance(result, dict)
    return result


PROTOCOLS = ("ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3")
SCANS = ("sslv3", "tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3", "elliptic_curves", "certinfo", "early_data")
ATTACKS = ("compression", "reneg", "heartbleed", "openssl_ccs", "robot")


@needs("sslyze")
@pytest.mark.parametrize("client_certificates", ["required", "optional"])
def test_sslyze(client_certificates: str, scanned: Scanned, tmp_path: Path) -> None:
    chain, key = scanned.agent
    options: list[str | Path] = [f"--{scan}" for scan in SCANS + ATTACKS]
    options += ["--cert", chain, "--key", key]
    found = sslyze(scanned, client_certificates, tmp_path / "report.json", *options)
    assert found["connectivity_status"] == "COMPLETED"
    results = {name: scan["result"] for name, scan in found["scan_result"].items() if scan["status"] == "COMPLETED"}
    assert not [name for name, scan in found["scan_result"].items() if scan["status"].startswith("ERROR")]
    accepted = {
        protocol: {a["cipher_suite"]["name"] for a in results[f"{protocol}_cipher_suites"]["accepted_cipher_suites"]}
        for protocol in PROTOCOLS
    }
    assert accepted == {protocol: SUITES if protocol == "tls_1_3" else set() for protocol in PROTOCOLS}
    assert {curve["name"] for curve in results["elliptic_curves"]["supported_curves"]} == CURVES
    assert results["tls_1_3_early_data"] == {"supports_early_data": False}
    assert results["tls_compression"] == {"supports_compression": False}
    assert results["session_renegotiation"]["client_renegotiations_success_count"] == 0
    assert results["heartbleed"] == {"is_vulnerable_to_heartbleed": False}
    assert results["openssl_ccs_injection"] == {"is_vulnerable_to_ccs_injection": False}
    assert results["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    (deployment,) = results["certificate_info"]["certificate_deployments"]
    assert deployment["received_chain_has_valid_order"] and not deployment["received_chain_contains_anchor_certificate"]
    trusted = {p["trust_store"]["name"]: p["was_validation_successful"] for p in deployment["path_validation_results"]}
    assert len(trusted) > 3 and not any(trusted.values())  # by browsers and the like


@needs("sslyze")
@pytest.mark.parametrize("client_certificates", ["required", "optional"])
def test_what_sslyze_sees_without_a_certificate(client_certificates: str, scanned: Scanned, tmp_path: Path) -> None:
    found = sslyze(scanned, client_certificates, tmp_path / "report.json", "--tlsv1_3")
    connected = found["connectivity_result"]
    assert connected["client_auth_requirement"] == client_certificates.upper()
    assert connected["highest_tls_version_supported"] == "TLS_1_3"


# What testssl.sh says beyond "OK" and "INFO", and why it may.
KNOWN = {
    "cert_expirationStatus": "agents' certificates live for a day",
    "cert_notAfter": "the same",
    "BREACH": "of a server that wants a certificate it sees no HTTP",
    "service": "the same",
    "OCSP_stapling": "clients of ours look at CRLs",
    "optimal_proto": "the same",
}
PINNED = {
    "SSLv2": "not offered",
    "SSLv3": "not offered",
    "TLS1": "not offered",
    "TLS1_1": "not offered",
    "TLS1_2": "not offered",
    "TLS1_3": "offered with final",
    "ALPN": "http/1.1",
    "sessionresumption_ticket": "not supported",
    "certs_countServer": "2",
    "certs_list_ordering_problem": "no",
    "cert_signatureAlgorithm": "ECDSA with SHA256",
    "cert_chain_of_trust": "passed.",
}
PINNED_CIPHERS = {"cipherlist_STRONG": "offered", "cipherlist_AVERAGE": "not offered"}


GAVE_UP = "check failed because of connect problem"


@needs("testssl")
def test_testssl(scanned: Scanned, tmp_path: Path) -> None:
    command = ["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--assume-http"]
    command += ["--add-ca", str(scanned.root), "--protocols", "--server-defaults"]
    # The longest of them, and about what comes before the server asks for a certificate: once is enough.
    more = {"required": [], "optional": ["--std", "--vulnerable"]}

    async def scan(client_certificates: str) -> None:
        async with scanned.serving(client_certificates) as address:
            options = [*more[client_certificates], "--jsonfile", str(tmp_path / client_certificates)]
            await asyncio.to_thread(run, *command, *options, address, timeout=SECONDS)

    def findings_of(client_certificates: str) -> list[dict[str, str]]:
        """What one scan says; it is made again for what testssl.sh gave up waiting for, and so did not find out."""
        report = tmp_path / client_certificates
        found: dict[str, list[dict[str, str]]] = {}
        for _ in range(5):
            open_still = {name for name, group in found.items() if any(GAVE_UP in f["finding"] for f in group)}
            if found and not open_still:
                break
            report.unlink(missing_ok=True)
            asyncio.run(scan(client_certificates))
            findings: list[dict[str, str]] = json.loads(report.read_text())
            names = {finding["id"] for finding in findings}
            for name in names if not found else names & open_still:
                found[name] = [finding for finding in findings if finding["id"] == name]
        return [finding for group in found.values() for finding in group]

    for client_certificates in more:
        findings = findings_of(client_certificates)
        found = {finding["id"]: finding["finding"] for finding in findings}
        pinned = PINNED | (PINNED_CIPHERS if "--std" in more[client_certificates] else {})
        assert {name: found.get(name) for name in pinned} == pinned
        assert [f for f in findings if f["severity"] not in ("OK", "INFO", "DEBUG") and f["id"] not in KNOWN] == []
