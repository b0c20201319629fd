"""EST over real TLS, against a real CA."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pki import CertificateAuthority
from pki.records import State
from tests.pki.service.parts import AGENT, DOMAIN, EST, PASSWORD, Running, certificates, request, started
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.peers import verify_peer


def enrolled(service: Running, key: ec.EllipticCurvePrivateKey, **options: object) -> Credentials:
    """Enrol with a new token, and put the chain together from cacerts, as every EST client does."""
    (leaf,) = certificates(service.enrol(service.token(**options), request(key=key)))
    return joined(service, leaf, key)


def joined(service: Running, leaf: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Credentials:
    above = certificates(service.ask("GET", f"{EST}/cacerts"))
    issuer = next(c for c in above if c.subject == leaf.issuer)
    leaf.verify_directly_issued_by(issuer)
    return Credentials.of((leaf, issuer), key)


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_enrolment_gives_an_agent_its_certificate(service: Running, key: ec.EllipticCurvePrivateKey) -> None:
    response = service.enrol(service.token(dns_names=("billing.fleet.example",)), request(key=key))
    (leaf,) = certificates(response)  # the issued certificate and nothing else (RFC 7030 section 4.2.3)
    credentials = joined(service, leaf, key)
    bundles = TrustBundles.of(service.ca.bundle())
    peer = verify_peer(credentials.chain_der, bundles=bundles, now=datetime.now(UTC), usage="client")
    assert str(peer.agent_id) == AGENT
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["billing.fleet.example"]
    assert service.ca.find(leaf.serial_number).thumbprint == credentials.thumbprint


def test_what_the_trail_says_of_it(service: Running) -> None:
    token = service.token()
    (leaf,) = certificates(service.enrol(token))
    record = service.trail.of("enrol")[-1]
    assert record["decision"] == "allow" and record["check"] == "all"
    assert record["subject"] == AGENT and record["serial"] == f"{leaf.serial_number:x}"
    assert record["peer"].startswith("127.0.0.1:") and record["target"] == f"POST {EST}/simpleenroll"
    assert token not in str(service.trail.records)


def test_the_token_as_password_of_http_basic(service: Running) -> None:
    pair = base64.b64encode(f"whoever:{service.token()}".encode()).decode()
    certificates(service.enrol(None, headers={"Authorization": f"Basic {pair}"}))


def test_without_a_token_the_schemes_are_named(service: Running) -> None:
    response = service.enrol(None)
    assert response.status_code == 401
    assert response.headers.get_list("www-authenticate") == [
        'Basic realm="a2a-pki", charset="UTF-8"',
        'Bearer realm="a2a-pki"',
    ]
    assert response.json() == {
        "error": "invalid_token",
        "check": "pki.token.missing",
        "request": response.headers["x-request-id"],
    }
    assert service.trail.records[-1]["request"] == response.headers["x-request-id"]


def test_a_lost_reply_is_no_loss(service: Running, key: ec.EllipticCurvePrivateKey) -> None:
    """The same token, for the same key, gives the same certificate again."""
    token = service.token()
    first, second = (certificates(service.enrol(token, request(key=key))) for _ in range(2))
    assert first == second


def test_renewal_with_a_new_key(service: Running, key: ec.EllipticCurvePrivateKey) -> None:
    old = enrolled(service, key)
    new_key = ec.generate_private_key(ec.SECP256R1())
    (leaf,) = certificates(service.renew(old, request(key=new_key)))
    assert leaf.public_key() == new_key.public_key()
    new = joined(service, leaf, new_key)
    assert new.agent_id == old.agent_id and new.thumbprint != old.thumbprint
    record = service.trail.of("renew")[-1]
    assert (record["decision"], record["peer"], record["subject"]) == ("allow", AGENT, AGENT)
    certificates(service.renew(old, request(key=new_key)))  # the old one is good until its end


def test_renewal_of_a_request_without_names(service: Running, key: ec.EllipticCurvePrivateKey) -> None:
    old = enrolled(service, key)
    (leaf,) = certificates(service.renew(old, request(None, key)))
    assert joined(service, leaf, key).agent_id == old.agent_id


def test_when_to_renew(service: Running, key: ec.EllipticCurvePrivateKey) -> None:
    credentials = enrolled(service, key)
    info = service.ask("GET", "/renewal-info", credentials=credentials)
    assert info.status_code == 200 and info.headers["cache-control"] == "no-store"
    members = info.json()
    assert members["urgent"] is False and members["explanation"]
    start, end = credentials.certificate.not_valid_before_utc, credentials.certificate.not_valid_after_utc
    assert start + (end - start) / 2 < datetime.fromisoformat(members["renewAt"]) < end


def test_cacerts_hold_the_whole_chain(service: Running) -> None:
    found = certificates(service.ask("GET", f"{EST}/cacerts"))
    assert {c.serial_number for c in found} == {service.ca.root.serial_number, service.ca.intermediate.serial_number}


def test_attributes(service: Running) -> None:
    response = service.ask("GET", f"{EST}/csrattrs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/csrattrs"
    assert response.headers["content-transfer-encoding"] == "base64"
    assert base64.b64decode(response.content)[0] == 0x30


def test_the_bundle_over_https_spiffe(service: Running) -> None:
    response = service.ask("GET", "/bundle")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"].startswith(f"max-age={service.ca.bundle().refresh_hint},")
    assert type(service.ca.bundle()).from_json(response.content, DOMAIN) == service.ca.bundle()


@pytest.mark.parametrize("path", [f"{EST}/cacerts", f"{EST}/csrattrs", "/bundle", "/health", "/ready"])
def test_head(service: Running, path: str) -> None:
    got, head = service.ask("GET", path), service.ask("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content)) != "0"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", f"{EST}/simpleenroll", 405, {"POST"}),
        ("PUT", f"{EST}/simplereenroll", 405, {"POST"}),
        ("POST", f"{EST}/cacerts", 405, {"GET", "HEAD"}),
        ("DELETE", "/bundle", 405, {"GET", "HEAD"}),
        ("POST", f"{EST}/serverkeygen", 404, None),
        ("POST", f"{EST}/fullcmc", 404, None),
        ("GET", f"{EST}/", 404, None),
        ("GET", "/ocsp", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/bundle/", 404, None),
    ],
)
def test_paths_and_methods(service: Running, method: str, path: str, status: int, allow: set[str] | None) -> None:
    response = service.ask(method, path)
    assert response.status_code == status
    assert response.json()["error"] == "invalid_request"
    if allow is not None:
        assert set(response.headers["allow"].split(", ")) == allow


def test_renewals_while_the_intermediate_is_replaced_by_another_process(
    own_ca: CertificateAuthority, tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """It is revoked and followed by another in one transaction: nobody who renews at that moment notices."""
    with started(own_ca) as running, CertificateAuthority.open(tmp_path / "ca", password=PASSWORD) as other:
        own = [[enrolled(running, key) for _ in range(2)] for _ in range(2)]
        begun, over = threading.Barrier(3), threading.Event()

        def keep_renewing(credentials: list[Credentials]) -> list[int]:
            statuses = []
            begun.wait(20)
            for number in range(50):  # what one certificate may do at once
                last = over.is_set()
                statuses.append(running.renew(credentials[number % 2], request(key=key)).status_code)
                if last:
                    break
            return statuses

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(keep_renewing, credentials) for credentials in own]
            begun.wait(20)
            first = other.issuers()[-1]
            other.taint(first.key_id)  # the next one is made
            (second,) = (issuer for issuer in other.issuers() if issuer.state is State.ACTIVE and issuer.kind != "root")
            other.rotate(kind="intermediate", force=True)
            other.taint(second.key_id)  # the next one was prepared
            over.set()
            statuses = [status for one in asking for status in one.result()]
        assert set(statuses) == {200} and len(statuses) > 2
        states = [issuer.state for issuer in other.issuers() if issuer.kind == "intermediate"]
        assert states == [State.REVOKED, State.REVOKED, State.ACTIVE]
        assert other.audit_ledger().problems == ()


def test_where_no_ca_can_issue_the_agent_is_told_to_come_again(
    own_ca: CertificateAuthority, tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """The root is offline, so that nobody here can make the next intermediate."""
    with started(own_ca) as running:
        old = enrolled(running, key)
        own_ca.export_root(tmp_path / "root", PASSWORD)
        own_ca.revoke(own_ca.intermediate.serial_number)
        refused = running.renew(old, request(key=key))
        assert refused.status_code == 503
        assert refused.headers["retry-after"].isdigit()
        assert refused.json().keys() == {"error", "request"}
        assert running.trail.of("renew")[-1]["check"] == "pki.validity"
