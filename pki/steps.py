"""Issuance in steps: what must be looked up is asked for, what was signed is given out to be stored.

So the same code issues for one caller, and for many who share each look into the database and one transaction. That
also lets a thread sign for all of them in one go: whenever a thread waits, be it for a database that answers at once,
Python hands over to another one, which costs as much as a signature. Pure: the database is the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pki.records import Issue, Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """Asks for the record of a certificate; None is the answer for one that is not there."""

    thumbprint: str


# An `Issue` asks for nothing: it is stored, or what went wrong is raised where it was yielded.
Steps = Generator[Find | Issue, Any, T]


class Books(Protocol):
    """What of `pki.store.Store` is needed here."""

    def find_thumbprint(self, x5t: str) -> Record | None: ...

    def find_thumbprints(self, several: Collection[str]) -> Mapping[str, Record]: ...

    def issue(self, item: Issue) -> None: ...

    def issue_many(self, items: Sequence[Issue]) -> Sequence[Exception | None]: ...


def alone(steps: Steps[T], books: Books) -> T:
    """Take the steps to their end; raises what they raise, which may be what the database has raised."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = _answer(asked, books)
            except Exception as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def together(many: Sequence[Steps[T]], books: Books) -> list[T | Exception]:
    """Take the steps of each to their end, round by round: in each round, what all of them ask for is done at once.

    Returns:
        for each its result, or what it has raised; one that fails takes none of the others with it.
    """
    results: dict[int, T | Exception] = {}
    asked: list[tuple[int, Find | Issue]] = []

    def advance(index: int, answer: Record | Exception | None) -> None:
        steps = many[index]
        try:
            asked.append((index, steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)))
        except StopIteration as end:
            results[index] = end.value
        except Exception as failed:
            results[index] = failed

    for index in range(len(many)):
        advance(index, None)
    while asked:
        before, asked[:] = list(asked), []
        for index, answer in zip(
            [index for index, _ in before], _answers([ask for _, ask in before], books), strict=True
        ):
            advance(index, answer)
    return [results[index] for index in range(len(many))]


def _answer(asked: Find | Issue, books: Books) -> Record | None:
    if isinstance(asked, Find):
        return books.find_thumbprint(asked.thumbprint)
    books.issue(asked)
    return None


def _answers(asked: Sequence[Find | Issue], books: Books) -> list[Record | Exception | None]:
    """The answer to each; an exception is what is to be raised."""
    wanted = {ask.thumbprint for ask in asked if isinstance(ask, Find)}
    failed: Exception | None = None
    records: Mapping[str, Record] = {}
    try:
        records = books.find_thumbprints(wanted) if wanted else {}
    except Exception as error:
        failed = error
    items = [ask for ask in asked if isinstance(ask, Issue)]
    errors = iter(books.issue_many(items) if items else ())
    return [(failed or records.get(ask.thumbprint)) if isinstance(ask, Find) else next(errors) for ask in asked]
