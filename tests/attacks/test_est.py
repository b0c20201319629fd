"""What strangers, former agents and present ones send to the CA service: the answer, to the letter, and the trail.

One valid enrolment and one valid renewal, and one thing wrong with it in each row.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from pki import CertificateAuthority, keys
from pki.errors import EnrolmentTokenForged
from pki.service import attempts, serving
from tests.forge import Forge
from tests.pki.service.parts import (
    AGENT,
    DOMAIN,
    EST,
    PASSWORD,
    Running,
    agent,
    certificates,
    new_ca,
    raw,
    request,
    started,
)
from trust.audit import AuditLog
from trust.credentials import Credentials
from trust.errors import HandshakeRefused
from trust.seldom import LINES

OTHER = f"spiffe://{DOMAIN}/intruder"
HOUR = timedelta(hours=1)
BURST = attempts.BURST
PKCS10 = {"Content-Type": "application/pkcs10"}

Attack = Callable[[Running], httpx.Response]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that lets one address fail as often as this table does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "BURST", 1000)
        with (
            new_ca(tmp_path_factory.mktemp("est") / "ca", now=datetime.now(UTC) - 24 * HOUR) as ca,
            started(ca) as running,
        ):
            yield running


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def member(service: Running, agent_id: str = AGENT, **options: Any) -> Credentials:
    return service.ca.issue_credentials(agent_id, **options)


def post(service: Running, operation: str, body: bytes, token: str | None, **headers: str) -> httpx.Response:
    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
    return service.ask("POST", f"{EST}/{operation}", content=body, headers={**PKCS10, **authorization, **headers})


def encoded(csr: bytes) -> bytes:
    return base64.b64encode(csr)


def foreign_token(service: Running) -> str:
    """Well-formed, of another CA."""
    return "a2ae_" + "0123456789ab" * 2 + "_" + "0123456789abcdef" * 4


def wrong_secret(service: Running) -> str:
    token = service.token()
    return token[:-1] + ("0" if token[-1] != "0" else "1")


def used_token(service: Running) -> str:
    token = service.token()
    certificates(service.enrol(token))
    return token


def cancelled_token(service: Running) -> str:
    token = service.ca.create_token(AGENT)
    assert service.ca.cancel_token(token.id)
    return token.text


def banned(service: Running) -> str:
    agent_id = f"spiffe://{DOMAIN}/banned"
    token = service.token(agent_id)
    service.ca.ban(agent_id)
    return token


def broken_request() -> bytes:
    """Signed by another key than the one in it."""
    der = bytearray(request())
    der[-1] ^= 1
    return bytes(der)


def rsa_request() -> bytes:
    return request(key=rsa.generate_private_key(65537, 2048))


def weak_request() -> bytes:
    """Signed over a hash that is not of the SHA-2 family."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key(), hashes.SHA3_256()).public_bytes(Encoding.DER)


def revoked(service: Running) -> Credentials:
    credentials = member(service)
    service.ca.revoke(credentials.certificate.serial_number)
    return credentials


def banned_member(service: Running) -> Credentials:
    agent_id = f"spiffe://{DOMAIN}/banned-later"
    credentials = member(service, agent_id)
    service.ca.ban(agent_id)
    return credentials


def forged(service: Running) -> Credentials:
    """As the CA would have made it, by somebody who has its key: it chains to the root, and is not in the books."""
    real = member(service)
    issuer = next(i for i in service.ca.issuers() if i.kind == "intermediate")
    private_key = key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.certificate.subject)
        .issuer_name(real.certificate.issuer)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(real.certificate.not_valid_before_utc)
        .not_valid_after(real.certificate.not_valid_after_utc)
    )
    for extension in real.certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(private_key.public_key())
        builder = builder.add_extension(value, extension.critical)
    leaf = builder.sign(keys.open_signer(issuer, password=PASSWORD, pin=None), hashes.SHA256())  # type: ignore[arg-type]
    return Credentials.of((leaf, real.chain[1]), private_key)


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


