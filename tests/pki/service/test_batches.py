from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest

from pki.authority import Issued
from pki.service.batches import MAX_BATCH, Batches
from pki.steps import Steps


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
        return [KeyError(one) if one == "refused" else one for one in many]


def asked(one: object) -> Steps[Issued]:
    return cast("Steps[Issued]", one)


def test_what_waits_is_issued_together() -> None:
    together = Together()

    async def main() -> list[object]:
        batches = Batches(together)
        first = asyncio.ensure_future(batches.issued(asked("first")))
        while not together.sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(batches.issued(asked(n))) for n in range(MAX_BATCH + 1)]
        await asyncio.sleep(0)
        others[3].cancel()  # its client goes away
        together.may.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        later: object = await batches.issued(asked("later"))
        assert later == "later"
        batches.close()
        return list(found)

    found = asyncio.run(main())
    assert together.sizes == [1, MAX_BATCH, 1, 1]
    assert isinstance(found.pop(4), asyncio.CancelledError)
    assert found == ["first", 0, 1, 2, *range(4, MAX_BATCH + 1)]


@pytest.mark.parametrize(("one", "error"), [("refused", KeyError), ("defect", RuntimeError)])
def test_what_fails_is_raised_where_it_is_waited_for(one: str, error: type[Exception]) -> None:
    together = Together()
    together.may.set()

    async def main() -> None:
        batches = Batches(together)
        with pytest.raises(error):
            await batches.issued(asked(one))
        following: object = await batches.issued(asked("next"))
        assert following == "next"
        batches.close()

    asyncio.run(main())
