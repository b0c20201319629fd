"""One-time tokens and renewal: what they give, what they remember, and what happens when many come at once."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pki import CertificateAuthority, Issued, PKIError, enrolment, profiles, renewal
from pki.der import Unsigned
from pki.errors import (
    AgentBanned,
    CertificateAlreadyRevoked,
    EnrolmentTokenExpired,
    EnrolmentTokenMalformed,
    EnrolmentTokenUnknown,
    EnrolmentTokenUsed,
    IDRefused,
    KeyTypeRefused,
    LifetimeRefused,
    NameRefused,
)
from pki.records import IssuerRecord, State
from pki.rotation import LISTED
from pki.store import DATABASE_FILE
from tests.pki.conftest import AGENT, NOW, PASSWORD, Clock
from tests.pki.judges import request, uri
from trust.errors import IdentityError
from trust.identity import AgentID

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
OTHER = "spiffe://fleet.example/payroll"


def leaf(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(Encoding.DER)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sans(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


# Tokens.


def test_a_token_gives_what_it_was_made_for(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT, dns_names=("Billing.Example",), lifetime=2 * HOUR)
    assert (token.agent_id, token.expires_at) == (AgentID.parse(AGENT), NOW + 30 * MINUTE)
    key = new_key()
    issued = ca.enrol(request(key=key), token.text)
    assert issued.certificate.public_key() == key.public_key()
    assert issued.agent_id == AgentID.of(issued.certificate) == AgentID.parse(AGENT)
    assert sans(issued.certificate).get_values_for_type(x509.DNSName) == ["billing.example"]
    assert issued.not_after == NOW + 2 * HOUR
    assert ca.find(issued.serial).thumbprint == issued.thumbprint


def test_what_the_ca_keeps_of_a_token(ca: CertificateAuthority, folder: Path) -> None:
    token = ca.create_token(AGENT)
    secret = token.text.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) * 8 >= 256
    (record,) = ca.tokens()
    assert (record.id, record.spiffe_id, record.used_at) == (token.id, AGENT, None)
    assert record.digest == hashlib.sha256(token.text.encode()).digest()
    assert token.text not in repr(token)
    ca.close()
    for file in folder.iterdir():
        data = file.read_bytes()
        assert secret.encode() not in data
        assert bytes.fromhex(secret) not in data


def test_tokens_are_never_the_same(ca: CertificateAuthority) -> None:
    tokens = [ca.create_token(AGENT) for _ in range(50)]
    assert len({t.text.rpartition("_")[2] for t in tokens}) == len({t.id for t in tokens}) == 50


def test_a_token_is_burnt(ca: CertificateAuthority, clock: Clock) -> None:
    token = ca.create_token(AGENT)
    key = new_key()
    issued = ca.enrol(request(key=key), token.text)
    (record,) = ca.tokens()
    assert (record.used_at, record.serial) == (NOW, issued.serial)
    clock.forward(MINUTE)
    with pytest.raises(PKIError) as caught:
        ca.enrol(request(), token.text)
    assert type(caught.value) is EnrolmentTokenUsed
    assert "was used on" in str(caught.value)


def test_a_lost_answer_can_be_asked_for_again(ca: CertificateAuthority, folder: Path, clock: Clock) -> None:
    token = ca.create_token(AGENT)
    key = new_key()
    first = ca.enrol(request(key=key), token.text)
    clock.forward(29 * MINUTE)
    assert ca.enrol(request(uri(AGENT), key=key), token.text) == first, "another request of the same key"
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        assert other.enrol(request(key=key), token.text) == first
    assert len([r for r in ca.certificates() if r.kind == "agent"]) == 1
    clock.forward(MINUTE)
    with pytest.raises(EnrolmentTokenExpired):
        ca.enrol(request(key=key), token.text)


@pytest.mark.parametrize("what", ["revoked", "banned", "expired"])
def test_what_is_not_good_any_more_is_not_given_out_again(what: str, ca: CertificateAuthority, clock: Clock) -> None:
    token = ca.create_token(AGENT, lifetime=MINUTE)
    key = new_key()
    issued = ca.enrol(request(key=key), token.text)
    if what == "revoked":
        ca.revoke(issued.serial)
    elif what == "banned":
        ca.ban(AGENT)
    else:
        clock.forward(MINUTE + SECOND)
    with pytest.raises(PKIError) as caught:
        ca.enrol(request(key=key), token.text)
    assert type(caught.value) is EnrolmentTokenUsed


def test_a_refused_request_burns_nothing(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT)
    for data, expected in [(request(uri(OTHER)), IDRefused), (b"no request", PKIError)]:
        with pytest.raises(expected):
            ca.enrol(data, token.text)
    ca.enrol(request(), token.text)


def test_a_locked_ca_burns_nothing(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        token = ca.create_token(AGENT)
    with CertificateAuthority.open(folder, clock=clock) as ca:
        with pytest.raises(PKIError, match="CA is locked"):
            ca.create_token(AGENT)
        with pytest.raises(PKIError, match="CA is locked"):
            ca.enrol(request(), token.text)
        assert ca.tokens()[0].used_at is None


def test_a_cancelled_token(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT)
    assert ca.cancel_token(token.id)
    assert not ca.cancel_token(token.id)
    assert ca.tokens() == []
    with pytest.raises(PKIError) as caught:
        ca.enrol(request(), token.text)
    assert type(caught.value) is EnrolmentTokenUnknown


def test_the_life_of_a_token(ca: CertificateAuthority, clock: Clock) -> None:
    token = ca.create_token(AGENT, valid_for=SECOND)
    clock.forward(SECOND - timedelta(microseconds=1))
    ca.enrol(request(), token.text)
    token = ca.create_token(AGENT, valid_for=SECOND)
    assert token.expires_at.microsecond == 0
    assert token.expires_at - clock() >= SECOND, "never shorter than it was said"
    ca.create_token(AGENT, valid_for=DAY)
    for valid_for in (DAY + SECOND, timedelta(0), -SECOND):
        with pytest.raises(PKIError) as caught:
            ca.create_token(AGENT, valid_for=valid_for)
        assert type(caught.value) is LifetimeRefused


def test_both_clocks_are_shown(ca: CertificateAuthority, clock: Clock) -> None:
    token = ca.create_token(AGENT)
    clock.forward(31 * MINUTE)
    with pytest.raises(EnrolmentTokenExpired) as caught:
        ca.enrol(request(), token.text)
    message = str(caught.value)
    for moment in (clock(), NOW, NOW + 30 * MINUTE):
        assert moment.strftime("%Y-%m-%d %H:%M:%S UTC") in message
    assert token.text.rpartition("_")[2] not in message


def test_two_instances_with_different_clocks(ca: CertificateAuthority, clock: Clock) -> None:
    token = ca.create_token(AGENT)
    clock.forward(-MINUTE - SECOND)
    with pytest.raises(EnrolmentTokenExpired):
        ca.enrol(request(), token.text)
    clock.forward(SECOND)
    ca.enrol(request(), token.text)


@pytest.mark.parametrize(
    ("agent_id", "options", "expected"),
    [
        ("spiffe://other.example/billing", {}, IDRefused),
        ("spiffe://fleet.example/a2a-pki/server", {}, IDRefused),
        ("spiffe://fleet.example/a2a-pki", {}, IDRefused),
        ("billing", {}, IdentityError),
        (AGENT, {"dns_names": ("*.example",)}, NameRefused),
        (AGENT, {"lifetime": 8 * DAY}, LifetimeRefused),
        (AGENT, {"lifetime": timedelta(0)}, LifetimeRefused),
    ],
)
def test_no_token_is_made_for_what_is_never_issued(
    agent_id: str, options: dict[str, object], expected: type[Exception], ca: CertificateAuthority
) -> None:
    with pytest.raises(expected) as caught:
        ca.create_token(agent_id, **options)  # type: ignore[arg-type]
    assert type(caught.value) is expected
    assert ca.tokens() == []


def test_the_policy_decides_when_a_token_is_made_and_when_it_is_used(ca: CertificateAuthority) -> None:
    early = ca.create_token(OTHER)
    ca.set_policy('[[allow]]\nids = ["/billing"]\nkeys = ["Ed25519"]\nmax_lifetime = "1h"\n')
    assert "Ed25519" in (ca.policy_text() or "")
    for refuse, expected in [
        (lambda: ca.create_token(OTHER), IDRefused),
        (lambda: ca.create_token(AGENT, lifetime=2 * HOUR), LifetimeRefused),
        (lambda: ca.enrol(request(), early.text), IDRefused),
    ]:
        with pytest.raises(PKIError) as caught:
            refuse()
        assert type(caught.value) is expected
    token = ca.create_token(AGENT, lifetime=HOUR)
    with pytest.raises(PKIError) as caught:
        ca.enrol(request(), token.text)
    assert type(caught.value) is KeyTypeRefused
    key = ed25519.Ed25519PrivateKey.generate()
    ca.enrol(request(key=key, algorithm=None), token.text)


def test_a_policy_that_allows_no_kind_of_key_is_told_at_once(ca: CertificateAuthority) -> None:
    ca.set_policy('[[allow]]\nids = ["/**"]\n[[deny]]\nkeys = ["P-256", "P-384", "Ed25519"]\n')
    with pytest.raises(PKIError) as caught:
        ca.create_token(AGENT)
    assert type(caught.value) is KeyTypeRefused


def test_a_banned_agent_gets_neither_token_nor_certificate(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT)
    ca.ban(AGENT)
    assert ca.bans() == [(AGENT, NOW)]
    for action in (
        lambda: ca.create_token(AGENT),
        lambda: ca.enrol(request(), token.text),
        lambda: ca.issue(request(), AGENT),
    ):
        with pytest.raises(PKIError) as caught:
            action()
        assert type(caught.value) is AgentBanned
    assert ca.unban(AGENT)
    assert not ca.unban(AGENT)
    ca.enrol(request(), token.text)


def test_of_many_that_use_a_token_at_once_one_gets_a_certificate(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT)
    requests = [request() for _ in range(16)]
    barrier = threading.Barrier(len(requests))

    def work(data: bytes) -> Issued | type[BaseException]:
        barrier.wait()
        try:
            return ca.enrol(data, token.text)
        except PKIError as error:
            return type(error)

    with ThreadPoolExecutor(len(requests)) as pool:
        results = list(pool.map(work, requests))
    assert len([r for r in results if isinstance(r, Issued)]) == 1
    assert results.count(EnrolmentTokenUsed) == 15
    assert len([r for r in ca.certificates() if r.kind == "agent"]) == 1


def test_one_agent_that_asks_many_times_at_once_gets_one_certificate(ca: CertificateAuthority) -> None:
    token = ca.create_token(AGENT)
    data = request()
    barrier = threading.Barrier(8)

    def work(_: int) -> Issued:
        barrier.wait()
        return ca.enrol(data, token.text)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1
    assert len([r for r in ca.certificates() if r.kind == "agent"]) == 1


def test_two_processes_that_use_a_token_at_once(folder: Path) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        tokens = [ca.create_token(AGENT).text for _ in range(20)]
    script = (
        "import sys\n"
        "from pki import CertificateAuthority, PKIError\n"
        f"with CertificateAuthority.open({str(folder)!r}, password={PASSWORD!r}) as ca:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        f"    for token in {tokens!r}:\n"
        "        try: print(ca.enrol(bytes.fromhex(sys.argv[1]), token).serial)\n"
        "        except PKIError as error: print(type(error).__name__)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, request().hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        outputs.append(out.split())
    assert len(outputs[0]) == len(outputs[1]) == 20
    for first, second in zip(*outputs, strict=True):
        assert sorted([first.isdigit(), second.isdigit()]) == [False, True], "each token once"
        assert "EnrolmentTokenUsed" in (first, second)


# What a token looks like.


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=32, max_size=32))
def test_every_token_that_is_spelled_is_read(token_id: bytes, secret: bytes) -> None:
    text = enrolment.spell(token_id, secret)
    presented = enrolment.parse(text)
    assert presented.id == token_id.hex()
    assert presented.digest == hashlib.sha256(text.encode()).digest()
    assert secret.hex() not in repr(presented)


@given(st.text(max_size=120) | st.from_regex(r"a2ae_[0-9a-f]{20,28}_[0-9a-fA-F]{60,68}\n?"))
def test_nothing_else_is_read(text: str) -> None:
    try:
        presented = enrolment.parse(text)
    except PKIError as error:
        assert type(error) is EnrolmentTokenMalformed
        assert len(text) < 12 or text not in str(error)
    else:
        assert text == f"a2ae_{presented.id}_{text[30:]}"
        assert len(text) == 94


def test_a_token_of_other_sizes_is_not_made() -> None:
    for sizes in ((11, 32), (12, 31), (12, 33)):
        with pytest.raises(ValueError, match="12 bytes"):
            enrolment.spell(*(bytes(size) for size in sizes))


# Renewal.


def test_renewal_keeps_everything_but_the_key(ca: CertificateAuthority, clock: Clock) -> None:
    first = ca.issue(
        request(), AGENT, dns_names=("a.example", "b.example"), ip_addresses=("10.0.0.1", "::1"), lifetime=5 * HOUR
    )
    clock.forward(3 * HOUR)
    key = new_key()
    second = ca.renew(request(key=key), leaf(first))
    assert second.certificate.public_key() == key.public_key()
    assert second.agent_id == first.agent_id
    assert sans(second.certificate) == sans(first.certificate)
    assert second.not_after - second.not_before == first.not_after - first.not_before
    assert second.not_after == clock() + 5 * HOUR
    assert ca.find(first.serial).revoked_at is None, "both are good until the new one is used"
    again = ca.renew(request(key=key), leaf(first))
    assert again.serial != second.serial, "a lost reply: it simply asks again"


@pytest.mark.parametrize("lifetime", [SECOND, MINUTE, HOUR, 24 * HOUR, 7 * DAY])
def test_lifetimes_stay_however_often_they_are_renewed(
    lifetime: timedelta, ca: CertificateAuthority, clock: Clock
) -> None:
    issued = ca.issue(request(), AGENT, lifetime=lifetime)
    length = issued.not_after - issued.not_before
    for _ in range(3):
        clock.forward(min(lifetime / 2, DAY))
        issued = ca.renew(request(), leaf(issued))
        assert issued.not_after - issued.not_before == length


def test_one_that_was_cut_short_by_the_end_of_its_issuer_gets_no_more_than_it_had(
    ca: CertificateAuthority, clock: Clock
) -> None:
    """What was granted is not written anywhere else than in the certificate."""
    clock.now = ca.intermediate.not_valid_after_utc - HOUR
    short = ca.issue(request(), AGENT)
    assert short.not_after - clock() == HOUR
    ca.rotate()
    clock.forward(LISTED)
    ca.rotate()
    assert ca.renew(request(), leaf(short)).not_after - clock() == HOUR


def test_the_policy_is_asked_again(ca: CertificateAuthority) -> None:
    issued = ca.issue(request(), AGENT)
    ca.set_policy('[[allow]]\nids = ["/payroll"]\n')
    with pytest.raises(PKIError) as caught:
        ca.renew(request(), leaf(issued))
    assert type(caught.value) is IDRefused


def test_when_to_renew(ca: CertificateAuthority) -> None:
    issued = ca.issue(request(), AGENT, lifetime=timedelta(minutes=59))
    info = ca.renewal_info(leaf(issued))
    assert info.renew_at == issued.not_before + 40 * MINUTE
    assert not info.urgent
    assert "two thirds" in info.reason


def test_renewal_without_its_issuer_is_urgent(ca: CertificateAuthority) -> None:
    """Its CA may have been pruned, by a clock that was wrong."""
    record = ca.find(ca.issue(request(), AGENT).serial)
    assert renewal.info(record, [r for r in ca.issuers() if r.kind == "root"]).urgent


def test_a_revocation_that_comes_in_between_wins(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked after the check and before the commit: the transaction looks again."""
    issued = ca.issue(request(), AGENT)
    real = profiles.agent

    def late(*arguments: object, **named: object) -> Unsigned:
        ca.revoke(issued.serial)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(profiles, "agent", late)
    with pytest.raises(PKIError) as caught:
        ca.renew(request(), leaf(issued))
    assert type(caught.value) is CertificateAlreadyRevoked
    assert len([r for r in ca.certificates() if r.kind == "agent"]) == 1