# name, what is sent, status, RFC error code, the check on the wire and on the trail
ENROLMENT: list[tuple[str, Attack, int, str, str]] = [
    ("no token", lambda s: s.enrol(None), 401, "invalid_token", "pki.token.missing"),
    (
        "a certificate in place of a token",
        lambda s: s.enrol(None, credentials=member(s)),
        401,
        "invalid_token",
        "pki.token.missing",
    ),
    (
        "another scheme",
        lambda s: s.enrol(None, headers={"Authorization": f"Digest {s.token()}"}),
        401,
        "invalid_token",
        "pki.token.missing",
    ),
    (
        "the token as user name",
        lambda s: s.enrol(None, headers=basic(f"{s.token()}:")),
        401,
        "invalid_token",
        "pki.token.malformed",
    ),
    (
        "Basic that is no base64",
        lambda s: s.enrol(None, headers={"Authorization": "Basic ???"}),
        401,
        "invalid_token",
        "pki.token.malformed",
    ),
    (
        "two Authorization headers",
        lambda s: s.ask(
            "POST",
            f"{EST}/simpleenroll",
            content=encoded(request()),
            headers=[*PKCS10.items(), ("Authorization", f"Bearer {s.token()}"), ("Authorization", "Bearer x")],
        ),
        401,
        "invalid_token",
        "pki.token.malformed",
    ),
    ("half a token", lambda s: s.enrol(s.token()[:-1]), 401, "invalid_token", "pki.token.malformed"),
    ("SQL for a token", lambda s: s.enrol("'OR'1'='1'--"), 401, "invalid_token", "pki.token.malformed"),
    ("a token of another CA", lambda s: s.enrol(foreign_token(s)), 401, "invalid_token", "pki.token.unknown"),
    ("a wrong secret", lambda s: s.enrol(wrong_secret(s)), 401, "invalid_token", "pki.token.unknown"),
    ("a cancelled token", lambda s: s.enrol(cancelled_token(s)), 401, "invalid_token", "pki.token.unknown"),
    (
        "an expired token",
        lambda s: s.enrol(s.token(now=datetime.now(UTC) - HOUR)),
        401,
        "invalid_token",
        "pki.token.expired",
    ),
    ("a used token, another key", lambda s: s.enrol(used_token(s)), 401, "invalid_token", "pki.token.used"),
    (
        "a token of a banned agent",
        lambda s: s.enrol(banned(s), request(None)),
        403,
        "access_denied",
        "pki.policy.banned",
    ),
    ("a request for another ID", lambda s: s.enrol(s.token(), request(OTHER)), 403, "access_denied", "pki.policy.id"),
    (
        "a request for the service's own ID",
        lambda s: s.enrol(s.token(), request(f"spiffe://{DOMAIN}/a2a-pki/server")),
        403,
        "access_denied",
        "pki.policy.id",
    ),
    ("an RSA key", lambda s: s.enrol(s.token(), rsa_request()), 400, "invalid_request", "pki.request.key"),
    (
        "somebody else's key",
        lambda s: s.enrol(s.token(), broken_request()),
        400,
        "invalid_request",
        "pki.request.possession",
    ),
    (
        "a signature over another hash",
        lambda s: s.enrol(s.token(), weak_request()),
        400,
        "invalid_request",
        "pki.request.possession",
    ),
    ("no request", lambda s: s.enrol(s.token(), content=b""), 400, "invalid_request", "pki.request.malformed"),
    ("no base64", lambda s: s.enrol(s.token(), content=b"???"), 400, "invalid_request", "pki.request.malformed"),
    (
        "garbage in base64",
        lambda s: s.enrol(s.token(), content=encoded(b"\x30\x80garbage")),
        400,
        "invalid_request",
        "pki.request.malformed",
    ),
    (
        "DER in place of base64",
        lambda s: s.enrol(s.token(), content=request()),
        400,
        "invalid_request",
        "pki.request.malformed",
    ),
    (
        "a certificate in place of a request",
        lambda s: s.enrol(s.token(), content=encoded(member(s).chain_der[0])),
        400,
        "invalid_request",
        "pki.request.malformed",
    ),
    (
        "another content type",
        lambda s: s.enrol(s.token(), headers={"Content-Type": "application/json"}),
        400,
        "invalid_request",
        "pki.request.malformed",
    ),
    (
        "too large",
        lambda s: s.enrol(s.token(), content=b"A" * (16 * 1024 + 1)),
        413,
        "invalid_request",
        "pki.request.size",
    ),
]

