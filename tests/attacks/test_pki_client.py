"""The agent's side of enrolment and renewal against everything that may stand in the CA service's place.

One valid service, one named mutation a row, the exact error in the row; and in every row: no token for whoever has not
proved to be the CA, no file that was replaced, no secret in what is said.
"""

from __future__ import annotations

import base64
import gzip
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from pki.client import renewal
from pki.client.enrol import enrol
from pki.client.est import MAX_ANSWER_BYTES
from pki.client.renewal import RenewingCredentials
from pki.errors import (
    AnswerRefused,
    AuthorityUnreachable,
    EnrolmentFailed,
    EnrolmentTokenMalformed,
    PinMismatch,
)
from tests.forge import HOUR, NOW
from tests.pki.client.fake import BILLING, ELSEWHERE, FORGE, IMPOSTOR, TOKEN, Service
from trust.bundles import TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    ConfigurationError,
    CredentialsError,
    HandshakeRefused,
    NoSpiffeID,
    PeerNotAllowed,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
)
from trust.identity import fingerprint


def change(**attributes: Any) -> Callable[[Service], None]:
    def apply(service: Service) -> None:
        for name, value in attributes.items():
            setattr(service, name, value)

    return apply


def instead(path: str, answer: Response | Callable[[], Response]) -> Callable[[Service], None]:
    return change(instead={path: answer})


CACERTS, ENROLL, REENROLL = (f"/.well-known/est/{name}" for name in ("cacerts", "simpleenroll", "simplereenroll"))
ROOT_PIN = fingerprint(FORGE.root.public_bytes(Encoding.DER))
NAMELESS = FORGE._certificate("nameless", FORGE.root_key.public_key(), None, FORGE.root_key, [], 24 * HOUR)


