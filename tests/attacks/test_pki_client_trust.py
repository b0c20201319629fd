"""An agent against thieves of an intermediate, of the service's certificate, and of the network."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import JSONResponse, Response

from pki.client import Event, RenewingCredentials, daemon, enrol
from pki.client.folder import LOCK_FILE, AgentFolder, Enrolment
from pki.errors import ClockSkewed
from tests.forge import HOUR
from tests.pki.client.fake import ELSEWHERE, FORGE, IMPOSTOR, TOKEN, Service, certificates
from tests.pki.client.test_renewal import _key_id, with_lists
from trust.bundles import TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, CredentialsError, HandshakeRefused, RevocationUnknown, TrustError
from trust.identity import fingerprint
from trust.peers import PeerVerifier

CACERTS, ENROLL, REENROLL = (f"/.well-known/est/{name}" for name in ("cacerts", "simpleenroll", "simplereenroll"))
ROOT, INTERMEDIATE = f"/crl/{_key_id(FORGE.root)}.crl", f"/crl/{_key_id(FORGE.intermediate)}.crl"
KNOWN = TrustBundle(trust_domain="fleet.example", roots=(FORGE.root,), sequence=7)
PRESENT = FORGE.leaf("/billing")
EVIL = TrustBundle(trust_domain="fleet.example", roots=(FORGE.root, IMPOSTOR.root), sequence=10**6)


def crl(
    issuer: x509.Certificate, key: Any, *serials: int, number: int = 1, ended: bool = False, url: str = ""
) -> Response:
    """As `Forge.crl`, with a number, and of a shard."""
    then = datetime.now(UTC) - 2 * HOUR
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(then)
        .next_update(then + (HOUR if ended else 24 * HOUR))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False)  # type: ignore[arg-type]
        .add_extension(x509.CRLNumber(number), False)
    )
    if url:
        point = x509.IssuingDistributionPoint(
            [x509.UniformResourceIdentifier(url)], None, False, False, None, False, False
        )
        builder = builder.add_extension(point, True)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(then).build()
        builder = builder.add_revoked_certificate(entry)
    return Response(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def root_list(*serials: int, **options: Any) -> Response:
    return crl(FORGE.root, FORGE.root_key, *serials, **options)


def leaf_list(*serials: int, **options: Any) -> Response:
    return crl(FORGE.intermediate, FORGE.key, *serials, **options)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    made.instead = {ROOT: root_list(), INTERMEDIATE: leaf_list()}
    with made.running() as url:
        made.url = url  # type: ignore[attr-defined]
        yield made


def agent(service: Service, present: Any = None, **options: Any) -> RenewingCredentials:
    source = FORGE.leaf("/billing") if present is None else present
    if isinstance(source, Credentials):
        options = {"bundles": TrustBundles.of(KNOWN, ELSEWHERE.bundle), **options}
    return RenewingCredentials(source, url=service.url, **options)  # type: ignore[attr-defined]


def verify(source: RenewingCredentials, peer: Credentials) -> None:
    PeerVerifier(source.bundles, source.crls).verify(peer.chain_der, now=datetime.now(UTC), usage="client")


def sequence(source: RenewingCredentials) -> int:
    return source.bundles.current().by_domain["fleet.example"].sequence


# A thief in the CA's place.


@pytest.mark.parametrize("present", [PRESENT, with_lists()], ids=["without URLs", "with URLs"])
@pytest.mark.parametrize("stolen", ["intermediate", "certificate of the service"])
def test_what_is_revoked_does_not_speak_for_the_ca(
    service: Service, tmp_path: Path, present: Credentials, stolen: str
) -> None:
    if stolen == "intermediate":
        service.instead[ROOT] = root_list(FORGE.intermediate.serial_number)
    else:
        service.instead[INTERMEDIATE] = leaf_list(service.source.certificate.serial_number)
    present.save(tmp_path)
    AgentFolder(tmp_path).save_bundle(KNOWN)
    agent(service, tmp_path).poll()  # it hears of it, from whoever
    # The thief offers another root, and lists from before.
    service.trusted = EVIL
    service.instead |= {ROOT: root_list(), INTERMEDIATE: leaf_list()}
    source = agent(service, tmp_path)  # after a restart, too
    service.paths.clear()
    source.poll()
    assert "revoked" in (source.health.trust_problem or "")
    assert sequence(source) == 7
    for attempt in (source.renew, lambda: source._renewer.enrol_again(TOKEN)):
        with pytest.raises(CertificateRevoked):
            attempt()
    assert service.paths == service.tokens == []
    with pytest.raises(CertificateRevoked):
        verify(source, FORGE.leaf("/payroll") if stolen == "intermediate" else service.source)


def test_lists_that_have_ended_lock_nobody_out(service: Service) -> None:
    service.instead = {ROOT: root_list(ended=True), INTERMEDIATE: leaf_list(ended=True)}
    source = agent(service)
    source.poll()
    with pytest.raises(RevocationUnknown):
        verify(source, FORGE.leaf("/planner"))
    service.instead = {ROOT: root_list(number=2), INTERMEDIATE: leaf_list(number=2)}
    source.poll()
    assert source.health.trust_problem is None
    verify(source, FORGE.leaf("/planner"))
    assert source.renew()


# Lists.

LISTS: dict[str, tuple[str, Callable[[], Response]]] = {
    "an older one": ("number 4", lambda: root_list(number=4)),
    "signed by somebody else": ("another signature", lambda: crl(FORGE.root, IMPOSTOR.root_key, number=9)),
    "of another CA": ("that very list", lambda: leaf_list(number=9)),
    "not signed": ("another signature", lambda: unsigned(root_list(number=9))),
}


def unsigned(response: Response) -> Response:
    body = bytes(response.body)
    return Response(body[:-1] + bytes([body[-1] ^ 1]))


@pytest.mark.parametrize("name", LISTS)
def test_no_list_is_replaced_by(service: Service, name: str) -> None:
    says, forged = LISTS[name]
    service.instead[ROOT] = root_list(4711, number=5)
    source = agent(service)
    source.poll()
    before = source.crls.current()
    service.instead[ROOT] = forged()
    source.poll()
    assert says in (source.health.trust_problem or "")
    assert source.crls.current() is before


def test_what_the_index_no_longer_has_is_not_forgotten(service: Service) -> None:
    """A thief serves an index without the list that names the stolen certificate."""
    shard = INTERMEDIATE.replace(".crl", "-3.crl")
    service.instead[shard] = leaf_list(service.source.certificate.serial_number, url=f"http://pki.example{shard}")
    source = agent(service)
    source.poll()
    assert len(source.crls.current().crls) == 3
    service.instead["/crl"] = JSONResponse({"lists": [name.removeprefix("/crl/") for name in (ROOT, INTERMEDIATE)]})
    service.source = FORGE.leaf("/a2a-pki/server")  # the genuine one, at the address of before
    with service.running() as url:
        source._renewer.url = url
        source.poll()
    assert source.health.trust_problem is None
    source._renewer.url = service.url  # type: ignore[attr-defined]
    with pytest.raises(CertificateRevoked):
        source.renew()


def test_a_ca_without_urls_reaches_every_verifier(service: Service) -> None:
    """What it revokes is refused, others pass, and so do those of a federated domain, about which it says nothing."""
    service.instead[INTERMEDIATE] = leaf_list(4711)
    source = agent(service)
    source.poll()
    verify(source, FORGE.leaf("/planner"))
    verify(source, ELSEWHERE.leaf("/planner"))
    with pytest.raises(CertificateRevoked):
        verify(source, FORGE.leaf("/planner", serial=4711))


# The sequence of the bundle.


def test_enrolling_again_takes_back_what_a_thief_put_into_the_bundle(service: Service, tmp_path: Path) -> None:
    FORGE.leaf("/billing").save(tmp_path)
    files = AgentFolder(tmp_path)
    files.save_bundle(KNOWN)
    files.save_enrolment(Enrolment(url=service.url, token_digest="1"))  # type: ignore[attr-defined]
    source = agent(service, tmp_path)
    service.trusted = EVIL  # from a thief of whom nobody knows yet
    source.poll()
    assert sequence(source) == EVIL.sequence
    service.trusted = KNOWN
    source.poll()
    files.save_bundle(KNOWN)  # by anybody
    source._renewer.follow()
    assert sequence(source) == EVIL.sequence
    pin = fingerprint(FORGE.root.public_bytes(Encoding.DER))
    enrol(service.url, root_fingerprint=pin, token=TOKEN, folder=tmp_path)  # type: ignore[attr-defined]
    assert source._renewer.follow()
    assert source.bundles.current().by_domain["fleet.example"] == KNOWN


# The network.


@contextmanager
def alerting(code: int) -> Iterator[str]:
    """Somebody on the path who answers every ClientHello with a plaintext alert."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(bytes([21, 3, 3, 0, 2, 2, code]))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)  # who only closes it leaves the thread waiting
        thread.join(20)


