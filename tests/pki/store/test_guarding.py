"""What is looked at before a ledger is signed over, where several processes write into it in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import event

from pki.errors import LedgerDamaged, PKIError
from pki.ledger import Head, sign_head
from pki.store import Store
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