def endless() -> Response:
    async def stream() -> Any:
        for _ in range(64):
            yield b"A" * (MAX_ANSWER_BYTES // 16)

    return StreamingResponse(stream(), media_type="application/pkcs7-mime")


def compressed() -> Response:
    body = gzip.compress(base64.b64encode(pkcs7.serialize_certificates([FORGE.root], Encoding.DER)))
    return Response(body, media_type="application/pkcs7-mime", headers={"content-encoding": "gzip"})


# Before the token: whoever answers has not proved anything.
IMPOSTORS: dict[str, tuple[Callable[[Service], None], type[Exception]]] = {
    "another root": (change(cacerts=[IMPOSTOR.root, IMPOSTOR.intermediate]), PinMismatch),
    "no certificate but the intermediate": (change(cacerts=[FORGE.intermediate]), PinMismatch),
    "the right root, a server of an impostor's": (change(source=IMPOSTOR.leaf("/a2a-pki/server")), UntrustedChain),
    "the right root, a server of elsewhere": (change(source=ELSEWHERE.leaf("/a2a-pki/server")), UnknownTrustDomain),
    "the right root, an agent in the server's place": (change(source=FORGE.leaf("/billing")), PeerNotAllowed),
    "an agent with a name like the server's": (change(source=FORGE.leaf("/a2a-pki/server2")), PeerNotAllowed),
    "a server for clients only": (
        change(source=FORGE.leaf("/a2a-pki/server", eku=[ExtendedKeyUsageOID.CLIENT_AUTH])),
        WrongExtendedKeyUsage,
    ),
    "a server that has expired": (
        change(source=FORGE.leaf("/a2a-pki/server", not_after=NOW - timedelta(minutes=5))),
        CertificateExpired,
    ),
    "a server that is not valid yet": (
        change(source=FORGE.leaf("/a2a-pki/server", not_before=NOW + 3 * HOUR)),
        CertificateNotYetValid,
    ),
    "a bundle without the pinned root": (
        change(trusted=TrustBundle(trust_domain="fleet.example", roots=(IMPOSTOR.root,), sequence=9)),
        AnswerRefused,
    ),
    "a bundle that is none": (instead("/bundle", PlainTextResponse("{}")), AnswerRefused),
    "an endless bundle": (instead("/bundle", lambda: Response(b"[" * (5 << 20))), AnswerRefused),
    "a web page": (instead(CACERTS, PlainTextResponse("<html>")), AnswerRefused),
    "no such page": (instead(CACERTS, PlainTextResponse("no", 404)), AnswerRefused),
    "a redirect": (instead(CACERTS, RedirectResponse("https://elsewhere.example/")), AnswerRefused),
    "come back later": (instead(CACERTS, Response(status_code=202)), AnswerRefused),
    "trouble": (instead(CACERTS, PlainTextResponse("", 500)), AuthorityUnreachable),
    "overload": (instead(CACERTS, PlainTextResponse("", 429)), AuthorityUnreachable),
    "no base64": (instead(CACERTS, Response("~~~~", media_type="application/pkcs7-mime")), AnswerRefused),
    "base64 of nothing": (instead(CACERTS, Response("", media_type="application/pkcs7-mime")), AnswerRefused),
    "base64 of rubbish": (instead(CACERTS, Response("AAAA", media_type="application/pkcs7-mime")), AnswerRefused),
    "an endless answer": (instead(CACERTS, endless), AnswerRefused),
    "a compressed answer": (instead(CACERTS, compressed), AnswerRefused),
}

# After it: what the answer gives us is judged as if anybody had sent it.
ANSWERS: dict[str, tuple[Callable[[Service], None], type[Exception]]] = {
    "somebody else's key": (
        change(answer=lambda chain: list(FORGE.leaf("/billing").chain)),
        AnswerRefused,
    ),
    "no leaf": (change(answer=lambda chain: chain[1:]), AnswerRefused),
    "a foreign ID": (change(leaf={"agent": "/planner"}), AnswerRefused),
    "the ID of another domain": (change(leaf={"agent": "spiffe://other.example/billing"}), UnknownTrustDomain),
    "an impostor's signature": (change(forge=IMPOSTOR), UntrustedChain),
    "expired": (change(leaf={"not_after": NOW - timedelta(minutes=1)}), CertificateExpired),
    "not valid yet": (change(leaf={"not_before": NOW + 3 * HOUR}), CertificateNotYetValid),
    "a month": (change(leaf={"not_after": NOW + 30 * 24 * HOUR}), AnswerRefused),
    "a CA": (change(leaf={"is_ca": True}), CertificateIsCA),
    "no ID": (change(leaf={"sans": [x509.DNSName("billing")]}), NoSpiffeID),
    "for servers only": (change(leaf={"eku": [ExtendedKeyUsageOID.SERVER_AUTH]}), WrongExtendedKeyUsage),
    "for clients only": (change(leaf={"eku": [ExtendedKeyUsageOID.CLIENT_AUTH]}), WrongExtendedKeyUsage),
}

REFUSALS: dict[str, tuple[Callable[[Service], None], type[Exception]]] = {
    "refused without a word": (instead(ENROLL, Response(status_code=401)), EnrolmentFailed),
    "refused with other words": (instead(ENROLL, JSONResponse(["no"], 403)), EnrolmentFailed),
    "refused with the token in it": (
        instead(ENROLL, JSONResponse({"error": TOKEN, "check": TOKEN, "request": TOKEN}, 401)),
        EnrolmentFailed,
    ),
    "refused at length": (instead(ENROLL, JSONResponse({"error": "x" * 100_000}, 400)), EnrolmentFailed),
    "a redirect of the token": (instead(ENROLL, RedirectResponse("https://elsewhere.example/", 307)), AnswerRefused),
    "later": (instead(ENROLL, Response(status_code=202)), AnswerRefused),
    "trouble": (instead(ENROLL, PlainTextResponse("", 503)), AuthorityUnreachable),
}


def attempt(service: Service, folder: Path, **changes: Any) -> Credentials:
    with service.running() as url:
        return enrol(url, **{"root_fingerprint": ROOT_PIN, "token": TOKEN, "folder": folder, **changes})


def test_the_service_as_it_is_enrols(tmp_path: Path) -> None:
    service = Service()
    made = attempt(service, tmp_path, agent_id=BILLING)
    assert str(made.agent_id) == BILLING
    assert Credentials.load(tmp_path).thumbprint == made.thumbprint
    assert TrustBundles.load(tmp_path / "bundle.json").by_domain["fleet.example"].roots == (FORGE.root,)
    assert service.tokens == [f"agent:{TOKEN}"]
    assert service.paths == [CACERTS, "/bundle", CACERTS, ENROLL]


@pytest.mark.parametrize("name", IMPOSTORS)
def test_no_token_for_impostors(tmp_path: Path, name: str) -> None:
    mutation, expected = IMPOSTORS[name]
    service = Service()
    mutation(service)
    with pytest.raises(Exception) as caught:
        attempt(service, tmp_path / "agent")
    assert type(caught.value) is expected, caught.value
    assert service.tokens == []
    nothing_was_written(tmp_path / "agent")


@pytest.mark.parametrize("name", [*ANSWERS, *REFUSALS])
def test_no_bad_answer_replaces_anything(tmp_path: Path, name: str) -> None:
    mutation, expected = (ANSWERS | REFUSALS)[name]
    service = Service()
    mutation(service)
    present = FORGE.leaf("/billing")
    present.save(tmp_path)
    with pytest.raises(Exception) as caught:
        attempt(service, tmp_path, agent_id=BILLING)
    assert type(caught.value) is expected, caught.value
    assert TOKEN not in str(caught.value) and len(str(caught.value)) < 1000
    assert Credentials.load(tmp_path).thumbprint == present.thumbprint
    assert not (tmp_path / "bundle.json").exists()


def nothing_was_written(folder: Path) -> None:
    left = {file.name for file in folder.iterdir()} if folder.exists() else set()
    assert not {name for name in left if not name.startswith((".", "key.pem.enrolling-"))}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"root_fingerprint": "sha256:" + "0" * 64}, PinMismatch),
        ({"root_fingerprint": fingerprint(FORGE.intermediate.public_bytes(Encoding.DER))}, PinMismatch),
        ({"root_fingerprint": ROOT_PIN[:-2]}, PinMismatch),
        ({"root_fingerprint": ROOT_PIN.removeprefix("sha256:")}, PinMismatch),
        ({"root_fingerprint": ROOT_PIN.replace("sha256", "sha1")}, PinMismatch),
        ({"root_fingerprint": ""}, PinMismatch),
        ({"root_fingerprint": fingerprint(NAMELESS.public_bytes(Encoding.DER))}, PinMismatch),
        ({"token": ""}, EnrolmentTokenMalformed),
        ({"token": TOKEN + "\n"}, EnrolmentTokenMalformed),
        ({"token": "x" * 1000}, EnrolmentTokenMalformed),
        ({"token": "tökén"}, EnrolmentTokenMalformed),
    ],
)
def test_what_the_caller_gets_wrong(tmp_path: Path, changes: dict[str, Any], expected: type[Exception]) -> None:
    service = Service()
    service.cacerts.append(NAMELESS)
    with pytest.raises(Exception) as caught:
        attempt(service, tmp_path / "agent", **changes)
    assert type(caught.value) is expected
    assert changes.get("token", TOKEN) not in str(caught.value) or changes.get("token") == ""
    assert service.tokens == []
    nothing_was_written(tmp_path / "agent")