@pytest.mark.parametrize("code", [42, 44, 45, 48, 49, 116], ids=lambda code: f"alert {code}")
def test_an_alert_that_anybody_may_have_sent_is_no_refusal(code: int) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    present = FORGE.leaf("/billing", not_before=now, not_after=now + timedelta(minutes=10))
    with alerting(code) as url:
        source = RenewingCredentials(present, url=url, bundles=FORGE.bundles)
        with pytest.raises(HandshakeRefused):
            source.renew()
    assert source.health.condition == "late"
    assert source.health.next_attempt - datetime.now(UTC) <= timedelta(minutes=6, seconds=45)  # the usual time
    assert source._schedule.retry_at is not None and source._schedule.last_attempt is not None
    assert source._schedule.retry_at - source._schedule.last_attempt <= timedelta(seconds=6)


def test_a_refusal_of_a_moment_leaves_time_for_more_attempts(service: Service) -> None:
    service.instead[REENROLL] = JSONResponse({"check": "pki.policy.id"}, 403)
    now = datetime.now(UTC).replace(microsecond=0)
    source = agent(service, FORGE.leaf("/billing", not_before=now, not_after=now + timedelta(minutes=10)))
    with pytest.raises(TrustError):
        source.renew()
    assert source.health.condition == "refused"
    assert source._schedule.retry_at is not None
    assert source._schedule.retry_at - now <= timedelta(minutes=2, seconds=5)


