from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from pki.errors import AgentBanned, PKIError, StoreError
from pki.records import Issue, Record, TokenRecord
from pki.steps import PAUSE, Find, FindToken, Steps, together
from tests.pki.conftest import NOW
from tests.pki.store.parts import fake

ABSENT = "not there"


def token(token_id: str) -> TokenRecord:
    return TokenRecord(
        id=token_id,
        digest=b"d",
        spiffe_id="spiffe://fleet.example/billing",
        dns_names=(),
        lifetime=timedelta(hours=1),
        created_at=NOW,
        expires_at=NOW,
    )


class Books:
    """Remembers what was asked of it, and in how many goes."""

    def __init__(self, *, broken: bool = False, defect: bool = False) -> None:
        self.asked: list[object] = []
        self.broken = broken
        self.defect = defect

    def find_thumbprints(self, several: Collection[str]) -> dict[str, Record]:
        self.asked.append(sorted(several))
        if self.broken:
            raise StoreError("broken")
        return {one: replace(fake(1), thumbprint=one) for one in several if one != ABSENT}

    def find_tokens(self, several: Collection[str]) -> dict[str, TokenRecord]:
        self.asked.append(sorted(several))
        return {one: token(one) for one in several if one != ABSENT}

    def issue_many(self, items: Sequence[Issue]) -> Sequence[Exception | None]:
        self.asked.append([item.record.serial for item in items])
        if self.defect:
            raise ZeroDivisionError
        return [AgentBanned("banned") if item.record.serial == 13 else None for item in items]


def steps(serial: int, *, presented: str = "a", again: int | None = None) -> Steps[int]:
    """Looks for a certificate, stores another one, and tries with `again` where that is refused."""
    if (yield Find(thumbprint=presented)) is None:
        raise LookupError(presented)
    try:
        yield Issue(record=fake(serial), now=NOW)
    except AgentBanned:
        if again is None:
            raise
        yield Issue(record=fake(again), now=NOW)
        return again
    return serial


def enrolling(token_id: str) -> Steps[int]:
    """Looks for a token."""
    found = yield FindToken(id=token_id)
    if found is None:
        raise LookupError(token_id)
    assert found.id == token_id
    return 7


def nothing() -> Steps[int]:
    """Is done at once."""
    yield from ()
    return 0


def test_together() -> None:
    """Each gets its own end, in its own place, and every round is one look and one transaction."""
    books = Books()
    given = [steps(1), steps(13), steps(2, presented=ABSENT), nothing(), steps(13, again=5), steps(3, presented="b")]
    results = together(given, books)
    assert [result if isinstance(result, int) else type(result) for result in results] == [
        1,
        AgentBanned,
        LookupError,
        0,
        5,
        3,
    ]
    assert books.asked == [["a", "b", ABSENT], [1, 13, 13, 3], [5]]


def test_different_questions_of_one_round() -> None:
    books = Books()
    results = together([enrolling("t"), steps(1), enrolling(ABSENT), enrolling("u")], books)
    assert [result if isinstance(result, int) else type(result) for result in results] == [7, 1, LookupError, 7]
    assert books.asked == [["a"], [ABSENT, "t", "u"], [1]]


def test_a_pause_is_for_the_others_and_asks_for_nothing() -> None:
    done: list[str] = []

    def parts(name: str) -> Steps[int]:
        done.append(f"{name}1")
        yield PAUSE
        done.append(f"{name}2")
        return 0

    books = Books(broken=True)
    assert together([parts("b"), parts("c"), nothing()], books) == [0, 0, 0]
    assert done == ["b1", "c1", "b2", "c2"]
    assert books.asked == []


def test_a_database_that_does_not_answer() -> None:
    results = together([steps(1), nothing(), steps(2)], Books(broken=True))
    assert [type(result) for result in results] == [StoreError, int, StoreError]


def test_what_fails_for_some_does_not_fail_the_others_and_each_gets_its_own_error() -> None:
    for books, expected in (
        (Books(broken=True), [StoreError, StoreError, int, int]),
        (Books(defect=True), [ZeroDivisionError, ZeroDivisionError, int, int]),
    ):
        one, other, *rest = together([steps(1), steps(2), enrolling("t"), nothing()], books)
        assert [type(result) for result in (one, other, *rest)] == expected
        assert one is not other
        assert isinstance(one, Exception)
        assert isinstance(other, Exception)
        assert str(one) == str(other)
        assert type(one.__cause__) is type(one), "where it came from is told"


class Panic(BaseException):
    """As what a library in Rust raises when it panics."""


def panicking(*, late: bool) -> Steps[int]:
    if late:
        yield Find(thumbprint="a")
    raise Panic("secret")
    yield


@pytest.mark.parametrize("late", [False, True])
def test_a_panic_concerns_the_one_whose_it_is(late: bool) -> None:
    panicked, other = together([panicking(late=late), steps(1)], Books())
    assert type(panicked) is PKIError
    assert type(panicked.__cause__) is Panic
    assert "secret" not in str(panicked)
    assert other == 1


def test_a_panic_of_the_database_concerns_all_who_have_asked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books()
    monkeypatch.setattr(books, "find_thumbprints", lambda _: panicking(late=False).send(None))
    one, two, other = together([steps(1), steps(2), enrolling("t")], books)
    assert (type(one), type(two), other) == (PKIError, PKIError, 7)
    assert one is not two


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_who_is_interrupted_stops(interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> object:
        raise interrupt

    books = Books()
    monkeypatch.setattr(books, "find_thumbprints", stopped)
    with pytest.raises(interrupt):
        together([steps(1)], books)

    def stopping() -> Steps[int]:
        stopped()
        yield Find(thumbprint="a")
        return 1

    with pytest.raises(interrupt):
        together([stopping()], Books())


def test_nobody() -> None:
    assert together([], Books()) == []