@pytest.mark.parametrize(
    "url",
    ["http://ca.example", "ca.example", "", "https://", "https://user:pw@ca.example", "https://ca.example/?a=b", "::"],
)
def test_urls_that_are_none_of_a_ca_service(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError):
        enrol(url, root_fingerprint=ROOT_PIN, token=TOKEN, folder=tmp_path)


@pytest.mark.parametrize("form", [str.upper, lambda pin: "sha256:" + ":".join(two(pin.removeprefix("sha256:")))])
def test_fingerprints_are_taken_as_tools_print_them(tmp_path: Path, form: Callable[[str], str]) -> None:
    assert attempt(Service(), tmp_path, root_fingerprint=form(ROOT_PIN))


def two(digits: str) -> list[str]:
    return [digits[i : i + 2] for i in range(0, len(digits), 2)]


def test_the_environment_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    assert attempt(Service(), tmp_path)


def test_the_key_never_leaves(tmp_path: Path) -> None:
    seen: list[bytes] = []
    service = Service()
    issue = service.issue
    service.issue = lambda public_key: seen.append(public_key) or issue(public_key)  # type: ignore[method-assign, func-returns-value, assignment]
    made = attempt(service, tmp_path)
    assert isinstance(made.private_key, ec.EllipticCurvePrivateKey)
    assert seen == [made.private_key.public_key()]
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


