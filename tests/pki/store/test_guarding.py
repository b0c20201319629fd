"""What is looked at before a ledger is signed over, where several processes write into it in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from sqlalchemy import event

from pki.errors import LedgerDamaged, PKIError
from pki.ledger import Head, sign_head
from pki.store import Store
from tests.pki.conftest import NOW
from tests.pki.store import parts
from tests.pki.store.parts import CA1, DAY, issue, leaf, sql


@pytest.fixture
def two(where: str) -> Iterator[tuple[Store, Store]]:
    """Two processes, as it were, at one database: each has its own `Guard`."""
    stores = Store.open(where), Store.open(where)
    for store in stores:
        store.seal = parts.seal
    yield stores
    for store in stores:
        store.close()


def _verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from pki.store import guarding

    found: list[str] = []
    real = guarding.verify_head

    def verify(text: str, key: object) -> Head:
        found.append(text)
        return real(text, key)  # type: ignore[arg-type]

    monkeypatch.setattr(guarding, "verify_head", verify)
    return found


def test_what_another_process_has_signed_costs_one_signature_and_no_look_at_entries(
    two: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    issue(first, leaf())
    issue(second, leaf())
    verified = _verified(monkeypatch)
    asked: list[str] = []

    @event.listens_for(first._database._engine, "before_cursor_execute")
    def _(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    issue(first, leaf())
    head = second.head()
    assert head is not None
    assert len(verified) == 1, "the head of the other one"
    assert not [statement for statement in asked if '"ledger"' in statement or "FROM ledger" in statement]
    issue(first, leaf())
    assert len(verified) == 1, "its own it knows"
    issue(second, leaf())
    assert len(verified) == 2
    assert parts.problems(second) == ()


def _put_back(where: str) -> Callable[[], None]:
    """Keeps the rows of now, for somebody to put back later who can write the database: as from an old copy of it."""
    tables = ("certificates", "ledger", "heads")
    sql(where, *(f"CREATE TABLE kept_{name} AS SELECT * FROM {name}" for name in tables))

    def back() -> None:
        for name in tables:
            sql(where, f"DELETE FROM {name}", f"INSERT INTO {name} SELECT * FROM kept_{name}")

    return back


def test_a_database_that_was_put_back_and_written_on_by_another_process(where: str, two: tuple[Store, Store]) -> None:
    """It is longer than what the first one knows, and does not continue it."""
    first, second = two
    issue(second, leaf())
    back = _put_back(where)
    issue(first, leaf(), leaf())
    back()
    issue(second, leaf(), leaf(), leaf())
    with pytest.raises(PKIError, match="entries that do not continue what this process has written") as caught:
        issue(first, leaf())
    assert type(caught.value) is LedgerDamaged
    with pytest.raises(LedgerDamaged):
        first.revoke([CA1.record.serial], reason=x509.ReasonFlags.superseded, now=NOW)


def test_a_head_that_is_gone_is_missed_by_who_has_written_it(where: str, two: tuple[Store, Store]) -> None:
    first, second = two
    issue(first, leaf())
    issue(second, leaf())
    head = first.head()
    assert head is not None
    sql(where, f"DELETE FROM heads WHERE size = {head.size - 1}")
    with pytest.raises(PKIError) as caught:
        issue(first, leaf())
    assert type(caught.value) is LedgerDamaged
    issue(second, leaf())


def _stranger(head: Head) -> str:
    return sign_head(head, parts.keys.generate(), CA1.issuer.key_id)


def _of_another_size(head: Head) -> str:
    return parts.seal(Head(trust_domain=head.trust_domain, size=head.size + 1, root=head.root, time=head.time))


@pytest.mark.parametrize("forged", [_stranger, _of_another_size], ids=["by another key", "of another tree"])
def test_a_head_that_is_not_what_another_process_has_signed(
    forged: Callable[[Head], str], where: str, two: tuple[Store, Store]
) -> None:
    first, second = two
    issue(first, leaf())
    issue(second, leaf())
    head = second.head()
    assert head is not None
    jws = forged(Head(trust_domain=parts.DOMAIN, size=head.size, root=head.root, time=head.time))
    sql(where, f"UPDATE heads SET jws = '{jws}' WHERE size = {head.size}")
    with pytest.raises(PKIError) as caught:
        issue(first, leaf(lifetime=DAY))
    assert type(caught.value) is LedgerDamaged
