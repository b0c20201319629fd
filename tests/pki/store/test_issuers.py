"""CAs: their states, what else changes with them, and how the old ones leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import timedelta

import pytest
from cryptography import x509

from pki.errors import AuthorityNotValid, DuplicateCertificate, PKIError, StateChanged
from pki.profiles import CRL_RETENTION
from pki.records import PendingKey, State
from pki.store import Store
from tests.pki.conftest import NOW
from tests.pki.store import parts
from tests.pki.store.parts import CA1, DAY, ROOT, SECOND, crl, issue, leaf, problems
from tests.pki.store.test_issuing import TOKEN

R, I = ROOT.row.key_id, CA1.row.key_id  # noqa: E741
LATER = NOW + DAY
PREPARED, ACTIVE, RETIRING, REVOKED = State.PREPARED, State.ACTIVE, State.RETIRING, State.REVOKED


def states(store: Store) -> Mapping[str, State]:
    return {one.key_id: one.state for one in store.issuers()}


def test_a_rotation_is_one_transaction(store: Store) -> None:
    new = parts.intermediate(ROOT, PREPARED)
    store.change_issuers(add=[(new.row, new.record)], now=NOW, expect={R: ACTIVE, I: ACTIVE})
    assert store.issuers() == [ROOT.row, CA1.row, new.row]
    assert store.find(new.record.serial) == new.record
    size = store.ledger_size()
    store.change_issuers(states={I: RETIRING, new.row.key_id: ACTIVE}, now=LATER, expect=states(store))
    assert store.issuers() == [
        ROOT.row,
        dataclasses.replace(CA1.row, state=RETIRING, since=LATER),
        dataclasses.replace(new.row, state=ACTIVE, since=LATER),
    ]
    assert store.ledger_size() == size + 2
    assert store.bundle_sequence() == 1, "no root has come or gone"
    assert problems(store) == ()


@pytest.mark.parametrize(
    ("change", "expect"),
    [
        ({I: RETIRING}, {R: ACTIVE, I: PREPARED}),
        ({I: RETIRING}, {R: ACTIVE, I: ACTIVE, "00" * 20: ACTIVE}),
        ({I: RETIRING}, {I: ACTIVE}),
        ({I: RETIRING}, {}),
        ({"00" * 20: ACTIVE}, None),
        ({R: RETIRING, I: REVOKED, "00" * 20: ACTIVE}, {R: ACTIVE, I: ACTIVE}),
    ],
)
def test_a_change_that_somebody_was_faster_with(
    change: Mapping[str, State], expect: Mapping[str, State] | None, store: Store
) -> None:
    before, size = store.issuers(), store.ledger_size()
    with pytest.raises(PKIError) as caught:
        store.change_issuers(states=change, now=LATER, expect=expect)
    assert type(caught.value) is StateChanged
    assert (store.issuers(), store.ledger_size()) == (before, size)


@pytest.mark.parametrize("state", [PREPARED, ACTIVE, RETIRING])
def test_a_revoked_ca_stays_revoked(state: State, store: Store) -> None:
    store.change_issuers(states={I: REVOKED}, now=NOW)
    with pytest.raises(PKIError) as caught:
        store.change_issuers(states={I: state}, now=LATER)
    assert type(caught.value) is StateChanged
    size = store.ledger_size()
    store.change_issuers(states={I: REVOKED}, now=LATER)
    assert store.issuers()[1] == dataclasses.replace(CA1.row, state=REVOKED)
    assert store.ledger_size() == size, "nothing new"


def test_a_ca_that_is_there_already(store: Store) -> None:
    with pytest.raises(PKIError) as caught:
        store.change_issuers(add=[(CA1.row, CA1.record)], now=NOW)
    assert type(caught.value) is DuplicateCertificate


@pytest.mark.parametrize(
    ("state", "grows"), [(PREPARED, 1), (ACTIVE, 1), (RETIRING, 1), (REVOKED, 0)], ids=lambda value: str(value)
)
def test_the_bundle_changes_with_its_roots(state: State, grows: int, store: Store) -> None:
    new = parts.root(state)
    store.change_issuers(add=[(new.row, new.record)], now=NOW)
    assert store.bundle_sequence() == 1 + grows
    store.change_issuers(states={new.row.key_id: REVOKED}, now=NOW)
    assert store.bundle_sequence() == 1 + 2 * grows
    store.change_issuers(states={R: RETIRING}, now=NOW)
    assert store.bundle_sequence() == 1 + 2 * grows, "it is published as before"


def test_a_revoked_certificate_of_a_ca_takes_the_ca_with_it(store: Store) -> None:
    crl(store, ca=ROOT)
    (record,) = store.revoke([CA1.record.serial], reason=x509.ReasonFlags.ca_compromise, now=LATER)
    assert record.revoked_at == LATER
    assert states(store) == {R: ACTIVE, I: REVOKED}
    assert [entry.serial_number for entry in crl(store, ca=ROOT)] == [CA1.record.serial]
    with pytest.raises(PKIError) as caught:
        issue(store, leaf())
    assert type(caught.value) is AuthorityNotValid
    assert problems(store) == ()
    size = store.ledger_size()
    store.revoke([CA1.record.serial], reason=x509.ReasonFlags.superseded, now=LATER)
    assert store.ledger_size() == size


def test_the_certificate_of_a_tainted_ca_can_be_revoked_after_that(store: Store) -> None:
    store.change_issuers(states={I: REVOKED}, now=NOW)
    (record,) = store.revoke([CA1.record.serial], reason=x509.ReasonFlags.ca_compromise, now=NOW)
    assert record.reason is x509.ReasonFlags.ca_compromise
    assert problems(store) == ()


def test_a_key_that_waits_for_its_certificate(where: str, store: Store) -> None:
    assert store.pending_key() is None
    new = parts.intermediate(ROOT)
    key = PendingKey(key_id=new.row.key_id, since=NOW, csr=b"csr", key_pem=new.row.key_pem)
    store.add_pending_key(key)
    with pytest.raises(PKIError) as caught:
        store.add_pending_key(dataclasses.replace(key, key_id="11" * 20))
    assert type(caught.value) is StateChanged
    other = Store.open(where)
    assert other.pending_key() == key
    other.close()
    store.change_issuers(add=[(new.row, new.record)], now=NOW)
    assert store.pending_key() is None
    store.add_pending_key(dataclasses.replace(key, key_id="11" * 20, key_pem=None, key_uri="pkcs11:token=a"))


def test_pruning(store: Store) -> None:
    """First the certificates that nobody asks about any more, then the CA that made them, then its root."""
    old_root = parts.root(RETIRING, 5 * DAY)
    old = parts.intermediate(old_root, ACTIVE, 3 * DAY)
    store.change_issuers(add=[(old_root.row, old_root.record), (old.row, old.record)], now=NOW)
    short, long, current = leaf(old), leaf(old, lifetime=2 * DAY), leaf()
    issue(store, short, long, current)
    crl(store, ca=old)
    store.add_token(TOKEN)
    assert store.prune(issuer=None, now=NOW + 60 * DAY) == 0, "it is active"
    assert store.tokens(NOW) == []
    store.change_issuers(states={old.row.key_id: RETIRING}, now=NOW)
    sequence = store.bundle_sequence()
    short_gone, long_gone, ca_gone, root_gone = (
        record.not_after + CRL_RETENTION for record in (short, long, old.record, old_root.record)
    )
    assert store.prune(issuer=None, now=short_gone) == 0
    assert store.prune(issuer=None, now=short_gone + SECOND) == 1
    assert store.find(short.serial) is None and store.find(long.serial) == long
    assert problems(store) == ()
    assert store.prune(issuer=old.row.key_id, now=long_gone + SECOND) == 1
    assert list(states(store)) == [R, I, old_root.row.key_id, old.row.key_id]
    crl(store, ca=old)
    assert store.crl_number(old.row.key_id, 0) is not None
    assert store.prune(issuer=None, now=ca_gone + SECOND) == 1
    assert list(states(store)) == [R, I, old_root.row.key_id]
    assert store.crl_number(old.row.key_id, 0) is None, "its list went with it"
    assert problems(store) == ()
    assert store.bundle_sequence() == sequence
    assert store.prune(issuer=None, now=root_gone + SECOND) == 1
    assert list(states(store)) == [R, I]
    assert store.bundle_sequence() == sequence + 1
    assert store.records() == [ROOT.record, CA1.record, current]
    assert problems(store) == ()


def test_a_root_stays_while_anything_below_it_does(store: Store) -> None:
    old_root = parts.root(REVOKED, 5 * DAY)
    old = parts.intermediate(old_root, ACTIVE, 5 * DAY)
    store.change_issuers(add=[(old_root.row, old_root.record), (old.row, old.record)], now=NOW)
    assert store.prune(issuer=old_root.row.key_id, now=NOW + timedelta(days=60)) == 0
    assert old_root.row.key_id in states(store)


@pytest.mark.parametrize("key_id", ["00" * 20, I], ids=["unknown", "active"])
def test_only_what_issues_no_more_is_pruned(key_id: str, store: Store) -> None:
    with pytest.raises(PKIError) as caught:
        store.prune(issuer=key_id, now=NOW)
    assert type(caught.value) is StateChanged
