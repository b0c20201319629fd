"""Revocation lists: nothing is forgotten, no number comes twice, and a delta adds up to the list."""

from __future__ import annotations

from datetime import datetime

import pytest
from cryptography import x509

from pki import keys, list_profiles
from pki.errors import AuthorityDamaged, PKIError
from pki.profiles import CRL_RETENTION, RevokedSerial, Urls
from pki.records import Record
from pki.store import Store
from pki.store.lists import BASE_LIFETIME
from tests.pki.conftest import NOW
from tests.pki.store.parts import CA1, DAY, ROOT, SECOND, crl, fake, issue, leaf, number, sql

COMPROMISE = x509.ReasonFlags.key_compromise
FIRST = int(NOW.timestamp())  # the number of a list that is the first
URLS = Urls(crl_base="http://ca.fleet.example/crl", ocsp=None, issuers=None)


def revoke(store: Store, *records: Record, now: datetime = NOW) -> None:
    store.revoke([record.serial for record in records], reason=COMPROMISE, now=now)


def serials(item: x509.CertificateRevocationList | None) -> list[int]:
    assert item is not None
    return [entry.serial_number for entry in item]


def test_crl_numbers_only_grow(where: str, store: Store) -> None:
    assert number(crl(store)) == FIRST
    assert number(crl(store)) == FIRST, "an empty list that is fresh is used again"
    assert number(crl(store, fresh=False)) == FIRST + 1
    other = Store.open(where)
    assert number(crl(other)) == FIRST + 1
    assert number(crl(other, fresh=False)) == FIRST + 2
    other.close()
    assert number(crl(store)) == FIRST + 2
    assert number(crl(store, fresh=False, now=NOW - DAY)) == FIRST + 3, "whatever the clock says"
    assert number(crl(store, fresh=False, now=NOW + DAY)) == FIRST + 86400


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM crls", "UPDATE crls SET number = 0, stale = '1'", "UPDATE crls SET number = -9, stale = '1'"],
    ids=["deleted", "counted back", "less than nothing"],
)
def test_a_row_that_somebody_has_deleted_or_counted_back_begins_nothing_anew(
    statement: str, where: str, store: Store
) -> None:
    """RFC 5280 section 5.2.3: verifiers would go on with the list that they have."""
    before = number(crl(store))
    before = max(before, number(crl(store, fresh=False)))
    sql(where, statement)
    assert number(crl(store, now=NOW + 2 * SECOND)) > before


@pytest.mark.parametrize(
    "number", [FIRST + 36526 * 86400, 2**53 - 1, 2**63 - 1, "'zz'"], ids=["a century ahead", "2^53", "2^63", "text"]
)
def test_a_number_to_which_nobody_has_counted_is_not_signed(number: object, where: str, store: Store) -> None:
    if number == "'zz'" and where.startswith("postgresql"):
        pytest.skip("a column of PostgreSQL takes no text for a number")
    crl(store)
    sql(where, f"UPDATE crls SET number = {number}, stale = '1'")
    with pytest.raises(PKIError, match="of a revocation list, to which nobody has counted") as caught:
        crl(store)
    assert type(caught.value) is AuthorityDamaged


@pytest.mark.parametrize(
    "change", ["number = number + 1", "number = 'zz'", "base_number = 'zz'", "base_number = number + 1"]
)
def test_a_delta_has_the_number_of_its_list(change: str, where: str, store: Store) -> None:
    if "zz" in change and where.startswith("postgresql"):
        pytest.skip("a column of PostgreSQL takes no text for a number")
    crl(store)
    sql(where, f"UPDATE crls SET {change}")
    with pytest.raises(PKIError, match="other numbers") as caught:
        delta(store)
    assert type(caught.value) is AuthorityDamaged


def test_a_revocation_makes_the_list_stale(store: Store) -> None:
    record = leaf()
    issue(store, record)
    assert len(crl(store)) == 0
    revoke(store, record)
    listed = crl(store)
    assert serials(listed) == [record.serial]
    revoke(store, record)
    assert number(crl(store)) == number(listed), "nothing new: the list stays"


@pytest.mark.parametrize("changes", [{"issuer": ROOT.issuer.key_id}, {"shard": 1}], ids=["issuer", "shard"])
def test_a_revocation_elsewhere_does_not(changes: dict[str, object], store: Store) -> None:
    record = fake(1, **changes)
    issue(store, record)
    assert number(crl(store)) == FIRST
    revoke(store, record)
    assert number(crl(store)) == FIRST
    assert len(crl(store, fresh=False)) == 0