# Renewal: over the same service, from good credentials.

RENEWALS = {
    **ANSWERS,
    "refused": (instead(REENROLL, JSONResponse({"check": "pki.renewal.revoked"}, 403)), EnrolmentFailed),
    "trouble": (instead(REENROLL, PlainTextResponse("", 503)), AuthorityUnreachable),
    "a server of an impostor's": (change(source=IMPOSTOR.leaf("/a2a-pki/server")), UntrustedChain),
    "an agent in the server's place": (change(source=FORGE.leaf("/planner")), PeerNotAllowed),
    "a server that has expired": (
        change(source=FORGE.leaf("/a2a-pki/server", not_after=NOW - timedelta(minutes=5))),
        CertificateExpired,
    ),
}


def renewing(url: str, present: Credentials, **options: Any) -> RenewingCredentials:
    return RenewingCredentials(present, url=url, bundles=FORGE.bundles, **options)


@pytest.mark.parametrize("name", RENEWALS)
def test_no_bad_renewal_replaces_anything(name: str) -> None:
    mutation, expected = RENEWALS[name]
    service, present = Service(), FORGE.leaf("/billing")
    mutation(service)
    with service.running() as url:
        agent = renewing(url, present)
        with pytest.raises(Exception) as caught:
            agent.renew()
    assert type(caught.value) is expected, caught.value
    assert agent.current() is present
    assert agent.health.failures == 1
    assert agent.health.problem == str(caught.value)


def test_the_service_as_it_is_renews() -> None:
    service, present = Service(), FORGE.leaf("/billing")
    with service.running() as url:
        agent = renewing(url, present)
        made = agent.renew()
    assert made is agent.current() is not present
    assert made.private_key.public_key() != present.private_key.public_key()
    assert agent.health.failures == 0


def test_a_certificate_that_the_service_does_not_take_is_refused_in_the_handshake() -> None:
    with Service().running() as url:
        agent = renewing(url, FORGE.leaf("/billing", not_after=NOW - timedelta(minutes=5)))
        with pytest.raises(HandshakeRefused, match="certificate_expired"):
            agent.renew()
        assert agent.health.condition == "expired"
        stranger = renewing(url, IMPOSTOR.leaf("/billing"))
        with pytest.raises(HandshakeRefused):
            stranger.renew()
        assert stranger.health.condition == "refused"


