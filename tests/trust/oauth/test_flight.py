"""Work that many wait for: once, and whatever becomes of those who wait. What is fetched so has tests of its own."""

from __future__ import annotations

import asyncio

import pytest

from trust.oauth.flight import Flight


def test_it_is_done_once_for_all_who_wait_and_anew_for_those_who_come_later() -> None:
    async def work() -> int:
        begun.append(len(begun))
        await go_on.wait()
        return len(begun)

    async def main() -> None:
        flight = Flight[int]()
        waiting = [asyncio.create_task(waits(flight)) for _ in range(3)]
        while not begun:
            await asyncio.sleep(0)
        waiting.pop().cancel()
        go_on.set()
        assert await asyncio.gather(*waiting) == [1, 1]
        assert flight.under_way is None
        assert await waits(flight) == 2

    async def waits(flight: Flight[int]) -> int:
        return await asyncio.shield(flight.begin(work))

    begun: list[int] = []
    go_on = asyncio.Event()
    asyncio.run(main())


def test_a_failure_is_everyones_who_waits_and_nobodys_where_none_does(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        raise ValueError("away")

    async def main() -> None:
        flight = Flight[int]()
        found = await asyncio.gather(*(asyncio.shield(flight.begin(work)) for _ in range(3)), return_exceptions=True)
        assert found[0] is found[1] is found[2] and isinstance(found[0], ValueError)
        flight.begin(work)
        while flight.under_way is not None:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert not caplog.records  # asyncio's, of an exception that was never retrieved
