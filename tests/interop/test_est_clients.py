"""The CA service against EST clients that others wrote: curl with openssl, and strongSwan's pki.

They skip where the tool is not there, and fail where A2A_TRUST_CI says that it must be.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.pki.service.parts import AGENT, EST, PUBLIC_URL, Running, new_ca, started

pytestmark = pytest.mark.slow


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("A2A_TRUST_CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with new_ca(tmp_path_factory.mktemp("interop") / "ca") as ca, started(ca) as running:
        yield running


@pytest.fixture
def folder(service: Running, tmp_path: Path) -> Path:
    """Where a client works: the root is there, out of band."""
    (tmp_path / "root.pem").write_bytes(service.ca.root.public_bytes(Encoding.PEM))
    (tmp_path / "root.der").write_bytes(service.ca.root.public_bytes(Encoding.DER))
    return tmp_path


def ran(folder: Path, *command: str | Path, data: bytes | None = None, **environment: str) -> bytes:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, f"{command}: {result.stdout!r} {result.stderr.decode(errors='replace')}"
    return result.stdout


def curl(folder: Path, url: str, *options: str | Path) -> bytes:
    return ran(folder, tool("curl"), "-sS", "--fail-with-body", "--noproxy", "*", *options, url)


def secure(service: Running, path: str) -> str:
    return service.url.replace("127.0.0.1", "localhost") + path


TLS = ("--tlsv1.3", "--cacert", "root.pem")


def ca_certificates(service: Running, folder: Path) -> list[x509.Certificate]:
    """As with any EST client: cacerts, through openssl."""
    encoded = curl(folder, secure(service, f"{EST}/cacerts"), *TLS)
    der = ran(folder, tool("openssl"), "base64", "-d", "-A", data=encoded)
    pem = ran(folder, "openssl", "pkcs7", "-inform", "DER", "-print_certs", data=der)
    (folder / "cacerts.pem").write_bytes(pem)
    return x509.load_pem_x509_certificates(pem)


def new_request(folder: Path, name: str) -> None:
    """A key that stays here, and a request in base64 DER."""
    ran(
        folder, tool("openssl"), "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}-key.pem", "-subj", "/CN=agent", "-addext", f"subjectAltName=URI:{AGENT}",
        "-outform", "DER", "-out", f"{name}.csr",
    )  # fmt: skip
    (folder / f"{name}.b64").write_bytes(ran(folder, "openssl", "base64", "-in", f"{name}.csr"))


def received(folder: Path, name: str, encoded: bytes) -> x509.Certificate:
    der = ran(folder, "openssl", "base64", "-d", "-A", data=encoded)
    pem = ran(folder, "openssl", "pkcs7", "-inform", "DER", "-print_certs", data=der)
    (folder / f"{name}.pem").write_bytes(pem)
    ran(
        folder, "openssl", "verify", "-x509_strict", "-purpose", "sslclient",
        "-CAfile", "root.pem", "-untrusted", "cacerts.pem", f"{name}.pem",
    )  # fmt: skip
    (certificate,) = x509.load_pem_x509_certificates(pem)
    return certificate


ENROL = ("-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64", "--data-binary")


def test_curl_and_openssl(service: Running, folder: Path) -> None:
    """The whole life of a certificate: enrolled, renewed with another key, looked up, revoked."""
    above = ca_certificates(service, folder)
    assert {c.serial_number for c in above} == {service.ca.root.serial_number, service.ca.intermediate.serial_number}

    new_request(folder, "first")
    answer = curl(
        folder, secure(service, f"{EST}/simpleenroll"), *TLS, "--user", f"agent:{service.token()}", *ENROL, "@first.b64"
    )
    first = received(folder, "first", answer)

    # The chain that the handshake needs is put together from cacerts, which is what curl's users do.
    (folder / "chain.pem").write_bytes((folder / "first.pem").read_bytes() + (folder / "cacerts.pem").read_bytes())
    new_request(folder, "second")
    own = ("--cert", "chain.pem", "--key", "first-key.pem")
    answer = curl(folder, secure(service, f"{EST}/simplereenroll"), *TLS, *own, *ENROL, "@second.b64")
    second = received(folder, "second", answer)
    assert second.public_key() != first.public_key()
    info = curl(folder, secure(service, "/renewal-info"), *TLS, *own)
    assert b'"urgent":false' in info

    attributes = base64.b64decode(curl(folder, secure(service, f"{EST}/csrattrs"), *TLS))
    assert b"id-ecPublicKey" in ran(folder, "openssl", "asn1parse", "-inform", "DER", data=attributes)

    assert status(service, folder, "second") == "good"
    service.ca.revoke(second.serial_number, x509.ReasonFlags.superseded)
    assert status(service, folder, "second") == "revoked"
    assert status(service, folder, "first") == "good"

    name = second.extensions.get_extension_for_class(x509.CRLDistributionPoints).value[0].full_name[0].value
    (folder / "list.crl").write_bytes(curl(folder, service.http_url + str(name).removeprefix(PUBLIC_URL)))
    shown = ran(
        folder, "openssl", "crl", "-inform", "DER", "-in", "list.crl", "-noout", "-text", "-CAfile", "cacerts.pem"
    )
    assert f"{second.serial_number:X}".encode() in shown and b"Superseded" in shown
    assert f"{first.serial_number:X}".encode() not in shown


def status(service: Running, folder: Path, name: str) -> str:
    """By `openssl ocsp`, which verifies the answer, its signer and its nonce."""
    said = ran(
        folder, tool("openssl"), "ocsp", "-sha256", "-issuer", issuer_file(service, folder), "-cert",
        f"{name}.pem", "-url", f"{service.http_url}/ocsp", "-CAfile", "root.pem",
        "-verify_other", "cacerts.pem", "-timeout", "20",
        no_proxy="*",
    ).decode()  # fmt: skip
    found = re.search(rf"{name}.pem: (\w+)", said)
    assert found is not None, said
    return found[1]


def issuer_file(service: Running, folder: Path) -> Path:
    (folder / "issuer.pem").write_bytes(service.ca.intermediate.public_bytes(Encoding.PEM))
    return folder / "issuer.pem"


def test_curl_without_a_token(service: Running, folder: Path) -> None:
    new_request(folder, "first")
    result = subprocess.run(
        [tool("curl"), "-sS", "--noproxy", "*", *TLS, *ENROL, "@first.b64", "-w", "%{http_code}",
         secure(service, f"{EST}/simpleenroll")],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stdout.endswith("401") and "pki.token.missing" in result.stdout


def test_curl_without_the_root(service: Running, folder: Path) -> None:
    """A client that was not given the root gets as far as the handshake, and keeps its token."""
    result = subprocess.run(
        [tool("curl"), "-sS", "--noproxy", "*", "--user", f"agent:{service.token()}",
         secure(service, f"{EST}/cacerts")],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 60, result.stderr  # CURLE_PEER_FAILED_VERIFICATION


def strongswan(folder: Path, *arguments: str | Path) -> bytes:
    """`pki` of strongSwan, whose own TLS speaks 1.3 when told to."""
    found = tool("pki")
    version = subprocess.run([found, "--help"], capture_output=True, text=True)
    if "--estca" not in version.stdout + version.stderr:
        pytest.skip(f"{found} is not strongSwan's, or older than 5.9.8")
    (folder / "strongswan.conf").write_text("libtls {\n  version_max = 1.3\n}\n")
    return ran(folder, found, *arguments, STRONGSWAN_CONF=str(folder / "strongswan.conf"), no_proxy="*")


def test_strongswan(service: Running, folder: Path) -> None:
    url = secure(service, "")
    strongswan(folder, "--estca", "--url", url, "--cacert", "root.der", "--caout", "strongswan.pem", "--outform", "pem")
    found = [x509.load_pem_x509_certificate(file.read_bytes()) for file in folder.glob("strongswan*.pem")]
    assert service.ca.root in found and service.ca.intermediate in found

    key = strongswan(folder, "--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem")
    (folder / "key.pem").write_bytes(key)
    request = strongswan(
        folder, "--req", "--in", "key.pem", "--type", "ecdsa", "--dn", "CN=agent", "--san", AGENT, "--digest", "sha256"
    )
    (folder / "request.der").write_bytes(request)
    (folder / "issuer.der").write_bytes(service.ca.intermediate.public_bytes(Encoding.DER))
    trusted = ("--cacert", "root.der", "--cacert", "issuer.der")
    enrolled = strongswan(
        folder, "--est", "--url", url, "--in", "request.der", *trusted, "--userpass", f"agent:{service.token()}",
        "--outform", "der",
    )  # fmt: skip
    certificate = x509.load_der_x509_certificate(enrolled)
    assert service.ca.find(certificate.serial_number).spiffe_id == AGENT

    (folder / "old.der").write_bytes(enrolled)
    renewed = strongswan(
        folder, "--est", "--url", url, "--in", "request.der", *trusted, "--cert", "old.der", "--key", "key.pem",
        "--outform", "der",
    )  # fmt: skip
    assert x509.load_der_x509_certificate(renewed).serial_number != certificate.serial_number