# Revoking an agent.


def test_revoke_agent(ca: CertificateAuthority, clock: Clock) -> None:
    ended = ca.issue(request(), AGENT, lifetime=HOUR)
    clock.forward(2 * HOUR)
    good = [ca.issue(request(), AGENT).serial for _ in range(3)]
    other = ca.issue(request(), OTHER)
    done = ca.revoke_agent(AGENT, "keyCompromise")
    assert sorted(r.serial for r in done) == sorted(good)
    assert all(r.reason is x509.ReasonFlags.key_compromise and r.revoked_at == clock() for r in done)
    assert ca.find(ended.serial).revoked_at is None
    assert ca.find(other.serial).revoked_at is None
    assert ca.revoke_agent(AGENT) == []
    ca.issue(request(), AGENT)
    with pytest.raises(IDRefused):
        ca.revoke_agent("spiffe://other.example/billing")


def test_revoke_agent_with_a_ban(ca: CertificateAuthority) -> None:
    issued = ca.issue(request(), AGENT)
    ca.revoke_agent(AGENT, ban=True)
    for action in (lambda: ca.issue(request(), AGENT), lambda: ca.create_token(AGENT)):
        with pytest.raises(AgentBanned):
            action()
    with pytest.raises(CertificateAlreadyRevoked):
        ca.renew(request(), leaf(issued))