RENEWAL: list[tuple[str, Attack, int, str, str]] = [
    ("no certificate", lambda s: s.renew(None), 403, "access_denied", "pki.renewal.certificate"),
    (
        "a token in place of a certificate",
        lambda s: post(s, "simplereenroll", encoded(request()), s.token()),
        403,
        "access_denied",
        "pki.renewal.certificate",
    ),
    ("revoked", lambda s: s.renew(revoked(s)), 403, "access_denied", "pki.renewal.revoked"),
    ("not in the books", lambda s: s.renew(forged(s)), 403, "access_denied", "pki.renewal.unknown"),
    (
        "banned",
        lambda s: s.renew(banned_member(s), request(f"spiffe://{DOMAIN}/banned-later")),
        403,
        "access_denied",
        "pki.policy.banned",
    ),
    ("for another ID", lambda s: s.renew(member(s), request(OTHER)), 403, "access_denied", "pki.policy.id"),
    (
        "for the ID in another case",
        lambda s: s.renew(member(s), request(AGENT.upper().replace("SPIFFE", "spiffe"))),
        403,
        "access_denied",
        "pki.policy.id",
    ),
    (
        "of the service's own certificate",
        lambda s: s.renew(s.serving.upkeep.credentials.current(), request(None)),
        403,
        "access_denied",
        "pki.policy.id",
    ),
    ("with an RSA key", lambda s: s.renew(member(s), rsa_request()), 400, "invalid_request", "pki.request.key"),
    (
        "without possession",
        lambda s: s.renew(member(s), broken_request()),
        400,
        "invalid_request",
        "pki.request.possession",
    ),
    (
        "too large",
        lambda s: s.ask("POST", f"{EST}/simplereenroll", credentials=member(s), content=b"A" * 17000, headers=PKCS10),
        413,
        "invalid_request",
        "pki.request.size",
    ),
    (
        "when to renew, and no certificate",
        lambda s: s.ask("GET", "/renewal-info"),
        403,
        "access_denied",
        "pki.renewal.certificate",
    ),
    (
        "when to renew what was revoked",
        lambda s: s.ask("GET", "/renewal-info", credentials=revoked(s)),
        403,
        "access_denied",
        "pki.renewal.revoked",
    ),
]

PUBLIC: list[tuple[str, Attack, int, str, str]] = [
    ("a list of nobody", lambda s: s.get(f"/crl/{'0' * 40}.crl"), 404, "invalid_request", "pki.name"),
    ("no name of a list", lambda s: s.get("/crl/ca.db"), 404, "invalid_request", "pki.name"),
    ("a way out, encoded", lambda s: s.get("/crl/..%5c..%5cca.db"), 404, "invalid_request", "pki.name"),
    ("a null byte", lambda s: s.get("/crl/a%00.crl"), 404, "invalid_request", "pki.name"),
    ("a CA of nobody", lambda s: s.get(f"/ca/{'0' * 40}.cer"), 404, "invalid_request", "pki.name"),
    (
        "OCSP: too large",
        lambda s: s.get("/ocsp", method="POST", content=b"0" * 8193),
        413,
        "invalid_request",
        "pki.request.size",
    ),
    ("OCSP: no base64", lambda s: s.get("/ocsp/%3f%3f"), 400, "invalid_request", "pki.request.malformed"),
    ("OCSP: another base64", lambda s: s.get("/ocsp/MA-_"), 400, "invalid_request", "pki.request.malformed"),
]


@pytest.mark.parametrize(
    ("event", "attack", "status", "code", "check"),
    [("enrol", *row[1:]) for row in ENROLMENT] + [("renew", *row[1:]) for row in RENEWAL],
    ids=[f"enrolment: {row[0]}" for row in ENROLMENT] + [f"renewal: {row[0]}" for row in RENEWAL],
)
def test_refused(service: Running, event: str, attack: Attack, status: int, code: str, check: str) -> None:
    response = attack(service)
    assert response.status_code == status, response.text
    content = response.json()
    request_id = content.pop("request")
    assert content == {"error": code, "check": check}
    assert response.headers["cache-control"] == "no-store"
    assert ("www-authenticate" in response.headers) is (status == 401)
    record = service.trail.records[-1]
    assert (record["decision"], record["check"], record["request"]) == ("deny", check, request_id)
    assert record["event"] == ("renewal-info" if record["target"] == "GET /renewal-info" else event)
    # What is wrong is on the trail, and not on the wire; what is secret is on neither.
    assert record["reason"] and record["reason"] not in response.text
    assert "a2ae_" not in response.text and "_" + "0123456789abcdef" * 4 not in str(service.trail.records)