BUNDLES: dict[str, tuple[TrustBundle, bool]] = {
    "newer": (TrustBundle(trust_domain="fleet.example", roots=(FORGE.root, IMPOSTOR.root), sequence=8), True),
    "the same sequence": (
        TrustBundle(trust_domain="fleet.example", roots=(FORGE.root, IMPOSTOR.root), sequence=7),
        False,
    ),
    "older": (TrustBundle(trust_domain="fleet.example", roots=(FORGE.root, IMPOSTOR.root), sequence=6), False),
    "newer, without the root of whoever sends it": (
        TrustBundle(trust_domain="fleet.example", roots=(IMPOSTOR.root,), sequence=8),
        False,
    ),
    "newer, with nothing": (TrustBundle(trust_domain="fleet.example", roots=(), sequence=8), False),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_never_go_back(name: str) -> None:
    offered, taken = BUNDLES[name]
    service = Service()
    service.trusted = offered
    known = TrustBundle(trust_domain="fleet.example", roots=(FORGE.root,), sequence=7)
    elsewhere = ELSEWHERE.bundle
    with service.running() as url:
        agent = RenewingCredentials(FORGE.leaf("/billing"), url=url, bundles=TrustBundles.of(known, elsewhere))
        before = agent.bundles.current()
        agent.poll()
    now = agent.bundles.current()
    assert now.by_domain["other.example"] is elsewhere
    assert now.by_domain["fleet.example"] == (offered if taken else known)
    assert taken or now is before


@pytest.mark.parametrize(
    "advice",
    [
        "",
        "[]",
        "{}",
        "[" * 5000,
        '{"renewAt": 1, "urgent": true}',
        '{"renewAt": "2027-01-01", "urgent": true}',
        '{"renewAt": "2027-01-01T00:00:00+00:00", "urgent": "yes"}',
    ],
)
def test_bad_advice_is_none(advice: str) -> None:
    service = Service()
    service.instead = {"/renewal-info": Response(advice, media_type="application/json")}
    with service.running() as url:
        agent = renewing(url, FORGE.leaf("/billing"))
        agent.poll()
    assert "renewal information" in (agent.health.trust_problem or "")
    assert agent.health.condition == "healthy"


def renewed_and_left_in_peace(service: Service) -> None:
    """However long the renewal takes on a busy machine, two seconds follow it."""
    deadline = time.monotonic() + 20
    while REENROLL not in service.paths:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    time.sleep(2)


def test_a_service_that_is_always_urgent_is_not_stormed() -> None:
    """Urgency is looked at once in a refresh hint, whatever the answers are."""
    service = Service()
    service.urgent = True
    with service.running() as url, renewing(url, FORGE.leaf("/billing")):
        renewed_and_left_in_peace(service)
    assert service.paths.count(REENROLL) == 1


def test_a_service_that_hands_out_dead_certificates_is_not_stormed() -> None:
    service = Service()
    now = datetime.now(UTC).replace(microsecond=0)
    service.leaf = {"not_before": NOW - 24 * HOUR, "not_after": now + timedelta(seconds=90)}
    with service.running() as url:
        present = FORGE.leaf("/billing", not_before=NOW - 24 * HOUR, not_after=now + timedelta(seconds=120))
        with renewing(url, present):
            renewed_and_left_in_peace(service)
    assert service.paths.count(REENROLL) == 1


def test_nobody_sees_secrets_in_what_is_shown() -> None:
    agent = renewing("https://127.0.0.1:1", FORGE.leaf("/billing"), token=lambda: TOKEN)
    assert "PRIVATE" not in repr(agent.current()) and TOKEN not in repr(agent)
    assert TOKEN not in repr(agent.health) + str(agent.health)


def test_an_unreachable_service_is_one_line() -> None:
    agent = renewing("https://127.0.0.1:1", FORGE.leaf("/billing"))
    with pytest.raises(AuthorityUnreachable) as caught:
        agent.renew()
    assert "127.0.0.1:1" in str(caught.value) and "\n" not in str(caught.value)
    assert renewal.Condition(agent.health.condition) == "late"


def test_credentials_of_nowhere() -> None:
    with pytest.raises(ConfigurationError):
        RenewingCredentials(FORGE.leaf("/billing"), bundles=FORGE.bundles)
    with pytest.raises(ConfigurationError):
        RenewingCredentials(FORGE.leaf("/billing"), url="https://ca.example")
    with pytest.raises(CredentialsError):
        RenewingCredentials("/nowhere", url="https://ca.example")
