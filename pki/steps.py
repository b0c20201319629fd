"""Issuance in steps: what must be looked up is asked for, what was signed is given out to be stored.

So the same code issues for one caller, and for many who share each look into the database and one transaction. That
also lets a thread sign for all of them in one go: whenever a thread waits, be it for a database that answers at once,
Python hands over to another one, which costs as much as a signature.

And it lets each part of the work be done for all of them before the next one is begun for any (`PAUSE`). All parts
together are more code than a processor's first caches hold: one certificate after the other, each part is fetched
again and again, and a certificate takes a fifth longer.

Pure: the database is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pki.errors import PKIError, copied
from pki.records import Issue, Record, TokenRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """Asks for the record of a certificate; None is the answer for one that is not there."""

    thumbprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindToken:
    """Asks for the record of a one-time token; None is the answer for one that is not there."""

    id: str


PAUSE = None  # asks for nothing; the others may do the same part of their work first

# An `Issue` asks for nothing, too: it is stored, or what went wrong is raised where it was yielded.
Ask = Find | FindToken | Issue | None
Answer = Record | TokenRecord | Exception | None
Steps = Generator[Ask, Any, T]


class Books(Protocol):
    """What of `pki.store.Store` is needed here."""

    def find_thumbprints(self, several: Collection[str]) -> Mapping[str, Record]: ...

    def find_tokens(self, several: Collection[str]) -> Mapping[str, TokenRecord]: ...

    def issue_many(self, items: Sequence[Issue]) -> Sequence[Exception | None]: ...


def together(many: Sequence[Steps[T]], books: Books) -> list[T | Exception]:
    """Take the steps of each to their end, round by round: in each round, what all of them ask for is done at once.

    Returns:
        for each its result, or what it has raised; one that fails takes none of the others with it.
    """
    results: dict[int, T | Exception] = {}
    asked: list[tuple[int, Ask]] = []

    def advance(index: int, answer: Answer) -> None:
        steps = many[index]
        try:
            asked.append((index, steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)))
        except StopIteration as end:
            results[index] = end.value
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as failed:  # a library in Rust that panics, too: its own item fails, and no other
            results[index] = told(failed)

    for index in range(len(many)):
        advance(index, None)
    while asked:
        before, asked[:] = list(asked), []
        for index, answer in zip(
            [index for index, _ in before], _answers([ask for _, ask in before], books), strict=True
        ):
            advance(index, answer)
    return [results[index] for index in range(len(many))]


def _answers(asked: Sequence[Ask], books: Books) -> list[Answer]:
    """The answer to each; an exception is what is to be raised."""
    answers: list[Answer] = [None] * len(asked)

    def fill(kind: type[Find | FindToken | Issue], find: Callable[[list[Any]], Sequence[Answer]]) -> None:
        places = [place for place, ask in enumerate(asked) if isinstance(ask, kind)]
        if not places:
            return
        try:
            found = find([asked[place] for place in places])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # of all who have asked for that, and of nobody else
            found = [copied(told(error)) for _ in places]
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer

    def certificates(asks: list[Find]) -> Sequence[Answer]:
        records = books.find_thumbprints({ask.thumbprint for ask in asks})
        return [records.get(ask.thumbprint) for ask in asks]

    def tokens(asks: list[FindToken]) -> Sequence[Answer]:
        records = books.find_tokens({ask.id for ask in asks})
        return [records.get(ask.id) for ask in asks]

    fill(Find, certificates)
    fill(FindToken, tokens)
    fill(Issue, books.issue_many)
    return answers


def told(failed: BaseException) -> Exception:
    """What is raised to whoever has asked. A library in Rust that panics raises what is no `Exception`."""
    if isinstance(failed, Exception):
        return failed
    made = PKIError("issuance", got=type(failed).__name__, expected="no defect", do="report it")
    made.__cause__ = failed
    return made