def test_nobody_slips_through_while_an_agent_is_revoked(ca: CertificateAuthority) -> None:
    """Threads renew all the time; when it is revoked and banned, nothing of it is good any more, in any order."""
    first = ca.issue(request(), AGENT)
    data = request()
    started = threading.Barrier(5)

    def work(_: int) -> None:
        current = leaf(first)
        started.wait()
        while True:
            try:
                current = leaf(ca.renew(data, current))
            except (AgentBanned, CertificateAlreadyRevoked):
                return

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        started.wait()
        ca.revoke_agent(AGENT, ban=True)
        for worker in workers:
            worker.result(timeout=30)
    assert ca.certificates(agent_id=AgentID.parse(AGENT), revoked=False) == []


def test_thumbprints(ca: CertificateAuthority) -> None:
    issued = ca.issue(request(), AGENT)
    record = ca.find_thumbprint(issued.thumbprint)
    assert record is not None
    assert record.serial == issued.serial
    assert ca.find_thumbprint("A" * 43) is None


def test_service_credentials(ca: CertificateAuthority) -> None:
    ca.set_policy('[[allow]]\nids = ["/billing"]\n')
    credentials = ca.service_credentials(("pki.example",), ("127.0.0.1",), lifetime=HOUR)
    assert str(credentials.agent_id) == "spiffe://fleet.example/a2a-pki/server"
    assert sans(credentials.certificate).get_values_for_type(x509.DNSName) == ["pki.example"]
    with pytest.raises(PKIError) as caught:
        ca.renew(request(), credentials.chain_der[0])
    assert type(caught.value) is IDRefused


def test_a_token_whose_row_was_changed_gives_nothing(ca: CertificateAuthority, folder: Path) -> None:
    """Somebody who can write to the database, and cannot make digests of a secret that he does not know."""
    token, other = ca.create_token(AGENT), ca.create_token(OTHER)
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        (digest,) = connection.execute("SELECT digest FROM tokens WHERE id = ?", (other.id,)).fetchone()
        connection.execute("UPDATE tokens SET digest = ? WHERE id = ?", (digest, token.id))
        connection.commit()
    with pytest.raises(EnrolmentTokenUnknown):
        ca.enrol(request(), token.text)


def test_issuer_records_hide_their_keys(ca: CertificateAuthority) -> None:
    record = ca.issuers()[0]
    assert isinstance(record, IssuerRecord)
    assert record.state is State.ACTIVE
    assert "ENCRYPTED" not in repr(record)
