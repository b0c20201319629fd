"""Revocation lists, CA certificates and OCSP over plain HTTP; the bundle over the Web PKI."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp

from pki import CertificateAuthority
from pki.errors import RequestMalformed
from pki.service.publications import MAX_OCSP_BYTES, ocsp_request
from pki.store import Store
from tests.pki.service.parts import DOMAIN, PUBLIC_URL, Running, certificates, new_ca, started
from tests.pki.store.parts import intrude
from trust.bundles import TrustBundle


@pytest.fixture(scope="module")
def leaf(service: Running) -> x509.Certificate:
    (leaf,) = certificates(service.enrol(service.token()))
    return leaf


def path_of(url: str) -> str:
    """Where the service has what a certificate names by the CA's public URL."""
    assert url.startswith(PUBLIC_URL)
    return url.removeprefix(PUBLIC_URL)


def crl_url(leaf: x509.Certificate) -> str:
    points = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (name,) = points[0].full_name or ()
    return str(name.value)


def access_url(leaf: x509.Certificate, method: x509.ObjectIdentifier) -> str:
    access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (found,) = (str(one.access_location.value) for one in access if one.access_method == method)
    return found


def question(service: Running, leaf: x509.Certificate, nonce: bytes | None = None) -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate(leaf, service.ca.intermediate, hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def test_the_list_that_a_certificate_names(service: Running, leaf: x509.Certificate) -> None:
    response = service.get(path_of(crl_url(leaf)))
    assert response.headers["content-type"] == "application/pkix-crl"
    crl = x509.load_der_x509_crl(response.content)
    assert crl.is_signature_valid(service.ca.intermediate.public_key())  # type: ignore[arg-type]
    again = service.get(path_of(crl_url(leaf)), headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = service.get(path_of(crl_url(leaf)), method="HEAD")
    assert head.content == b"" and head.headers["content-length"] == str(len(response.content))
    assert service.ask("GET", path_of(crl_url(leaf))).content == response.content  # over TLS as well


def test_the_index_of_the_lists(service: Running, leaf: x509.Certificate) -> None:
    """On both sides, without a signature, and without having any list made."""
    response = service.get("/crl")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"].startswith("max-age=5, public")
    names = response.json()["lists"]
    assert names == list(service.ca.revocations.names(datetime.now(UTC)))
    assert path_of(crl_url(leaf)) in [f"/crl/{name}" for name in names]
    for name in names:
        crl = x509.load_der_x509_crl(service.get(f"/crl/{name}").content)
        assert crl.issuer in (service.ca.root.subject, service.ca.intermediate.subject)
    assert service.ask("GET", "/crl").content == response.content
    again = service.get("/crl", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert service.get("/crl", method="POST").status_code == 405
    assert service.get("/crl/").status_code == 404


def test_the_index_of_a_ca_with_two_intermediates(
    own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are counted over all CAs, so those of the second one begin where the first one ended."""
    with started(own_ca) as running:
        running.enrol(running.token())
        first, before = own_ca.issuers()[-1].key_id, set(running.get("/crl").json()["lists"])
        assert f"{first}.crl" in before
        own_ca.taint(first)
        monkeypatch.setattr(Store, "shard", lambda _: 3)
        (leaf,) = certificates(running.enrol(running.token()))
        assert crl_url(leaf).endswith("-3.crl")
        time.sleep(1.1)  # the service keeps what it publishes for a second
        second, after = own_ca.issuers()[-1].key_id, set(running.get("/crl").json()["lists"])
        assert {f"{first}.crl", f"{second}.crl", f"{second}-3.crl"} <= after
        assert f"{second}-2.crl" not in after
        for name in after:
            assert running.get(f"/crl/{name}").status_code == 200


def test_a_revocation_is_on_the_list_within_seconds(service: Running) -> None:
    (leaf,) = certificates(service.enrol(service.token()))
    before = service.get(path_of(crl_url(leaf)))
    assert leaf.serial_number not in {one.serial_number for one in x509.load_der_x509_crl(before.content)}
    service.ca.revoke(leaf.serial_number)
    time.sleep(1.1)
    after = service.get(path_of(crl_url(leaf)), headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert leaf.serial_number in {one.serial_number for one in x509.load_der_x509_crl(after.content)}


def test_the_ca_certificate_that_a_certificate_names(service: Running, leaf: x509.Certificate) -> None:
    response = service.get(path_of(access_url(leaf, x509.AuthorityInformationAccessOID.CA_ISSUERS)))
    assert response.headers["content-type"] == "application/pkix-cert"
    assert x509.load_der_x509_certificate(response.content) == service.ca.intermediate


def test_a_ca_that_somebody_has_put_into_the_database_is_not_handed_out(tmp_path: Path) -> None:
    with new_ca(tmp_path / "ca") as ca, started(ca) as running:
        intruder = intrude(tmp_path / "ca")
        assert [one.key_id for one in ca.issuers()][-1] == intruder.key_id
        assert running.get(f"/ca/{intruder.key_id}.cer").status_code == 404
        for genuine in ca.issuers()[:-1]:
            assert running.get(f"/ca/{genuine.key_id}.cer").content == genuine.der
        given = certificates(running.ask("GET", "/.well-known/est/cacerts"))
        assert {one.public_bytes(Encoding.DER) for one in given} == {one.der for one in ca.issuers()[:-1]}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ocsp(service: Running, leaf: x509.Certificate, method: str) -> None:
    path = path_of(access_url(leaf, x509.AuthorityInformationAccessOID.OCSP))
    assert path == "/ocsp"
    body = question(service, leaf)
    if method == "POST":
        response = service.get(path, method="POST", content=body, headers={"Content-Type": "application/ocsp-request"})
        assert response.headers["cache-control"] == "no-store"
    else:
        response = service.get(f"{path}/{quote(base64.b64encode(body), safe='')}")
    assert response.status_code == 200 and response.headers["content-type"] == "application/ocsp-response"
    answer = ocsp.load_der_ocsp_response(response.content)
    assert answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    assert (answer.certificate_status, answer.serial_number) == (ocsp.OCSPCertStatus.GOOD, leaf.serial_number)
    if method == "GET":  # RFC 5019 section 6.2
        assert answer.next_update_utc is not None
        assert response.headers["etag"] and response.headers["last-modified"]
        max_age = int(response.headers["cache-control"].split(",")[0].removeprefix("max-age="))
        left = (answer.next_update_utc - datetime.now(UTC)).total_seconds()
        assert 0 < max_age <= 120 < left, "no cache hides a revocation for longer"
        assert answer.this_update_utc.strftime("%H:%M:%S GMT") in response.headers["last-modified"]


def test_ocsp_of_a_revoked_certificate_with_a_nonce(service: Running) -> None:
    (leaf,) = certificates(service.enrol(service.token()))
    service.ca.revoke(leaf.serial_number, x509.ReasonFlags.key_compromise)
    response = service.get("/ocsp", method="POST", content=question(service, leaf, b"n" * 32))
    answer = ocsp.load_der_ocsp_response(response.content)
    assert answer.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert answer.revocation_reason is x509.ReasonFlags.key_compromise
    assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32


@pytest.mark.parametrize("how", ["POST", "GET"])
def test_what_is_no_ocsp_request(service: Running, how: str) -> None:
    """Answered in OCSP's own words, and on the trail."""
    path = "/ocsp" if how == "POST" else "/ocsp/" + base64.b64encode(b"garbage").decode()
    response = service.get(path, method=how, content=b"garbage" if how == "POST" else None)
    answer = ocsp.load_der_ocsp_response(response.content)
    assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
    assert response.headers["cache-control"] == "no-store"
    assert service.trail.records[-1]["check"] == "pki.ocsp.malformed_request"


@pytest.mark.parametrize("path", ["", "MA==", "MAMCAQE="])
def test_the_request_in_a_path(path: str) -> None:
    assert ocsp_request(path) == base64.b64decode(path)


@pytest.mark.parametrize("path", ["MA", "MA=", "M A==", "MA==\n", "é", "MA==MA==", "M" * (MAX_OCSP_BYTES * 2)])
def test_no_request_in_a_path(path: str) -> None:
    with pytest.raises(RequestMalformed):
        ocsp_request(path)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/.well-known/est/cacerts", 404),
        ("/.well-known/est/simpleenroll", 404),
        ("/renewal-info", 404),
        ("/bundle", 404),
        ("/", 404),
        ("/docs", 404),
    ],
)
def test_plain_http_has_nothing_else(service: Running, path: str, status: int) -> None:
    assert service.get(path).status_code == status
    assert service.get(path, method="POST", content=b"x").status_code == status


class WebCA:
    """A Web PKI of one's own, for one host."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._signed("web root", self.key.public_key(), True)

    def write(self, folder: Path) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed("localhost", key.public_key(), False)
        files = folder / "web.pem", folder / "web-key.pem"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.serial = certificate.serial_number
        return files

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.root.public_bytes(Encoding.PEM).decode())

    def _signed(self, name: str, key: ec.EllipticCurvePublicKey, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.root.subject
        now = datetime.now(UTC)
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture
def web() -> WebCA:
    return WebCA()


@pytest.fixture
def webbed(own_ca: CertificateAuthority, web: WebCA, tmp_path: Path) -> Iterator[Running]:
    with started(own_ca, web_port=0, web_certificate=web.write(tmp_path)) as running:
        yield running


def test_the_bundle_over_https_web(webbed: Running, web: WebCA, tmp_path: Path) -> None:
    """The operator's certificate, for whoever trusts the Web PKI; and a new one once its files are replaced."""
    assert webbed.serving.web_url is not None
    url = webbed.serving.web_url.replace("127.0.0.1", "localhost")
    with httpx.Client(verify=web.context(), trust_env=False) as client:
        response = client.get(f"{url}/bundle")
        assert TrustBundle.from_json(response.content, DOMAIN) == webbed.ca.bundle()
        assert client.get(f"{url}/bundle", headers={"If-None-Match": response.headers["etag"]}).status_code == 304
        for path in ("/ready", "/health", "/crl/x", "/.well-known/est/cacerts", "/metrics", "/ocsp"):
            assert client.get(url + path).status_code == 404
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get(f"{url}/bundle")

    time.sleep(0.01)
    web.write(tmp_path)
    webbed.serving.upkeep.round()
    with httpx.Client(verify=web.context(), trust_env=False) as client:
        response = client.get(f"{url}/bundle")
        presented = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
    assert x509.load_der_x509_certificate(presented).serial_number == web.serial


def test_a_web_certificate_that_is_broken_later(webbed: Running, web: WebCA, tmp_path: Path) -> None:
    """It goes on with the one that it has, and says so."""
    (tmp_path / "web-key.pem").write_text("half a key")
    webbed.serving.upkeep.round()
    ready = webbed.get("/ready")
    assert ready.status_code == 503 and ready.json()["checks"]["upkeep.web certificate"] is False
    assert webbed.serving.web_url is not None
    with httpx.Client(verify=web.context(), trust_env=False) as client:
        assert client.get(webbed.serving.web_url.replace("127.0.0.1", "localhost") + "/bundle").status_code == 200
    web.write(tmp_path)
    webbed.serving.upkeep.round()
    assert webbed.get("/ready").status_code == 200