def test_shards_have_lists_of_their_own(store: Store) -> None:
    first, second = leaf(), fake(7, shard=3)
    issue(store, first, second)
    revoke(store, first, second)
    assert serials(crl(store)) == [first.serial]

    def make(count: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        assert (count, revoked) == (FIRST, [RevokedSerial(serial=7, revoked_at=NOW, reason=COMPROMISE)])
        builder = list_profiles.revocation_list(revoked, issuer=CA1.issuer, number=count, now=NOW, urls=URLS, shard=3)
        return keys.sign_crl(builder, CA1.key)

    assert serials(store.crl(CA1.issuer.key_id, 3, now=NOW, fresh=lambda _: True, make=make)) == [7]


def test_which_shards_need_a_list(store: Store) -> None:
    end = NOW + DAY
    issue(store, fake(1, shard=2, not_after=end), fake(2, shard=5), fake(3, shard=9, issuer=ROOT.issuer.key_id))
    assert store.shards(CA1.issuer.key_id, NOW) == [0, 2, 5]
    assert store.shards(CA1.issuer.key_id, end + CRL_RETENTION) == [0, 2, 5]
    assert store.shards(CA1.issuer.key_id, end + CRL_RETENTION + SECOND) == [0, 5]
    assert store.shards("00" * 20, NOW) == [0]


def test_entries_stay_on_the_list_for_a_while_after_the_end(store: Store) -> None:
    record = fake(1, not_after=NOW)
    issue(store, record)
    revoke(store, record)
    assert len(crl(store, now=NOW + CRL_RETENTION)) == 1
    assert len(crl(store, now=NOW + CRL_RETENTION + SECOND, fresh=False)) == 0


def test_a_list_that_cannot_be_made_uses_up_no_number(store: Store) -> None:
    def make(_number: int, _revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        store.crl(CA1.issuer.key_id, 0, now=NOW, fresh=lambda _: True, make=make)
    assert number(crl(store)) == FIRST


def test_a_list_that_somebody_else_made_meanwhile_is_taken(where: str, store: Store) -> None:
    """Between the look and the lock another process may have made one; its number must not be used again."""
    other = Store.open(where)
    made: list[x509.CertificateRevocationList] = []
    crl(store)

    def fresh(item: x509.CertificateRevocationList) -> bool:
        if not made:
            made.append(crl(other, fresh=False))
            return False
        return True

    def make(_number: int, _revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        raise AssertionError("there is a fresh one already")

    assert store.crl(CA1.issuer.key_id, 0, now=NOW, fresh=fresh, make=make) == made[0]
    other.close()


def test_a_reason_that_nobody_wrote_is_on_no_list(where: str, store: Store) -> None:
    record = leaf()
    issue(store, record)
    revoke(store, record)
    sql(where, "UPDATE certificates SET reason = 'whatever' WHERE reason IS NOT NULL")
    with pytest.raises(PKIError, match="damaged") as caught:
        crl(store)
    assert type(caught.value) is AuthorityDamaged


def test_a_revocation_list_that_cannot_be_read(folder: str) -> None:
    store = Store.open(folder)
    crl(store)
    sql(folder, "UPDATE crls SET der = x'3000'")
    with pytest.raises(PKIError, match="damaged") as caught:
        crl(store)
    assert type(caught.value) is AuthorityDamaged
    store.close()


# Deltas.


def delta(store: Store, *, now: datetime = NOW, fresh: bool = True) -> x509.CertificateRevocationList | None:
    def make(count: int, base: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        builder = list_profiles.delta_list(
            revoked, issuer=CA1.issuer, number=count, base_number=base, now=now, urls=URLS, shard=0
        )
        return keys.sign_crl(builder, CA1.key)

    return store.delta(CA1.issuer.key_id, 0, fresh=lambda _: fresh, make=make)


def base(item: x509.CertificateRevocationList | None) -> int:
    assert item is not None
    return item.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number


def test_there_is_no_delta_without_a_list(store: Store) -> None:
    assert delta(store) is None


def test_a_delta_and_its_base_are_the_list(store: Store) -> None:
    first, second, third = leaf(), leaf(), leaf()
    issue(store, first, second, third)
    revoke(store, first)
    assert number(crl(store)) == FIRST
    assert serials(delta(store)) == [], "nothing since"
    revoke(store, second, now=NOW - DAY)  # whatever the clock said: it came after the base
    assert serials(crl(store)) == [first.serial, second.serial]
    assert serials(delta(store)) == [second.serial]
    assert (base(delta(store)), number(delta(store))) == (FIRST, FIRST + 1)  # type: ignore[arg-type]
    revoke(store, third)
    assert serials(delta(store)) == [second.serial], "until there is a new list with its number"
    assert serials(crl(store)) == [first.serial, second.serial, third.serial]
    assert serials(delta(store)) == [second.serial, third.serial]
    assert (base(delta(store)), number(delta(store))) == (FIRST, FIRST + 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [BASE_LIFETIME, -DAY], ids=["half a life later", "a clock that was set back"])
def test_a_base_does_not_live_for_ever(step: object, store: Store) -> None:
    record = leaf()
    issue(store, record)
    crl(store)
    revoke(store, record)
    later = NOW + step  # type: ignore[operator]
    second = number(crl(store, now=later))
    assert second > FIRST
    assert (base(delta(store, now=later)), serials(delta(store))) == (second, [])


def test_a_delta_is_made_once(store: Store) -> None:
    crl(store)
    assert delta(store) == delta(store)
    assert delta(store) != delta(store, fresh=False, now=NOW + SECOND)


def test_a_delta_that_somebody_else_made_meanwhile_is_taken(where: str, store: Store) -> None:
    other = Store.open(where)
    crl(store)
    delta(store)
    made: list[x509.CertificateRevocationList | None] = []

    def fresh(item: x509.CertificateRevocationList) -> bool:
        if not made:
            made.append(delta(other, fresh=False, now=NOW + SECOND))
            return False
        return True

    def make(*_: object) -> x509.CertificateRevocationList:
        raise AssertionError("there is a fresh one already")

    assert store.delta(CA1.issuer.key_id, 0, fresh=fresh, make=make) == made[0]
    other.close()
