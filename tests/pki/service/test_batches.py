from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest

from pki.authority import Issued
from pki.errors import PKIError
from pki.service.batches import MAX_BATCH, Batches
from pki.steps import Steps


class Panic(BaseException):
    """What PyO3 raises where Rust panics is no `Exception`, either."""


class Together:
    """Gives back what it is given, when it may; remembers how much came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may = threading.Event()

    def __call__(self, many: Sequence[Any]) -> Sequence[Any]:
        self.sizes.append(len(many))
        assert self.may.wait(10)
        if "defect" in many:
            raise RuntimeError("defect")
        if "panic" in many:
            raise Panic("a Rust library has found a defect of its own")
        return [KeyError(one) if one == "refused" else one for one in many]


class Trail:
    """Remembers what was recorded, and in how many goes; what is asked as "full" cannot be."""

    def __init__(self) -> None:
        self.goes: list[list[tuple[str, object]]] = []

    def __call__(self, made: Sequence[tuple[str, object]]) -> None:
        self.goes.append(list(made))
        if "full" in dict(made):
            raise OSError("full")


def steps(one: object) -> Steps[Issued]:
    return cast("Steps[Issued]", one)


def test_a_batch_waits_for_as_many_as_last_time_and_not_for_long() -> None:
    together, trail = Together(), Trail()

    async def main() -> None:
        batches = Batches(together, trail)

        async def ask(count: int) -> None:
            await asyncio.gather(*(batches.issued(steps(n), str(n)) for n in range(count)))

        first = asyncio.ensure_future(ask(4))
        while not together.sizes:
            await asyncio.sleep(0.001)
        together.may.set()
        await first  # one alone, who came first, and then three
        await ask(3)
        await ask(2)  # who wait for a third, in vain
        await ask(2)
        batches.close()

    asyncio.run(main())
    assert together.sizes == [1, 3, 3, 2, 2]


def test_what_waits_is_issued_and_recorded_together() -> None:
    together, trail = Together(), Trail()

    async def main() -> list[object]:
        batches = Batches(together, trail)
        first = asyncio.ensure_future(batches.issued(steps("first"), "a"))
        while not together.sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(batches.issued(steps(n), str(n))) for n in range(MAX_BATCH + 1)]
        await asyncio.sleep(0)
        others[3].cancel()  # its client goes away
        together.may.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        later: object = await batches.issued(steps("later"), "z")
        assert later == "later"
        batches.close()
        return list(found)

    found = asyncio.run(main())
    assert together.sizes == [1, MAX_BATCH, 1, 1]
    assert isinstance(found.pop(4), asyncio.CancelledError)
    assert found == ["first", 0, 1, 2, *range(4, MAX_BATCH + 1)]
    assert trail.goes == [
        [("a", "first")],
        [(str(n), n) for n in range(MAX_BATCH)],  # the one whose client went away was issued as well
        [(str(MAX_BATCH), MAX_BATCH)],
        [("z", "later")],
    ]


@pytest.mark.parametrize(
    ("asked", "errors", "recorded"),
    [
        ({"one": "ok", "two": "refused"}, [None, KeyError], [("one", "ok")]),
        ({"one": "refused", "two": "refused"}, [KeyError, KeyError], None),
        ({"one": "ok", "two": "defect"}, [RuntimeError, RuntimeError], None),
        ({"one": "ok", "two": "panic"}, [PKIError, PKIError], None),
        (
            {"one": "ok", "full": "ok", "three": "refused"},
            [OSError, OSError, KeyError],
            [("one", "ok"), ("full", "ok")],
        ),
    ],
    ids=["one is refused", "all are refused", "a defect of the whole", "a panic", "a trail that cannot be written"],
)
def test_what_fails_is_raised_where_it_is_waited_for(
    asked: dict[str, str], errors: list[type[Exception] | None], recorded: list[tuple[str, str]] | None
) -> None:
    together, trail = Together(), Trail()

    async def main() -> list[object]:
        batches = Batches(together, trail)
        first = asyncio.ensure_future(batches.issued(steps("first"), "first"))
        while not together.sizes:
            await asyncio.sleep(0.001)
        many = [asyncio.ensure_future(batches.issued(steps(one), name)) for name, one in asked.items()]
        await asyncio.sleep(0)
        together.may.set()
        found = await asyncio.gather(*many, return_exceptions=True)
        await first
        following: object = await batches.issued(steps("next"), "next")
        assert following == "next"
        batches.close()
        return list(found)

    found = asyncio.run(main())
    assert [type(one) if isinstance(one, Exception) else None for one in found] == errors
    assert trail.goes[1:-1] == ([recorded] if recorded else [])
    raised = [one for one in found if isinstance(one, Exception)]
    assert len({id(one) for one in raised}) == len(raised), "each gets its own"
