"""OpenSSL, GnuTLS and NSS accept our chains and CRLs, and refuse what they revoke."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from tests.interop.conftest import Publisher
from tests.interop.programs import needs, run

pytestmark = pytest.mark.slow

PURPOSES = ("sslclient", "sslserver")


def pem(folder: Path, name: str, *things: x509.Certificate | x509.CertificateRevocationList) -> Path:
    file = folder / f"{name}.pem"
    file.write_bytes(b"".join(thing.public_bytes(Encoding.PEM) for thing in things))
    return file


@pytest.fixture(params=["published", "plain"])
def publisher(request: pytest.FixtureRequest) -> Publisher:
    """A CA whose CRLs have a distribution point, and one whose CRLs have none."""
    found: Publisher = request.getfixturevalue(request.param)
    return found


def lists(publisher: Publisher) -> list[x509.CertificateRevocationList]:
    return [x509.load_der_x509_crl(der) for name, der in publisher.crls.items() if not name.endswith(".delta.crl")]


@needs("openssl")
@pytest.mark.parametrize("purpose", PURPOSES)
def test_openssl(publisher: Publisher, purpose: str, tmp_path: Path) -> None:
    def verify(chain: tuple[x509.Certificate, ...], root: x509.Certificate) -> subprocess.CompletedProcess[str]:
        return run(
            *("openssl", "verify", "-x509_strict", "-purpose", purpose, "-crl_check_all", "-extended_crl"),
            *("-CRLfile", pem(tmp_path, "crls", *lists(publisher))),
            *("-CAfile", pem(tmp_path, "root", root), "-untrusted", pem(tmp_path, "rest", *chain[1:])),
            pem(tmp_path, "leaf", chain[0]),
        )

    root = publisher.ca.root
    result = verify(publisher.agent.chain, root)
    assert result.returncode == 0, result.stderr
    assert "certificate revoked" in verify(publisher.revoked.chain, root).stderr
    assert "unable to get local issuer certificate" in verify(publisher.agent.chain, Forge().root).stderr


@needs("certtool")
def test_gnutls(publisher: Publisher, tmp_path: Path) -> None:
    root = pem(tmp_path, "root", publisher.ca.root)
    chain = pem(tmp_path, "chain", *publisher.agent.chain)
    for purpose in ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"):
        result = run(
            "certtool", "--verify", "--load-ca-certificate", root, "--verify-purpose", purpose, "--infile", chain
        )
        assert "Chain verification output: Verified." in result.stdout, result.stdout
    whole = pem(tmp_path, "whole", *publisher.agent.chain, publisher.ca.root)
    result = run("certtool", "--verify-chain", "--infile", whole)
    assert (result.returncode, "Not verified" in result.stdout) == (0, False), result.stdout
    foreign = pem(tmp_path, "foreign", Forge().root)
    result = run("certtool", "--verify", "--load-ca-certificate", foreign, "--infile", chain)
    assert "Not verified." in result.stdout


@needs("certtool")
def test_gnutls_reads_and_verifies_crls(publisher: Publisher, tmp_path: Path) -> None:
    issuers = {one.subject: one for one in (publisher.ca.root, publisher.ca.intermediate)}
    for crl in lists(publisher):
        file = pem(tmp_path, "crl", crl)
        told = run("certtool", "--crl-info", "--infile", file).stdout
        assert f"Revoked certificates ({len(crl)})" in told or (len(crl) == 0 and "No revoked certificates" in told)
        for issuer, said in ((issuers[crl.issuer], "Verified."), (Forge().root, "Not verified.")):
            result = run(
                *("certtool", "--verify-crl", "--load-ca-certificate", pem(tmp_path, "ca", issuer), "--infile", file)
            )
            assert f"Verification output: {said}" in result.stdout, result.stdout


def nss(publisher: Publisher, folder: Path) -> str:
    """A database of NSS that trusts our root for clients and servers, and knows the certificates below it."""
    database = f"sql:{folder}"
    run("certutil", "-N", "-d", database, "--empty-password")
    for name, trust, certificate in (
        ("root", "CT,,", publisher.ca.root),
        ("intermediate", ",,", publisher.ca.intermediate),
        ("agent", ",,", publisher.agent.certificate),
        ("revoked", ",,", publisher.revoked.certificate),
    ):
        file = pem(folder, name, certificate)
        added = run("certutil", "-A", "-d", database, "-n", name, "-t", trust, "-a", "-i", file)
        assert added.returncode == 0, added.stderr
    return database


def judged(database: str, name: str, usage: str) -> str:
    """What certutil says about a certificate as that of a TLS client (C) or server (V)."""
    return run("certutil", "-V", "-d", database, "-n", name, "-u", usage, "-e").stdout


@needs("certutil", "vfychain")
def test_nss_takes_chains(publisher: Publisher, tmp_path: Path) -> None:
    database = nss(publisher, tmp_path)
    for usage in ("C", "V"):
        assert "certificate is valid" in judged(database, "agent", usage)
    for usage in ("0", "1"):  # the same two, for vfychain
        chain = (tmp_path / "agent.pem", tmp_path / "intermediate.pem")
        result = run("vfychain", "-d", database, "-pp", "-u", usage, "-a", *chain)
        assert "Chain is good!" in result.stdout + result.stderr


@needs("certutil", "crlutil")
def test_nss_takes_crls(plain: Publisher, tmp_path: Path) -> None:
    """The complete ones: NSS has no issuing distribution points, and refuses what has one, as it is critical."""
    database = nss(plain, tmp_path)
    assert "certificate is valid" in judged(database, "revoked", "V")
    for name, der in plain.crls.items():
        (tmp_path / name).write_bytes(der)
        imported = run("crlutil", "-I", "-d", database, "-i", tmp_path / name)
        assert imported.returncode == 0, imported.stderr
    assert "certificate is valid" in judged(database, "agent", "V")
    assert "Peer's Certificate has been revoked" in judged(database, "revoked", "V")