def test_the_issuers_of_an_enrolment_come_from_the_verified_service(service: Service, tmp_path: Path) -> None:
    """Somebody on the path hides the intermediate in step 1; the answer to the token is the leaf alone."""
    answers = iter([[FORGE.root]])
    service.instead[CACERTS] = lambda: certificates(next(answers, [FORGE.root, FORGE.intermediate]))
    service.answer = lambda chain: chain[:1]
    pin = fingerprint(FORGE.root.public_bytes(Encoding.DER))
    made = enrol(service.url, root_fingerprint=pin, token=TOKEN, folder=tmp_path)  # type: ignore[attr-defined]
    assert made.chain[1] == FORGE.intermediate


# Clocks.


def test_nothing_is_asked_for_by_a_clock_that_is_behind(service: Service, tmp_path: Path) -> None:
    def behind() -> datetime:
        return datetime.now(UTC) - timedelta(minutes=5)

    source = agent(service, clock=behind)
    pin = fingerprint(FORGE.root.public_bytes(Encoding.DER))
    with pytest.raises(ClockSkewed, match=r"not be valid yet.*minutes apart: set the wrong one"):
        source.renew()
    with pytest.raises(ClockSkewed, match="not be valid yet"):
        source._renewer.enrol_again(TOKEN)
    with pytest.raises(ClockSkewed, match="not be valid yet"):
        enrol(service.url, root_fingerprint=pin, token=TOKEN, folder=tmp_path, clock=behind)  # type: ignore[attr-defined]
    assert service.tokens == [] and not {ENROLL, REENROLL} & set(service.paths)
    assert source.health.condition == "late"


# The folder, and the hook.


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(CredentialsError, match="cannot write"), AgentFolder(tmp_path / "agent").writing():
        pass
    assert not (tmp_path / "victim").exists()


def test_changes_during_a_slow_hook_are_one_run() -> None:
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    for number in range(1000):
        events.put(Event(kind="renewed", says=str(number), credentials=PRESENT))
    assert [event.says for event in daemon._next(events)] == [str(number) for number in range(1000)]
    events.put(Event(kind="renewed", says="", credentials=PRESENT))
    events.put(None)
    assert daemon._next(events) == [], "the end comes before whatever was to be done"
