"""Issuing: what is checked in the transaction itself, and that a batch is as good as its items."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography import x509

from pki import enrolment
from pki.errors import (
    AgentBanned,
    AuthorityNotValid,
    CertificateAlreadyRevoked,
    DatabaseLocked,
    DuplicateCertificate,
    EnrolmentTokenUnknown,
    EnrolmentTokenUsed,
    PKIError,
)
from pki.records import Issue, Record, State, TokenRecord, TokenUse
from pki.store import Store
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.store import parts
from tests.pki.store.parts import AGENT, CA1, DAY, ROOT, fake, issue, leaf, problems

TOKEN = TokenRecord(
    id="t1",
    digest=b"d" * 32,
    spiffe_id=AGENT,
    dns_names=("billing.fleet.example",),
    lifetime=timedelta(hours=24),
    created_at=NOW,
    expires_at=NOW + timedelta(minutes=30),
)
TOKEN = dataclasses.replace(TOKEN, seal=enrolment.seal(TOKEN, CA1.key, CA1.issuer.key_id))
SERIAL = enrolment.serial(TOKEN.digest)  # of the certificate that it is good for
USE = TokenUse(id="t1", key_digest=b"k" * 32, serial=SERIAL)
OTHER_USE = TokenUse(id="t2", key_digest=b"", serial=2)


def ready(store: Store) -> Record:
    """A certificate that may be renewed, and a token that may be used."""
    old = leaf()
    issue(store, old)
    store.add_token(TOKEN)
    return old


def refuse_nothing(store: Store, old: Record) -> None:
    pass


def revoke_issuer(store: Store, old: Record) -> None:
    store.revoke([CA1.record.serial], reason=x509.ReasonFlags.ca_compromise, now=NOW)


def taint_issuer(store: Store, old: Record) -> None:
    store.change_issuers(states={CA1.row.key_id: State.REVOKED}, now=NOW)


def ban(store: Store, old: Record) -> None:
    store.ban(AGENT, NOW)


def revoke_old(store: Store, old: Record) -> None:
    store.revoke([old.serial], reason=x509.ReasonFlags.unspecified, now=NOW)


def use_token(store: Store, old: Record) -> None:
    store.issue(Issue(record=leaf(serial=SERIAL), now=NOW, burns=USE))


def refresh_token(store: Store, old: Record) -> None:
    """By somebody who can write the database, and has kept what a used token was."""
    use_token(store, old)
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE tokens SET used_at = NULL, used_by = NULL, serial = NULL")


def cancel_token(store: Store, old: Record) -> None:
    assert store.cancel_token("t1")


REFUSED = [
    ("the issuer's certificate was revoked", revoke_issuer, {}, AuthorityNotValid),
    ("the issuer is in state revoked", taint_issuer, {}, AuthorityNotValid),
    ("the issuer is unknown", refuse_nothing, {"issuer": "00" * 20}, AuthorityNotValid),
    ("the ID is banned", ban, {}, AgentBanned),
    ("the renewed certificate is revoked", revoke_old, {}, CertificateAlreadyRevoked),
    ("the renewed certificate is unknown", refuse_nothing, {"renews": 77}, CertificateAlreadyRevoked),
    ("the token is used", use_token, {}, EnrolmentTokenUsed),
    ("the token was made to look unused", refresh_token, {}, EnrolmentTokenUsed),
    ("the token was cancelled", cancel_token, {}, EnrolmentTokenUnknown),
    (
        "the token is unknown",
        refuse_nothing,
        {"burns": OTHER_USE},
        EnrolmentTokenUnknown,
    ),
    ("the serial is there", refuse_nothing, {"serial": CA1.record.serial}, DuplicateCertificate),
    ("the certificate is there", refuse_nothing, {"thumbprint": CA1.record.thumbprint}, DuplicateCertificate),
]


def changed(item: Issue, changes: dict[str, object]) -> Issue:
    own = {name: value for name, value in changes.items() if name in ("renews", "burns")}
    record = {name: value for name, value in changes.items() if name not in own}
    return dataclasses.replace(item, record=dataclasses.replace(item.record, **record), **own)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "changes", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_refused_alone_and_in_a_batch(
    before: Callable[[Store, Record], None], changes: dict[str, object], expected: type[PKIError], store: Store
) -> None:
    old = ready(store)
    before(store, old)
    item = changed(Issue(record=leaf(serial=SERIAL), now=NOW, burns=USE, renews=old.serial), changes)
    known = store.records()
    with pytest.raises(PKIError) as caught:
        store.issue(item)
    assert type(caught.value) is expected
    assert store.records() == known
    others = [leaf(), leaf()] if expected is DuplicateCertificate or changes else []
    errors = store._issue([Issue(record=r, now=NOW) for r in others] + [item])
    assert [type(error) for error in errors] == [type(None)] * len(others) + [expected]
    assert store.records() == known + others
    found = problems(store)
    if before is refresh_token:
        assert len(found) == 1 and found[0].endswith("its token t1 was made to look as if it were not used")
    else:
        assert found == ()


def test_what_is_not_refused(store: Store) -> None:
    old = ready(store)
    item = Issue(record=leaf(serial=SERIAL), now=NOW, burns=USE, renews=old.serial)
    store.issue(item)
    assert store.find(item.record.serial) == item.record
    assert store.token("t1") == dataclasses.replace(TOKEN, used_at=NOW, used_by=b"k" * 32, serial=item.record.serial)
    assert not store.cancel_token("t1"), "it is used"
    assert problems(store) == ()


def test_a_retiring_issuer_still_signs_what_was_under_way(store: Store) -> None:
    store.change_issuers(states={CA1.row.key_id: State.RETIRING}, now=NOW)
    issue(store, leaf())


def test_one_refused_takes_no_other_with_it(store: Store) -> None:
    other = f"spiffe://{DOMAIN}/other"
    store.ban(other, NOW)
    good, banned, twin, last = leaf(), leaf(spiffe_id=other), leaf(), leaf()
    items = [Issue(record=r, now=NOW) for r in (good, banned, twin, twin, last)]
    errors = store._issue(items)
    assert [type(error) for error in errors] == [type(None), AgentBanned, type(None), DuplicateCertificate, type(None)]
    assert store.records(kind="agent") == [good, twin, last]
    assert problems(store) == ()


def test_one_by_one_each_is_told_of_its_own_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, twin, last = leaf(), leaf(), leaf()
    real = store._database.write
    calls = iter(range(100))

    def write() -> object:
        if next(calls) == 4:  # after the batch, the first, the twin and the twin again
            raise DatabaseLocked("not now")
        return real()

    monkeypatch.setattr(store._database, "write", write)
    errors = store._issue([Issue(record=r, now=NOW) for r in (first, twin, twin, last)])
    assert [type(error) for error in errors] == [type(None), type(None), DuplicateCertificate, DatabaseLocked]
    assert store.records(kind="agent") == [first, twin]


def test_nothing_but_refused_writes_nothing(store: Store) -> None:
    store.ban(AGENT, NOW)
    size = store.ledger_size()
    assert [type(e) for e in store._issue([Issue(record=leaf(), now=NOW)])] == [AgentBanned]
    assert store.ledger_size() == size == store._size


def test_one_head_a_batch(store: Store) -> None:
    assert store._issue([Issue(record=leaf(), now=NOW + DAY * n) for n in (0, 2, 1)]) == [None] * 3
    first, second = store.heads()
    assert (first.size, second.size, second.time) == (4, 7, NOW + 2 * DAY)
    assert second.jws is not None


def test_a_token_is_burnt_once_in_a_batch(store: Store) -> None:
    ready(store)
    errors = store._issue([Issue(record=leaf(), now=NOW, burns=USE) for _ in range(3)])
    assert [type(error) for error in errors] == [type(None), EnrolmentTokenUsed, EnrolmentTokenUsed]


def test_a_token_is_burnt_once_by_many_threads(where: str) -> None:
    first, second = parts.opened(where), parts.opened(where)
    ready(first)
    records = [leaf(serial=SERIAL, lifetime=DAY * (n + 1)) for n in range(16)]
    start = threading.Barrier(16)

    def enrol(number: int) -> type[BaseException] | None:
        start.wait()
        try:
            (first, second)[number % 2].issue(Issue(record=records[number], now=NOW, burns=USE))
        except PKIError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(enrol, range(16)))
    assert sorted(map(str, outcomes)) == sorted(map(str, [None] + [EnrolmentTokenUsed] * 15))
    (winner,) = (records[n] for n, outcome in enumerate(outcomes) if outcome is None)
    token = first.token("t1")
    assert token is not None and token.serial == winner.serial
    assert first.find(winner.serial) == winner
    assert len(first.records(kind="agent")) == 2
    assert problems(first) == ()
    first.close()
    second.close()


def test_many_threads_lose_nothing(where: str) -> None:
    store = Store.open(where)
    store.seal = parts.seal
    records = [leaf() for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda record: issue(store, record), records))
    assert {r.serial for r in store.records(kind="agent")} == {r.serial for r in records}
    assert store.ledger_size() == 64
    assert problems(store) == ()
    store.close()


def test_tokens(store: Store) -> None:
    late = dataclasses.replace(TOKEN, id="t2", expires_at=NOW + DAY, dns_names=())
    store.add_token(TOKEN)
    store.add_token(late)
    assert store.token("t1") == TOKEN
    assert store.token("none") is None
    assert store.tokens(NOW) == [TOKEN, late]
    assert store.tokens(TOKEN.expires_at) == [late]
    assert store.cancel_token("t2") and not store.cancel_token("t2")
    assert store.tokens(NOW) == [TOKEN]
    with pytest.raises(PKIError) as caught:
        store.add_token(TOKEN)
    assert type(caught.value) is DuplicateCertificate


def test_a_certificate_of_another_issuer_is_not_a_ca(store: Store) -> None:
    """The issuer is looked for among the CAs, not among the certificates."""
    with pytest.raises(PKIError) as caught:
        issue(store, fake(1, issuer=ROOT.record.thumbprint))
    assert type(caught.value) is AuthorityNotValid