def test_what_the_rows_are_mutations_of(service: Running) -> None:
    certificates(service.enrol(service.token()))
    certificates(service.renew(member(service)))


@pytest.mark.parametrize(
    ("attack", "status", "code", "check"), [row[1:] for row in PUBLIC], ids=[row[0] for row in PUBLIC]
)
def test_refused_to_the_public(service: Running, attack: Attack, status: int, code: str, check: str) -> None:
    before = len(service.trail.records)
    response = attack(service)
    assert (response.status_code, response.json()["error"]) == (status, code)
    new = service.trail.records[before:]
    assert [(record["decision"], record["check"]) for record in new] == ([("deny", check)] if check else [])


@pytest.mark.parametrize(
    "path", ["/crl/../ca.db", "/crl/..%2f..%2fca.db", "/ca/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/crl/", "/ca"]
)
def test_ways_out_of_a_path_are_no_paths(service: Running, path: str) -> None:
    """Sent as they are: a client would tidy them up."""
    answer = raw(service, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.split()[1] == b"404" and b"root:" not in answer


def test_ocsp_garbage_is_answered_in_ocsp(service: Running) -> None:
    for garbage in (b"", b"\x30\x80", b"\x00" * 8192):
        response = service.get("/ocsp", method="POST", content=garbage)
        assert response.status_code == 200
        answer = ocsp.load_der_ocsp_response(response.content)
        assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
        assert service.trail.records[-1]["check"] == "pki.ocsp.malformed_request"


FOREIGN: list[tuple[str, Callable[[Running], Credentials], str]] = [
    ("of another domain", lambda s: Forge("other.example").leaf(), "peer.trust_domain"),
    ("of our domain by another CA", lambda s: Forge(DOMAIN).leaf(AGENT), "peer.chain"),
    ("expired", lambda s: member(s, lifetime=HOUR, now=datetime.now(UTC) - 2 * HOUR), "peer.expired"),
]


@pytest.mark.parametrize(("credentials", "check"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_certificates_that_do_not_get_past_the_handshake(
    service: Running, credentials: Callable[[Running], Credentials], check: str
) -> None:
    with pytest.raises(HandshakeRefused):
        service.renew(credentials(service))
    record = service.trail.records[-1]
    assert (record["event"], record["decision"], record["check"]) == ("handshake", "deny", check)


def test_an_address_that_fails_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing costs the CA a bounded number of looks, even when all of it comes at once."""
    monkeypatch.setattr(attempts, "BURST", BURST)
    monkeypatch.setattr(attempts, "INTERVAL", 600.0)  # not one more, however long a busy machine takes for all of this
    with new_ca(tmp_path / "ca") as ca, started(ca) as running:
        good, guess = running.token(), foreign_token(running)

        async def guesses() -> list[int]:
            answers = await asyncio.gather(
                *(
                    running.asked(
                        "POST",
                        f"{EST}/simpleenroll",
                        content=encoded(request()),
                        headers={**PKCS10, "Authorization": f"Bearer {guess}"},
                    )
                    for _ in range(100)
                )
            )
            return [answer.status_code for answer in answers]

        statuses = asyncio.run(guesses())
        assert set(statuses) == {401, 429}
        assert BURST <= statuses.count(401) <= BURST + 1, "one thread counts them"
        refused = running.enrol(guess)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] and "www-authenticate" not in refused.headers
        assert refused.json()["error"] == "temporarily_unavailable"
        assert running.trail.records[-1]["check"] == "pki.token.attempts"
        # Whoever shares the address, and has a good token, is not kept from using it, nor from asking again for what
        # was lost on its way; for another key it is no token any more.
        csr = request()
        first = certificates(running.enrol(good, csr))
        assert certificates(running.enrol(good, csr)) == first
        assert running.enrol(good).status_code == 429
        certificates(running.renew(member(running)))  # who has a certificate is not kept from renewing
        assert running.get("/health").status_code == 200


def _broken() -> bytes:
    """A request whose signature is wrong: it costs a look at the token, and the check of a signature."""
    csr = bytearray(request())
    csr[-1] ^= 1
    return encoded(bytes(csr))


@pytest.mark.parametrize("has", ["a token of no CA", "a good token"])
@pytest.mark.parametrize("body", [b"x", _broken()], ids=["no base64", "a wrong signature"])
def test_requests_that_are_none_are_failures_as_well(
    has: str, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "BURST", BURST)
    monkeypatch.setattr(attempts, "INTERVAL", 600.0)
    with new_ca(tmp_path / "ca") as ca, started(ca) as running:
        token, other = running.token() if has == "a good token" else foreign_token(running), running.token()
        statuses = [post(running, "simpleenroll", body, token).status_code for _ in range(BURST + 3)]
        assert statuses[BURST:] == [429] * 3 and 429 not in statuses[:BURST]
        certificates(running.enrol(other))  # at the same address


def test_strangers_do_not_fill_the_trail(tmp_path: Path) -> None:
    with new_ca(tmp_path / "ca") as ca, started(ca) as running:

        async def knock() -> None:
            async with agent(running.serving.upkeep.bundles) as client:
                for _ in range(LINES + 20):
                    await client.post(f"{running.url}{EST}/simpleenroll", headers=PKCS10)
                    await client.post(f"{running.url}{EST}/simplereenroll", headers=PKCS10)
                    await client.get(f"{running.url}/renewal-info")

        asyncio.run(knock())
        for event in ("enrol", "renew", "renewal-info"):
            assert LINES <= len(running.trail.of(event)) < LINES + 20, event


def test_one_certificate_is_not_renewed_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each renewal is a row and a ledger entry, for good."""
    monkeypatch.setattr(attempts, "RENEWALS_BURST", BURST)
    monkeypatch.setattr(attempts, "AGENT_RENEWALS_BURST", BURST + 2)
    monkeypatch.setattr(attempts, "RENEWALS_INTERVAL", 600.0)
    monkeypatch.setattr(attempts, "AGENT_RENEWALS_INTERVAL", 600.0)
    with new_ca(tmp_path / "ca") as ca, started(ca) as running:
        credentials, other = member(running), member(running)
        for _ in range(BURST):
            certificates(running.renew(credentials))
        refused = running.renew(credentials)
        assert (refused.status_code, refused.json()["check"]) == (429, "pki.renewal.attempts")
        assert refused.headers["retry-after"]
        # Another certificate of the same agent has its own count, and the agent has one over all of them.
        for _ in range(2):
            certificates(running.renew(other))
        assert running.renew(other).status_code == 429
        certificates(running.renew(member(running, OTHER), request(OTHER)))


def test_a_used_token_gives_nothing_of_a_tainted_ca(tmp_path: Path) -> None:
    with new_ca(tmp_path / "ca") as ca:
        csr, token = request(), ca.create_token(AGENT).text
        first = ca.enrol(csr, token)
        assert ca.enrol(csr, token).certificate == first.certificate
        ca.taint(ca.issuers()[1].key_id)
        with pytest.raises(EnrolmentTokenForged):  # whoever has that CA's key can make tokens
            ca.enrol(csr, token)


def test_what_cannot_be_recorded_is_not_handed_out(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    async def ask(ca: CertificateAuthority) -> tuple[httpx.Response, httpx.Response]:
        async with serving(ca, audit=AuditLog.to(Full())) as one, agent(one.upkeep.bundles) as client:
            answers = []
            for text in (ca.create_token(AGENT).text, "a2ae_" + "0" * 24 + "_" + "0" * 64):
                answers.append(
                    await client.post(
                        f"{one.url}{EST}/simpleenroll",
                        content=encoded(request()),
                        headers={**PKCS10, "Authorization": f"Bearer {text}"},
                    )
                )
            return answers[0], answers[1]

    with new_ca(tmp_path / "ca") as ca:
        allowed, denied = asyncio.run(ask(ca))
    assert (allowed.status_code, allowed.json()["error"]) == (503, "temporarily_unavailable")
    assert denied.status_code == 401, "what is refused stays refused"


def test_a_token_is_burnt_once_however_many_ask_at_once(service: Running) -> None:
    token = service.token()

    async def race() -> list[httpx.Response]:
        return await asyncio.gather(
            *(
                service.asked(
                    "POST",
                    f"{EST}/simpleenroll",
                    content=encoded(request()),
                    headers={**PKCS10, "Authorization": f"Bearer {token}"},
                )
                for _ in range(16)
            )
        )

    answers = asyncio.run(race())
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 15


def test_nothing_of_this_was_issued_to_the_intruder(service: Running) -> None:
    assert service.ca.certificates(spiffe_id=OTHER) == []
