from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from trust.oauth.server.together import MAX_BATCH, Together


class Worker:
    """Doubles numbers, refuses odd ones, breaks at 0; the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    def work(self, asked: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(asked))
        if 0 in asked:
            raise RuntimeError("broken")
        return [ValueError(n) if n % 2 else 2 * n for n in asked]

    async def in_thread(self, call: Callable[[], Sequence[int | Exception]]) -> Sequence[int | Exception]:
        await self.gate.wait()
        return await asyncio.to_thread(call)


def run(main: Callable[[Worker, Together[int, int]], Coroutine[Any, Any, None]]) -> Worker:
    async def work() -> Worker:
        worker = Worker()
        await main(worker, Together(worker.work, worker.in_thread))
        return worker

    return asyncio.run(work())


def test_what_comes_while_others_are_served_is_served_together_each_with_its_own_answer() -> None:
    async def main(worker: Worker, together: Together[int, int]) -> None:
        first = asyncio.create_task(together.ask(2))
        await asyncio.sleep(0)
        more = [asyncio.create_task(together.ask(n)) for n in (4, 5, 6)]
        await asyncio.sleep(0)
        worker.gate.set()
        assert await first == 4
        answers = await asyncio.gather(*more, return_exceptions=True)
        assert (answers[0], answers[2]) == (8, 12)
        assert isinstance(answers[1], ValueError) and answers[1].args == (5,)
        assert await together.ask(8) == 16

    batches = run(main).batches
    assert sorted(n for batch in batches for n in batch) == [2, 4, 5, 6, 8]
    assert len(batches) <= 3


def test_an_answer_is_of_work_that_began_after_the_question() -> None:
    """Else a client that was disabled before it asked could be let in by what was looked up before."""

    async def main(worker: Worker, together: Together[int, int]) -> None:
        state = ["enabled"]
        seen: list[str] = []
        begun, release = asyncio.Event(), asyncio.Event()

        async def in_thread(call: Callable[[], Sequence[str | Exception]]) -> Sequence[str | Exception]:
            result = call()
            begun.set()
            await release.wait()
            return result

        looking = Together[None, str](lambda asked: [state[0]] * len(asked), in_thread)
        first = asyncio.create_task(looking.ask(None))
        await begun.wait()
        state[0] = "disabled"
        second = asyncio.create_task(looking.ask(None))
        await asyncio.sleep(0)
        release.set()
        seen += [await first, await second]
        assert seen == ["enabled", "disabled"]

    run(main)


def test_a_failure_is_everybodys_of_that_batch_and_nobody_elses() -> None:
    async def main(worker: Worker, together: Together[int, int]) -> None:
        worker.gate.set()
        answers = await asyncio.gather(together.ask(0), together.ask(2), return_exceptions=True)
        assert [type(a) for a in answers] == [RuntimeError, RuntimeError]
        assert await together.ask(2) == 4

    run(main)


def test_whoever_goes_away_holds_up_nobody() -> None:
    async def main(worker: Worker, together: Together[int, int]) -> None:
        tasks = [asyncio.create_task(together.ask(n)) for n in (2, 4, 5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
        worker.gate.set()
        assert await tasks[1] == 8
        assert await together.ask(6) == 12

    run(main)


def test_batches_are_bounded() -> None:
    async def main(worker: Worker, together: Together[int, int]) -> None:
        asked = [together.ask(2) for _ in range(3 * MAX_BATCH)]
        worker.gate.set()
        assert await asyncio.gather(*asked) == [4] * len(asked)

    assert max(len(batch) for batch in run(main).batches) == MAX_BATCH


def test_the_end_of_the_loop_leaves_nobody_waiting_and_the_next_loop_begins_anew() -> None:
    async def forever(call: Callable[[], Sequence[int | Exception]]) -> Sequence[int | Exception]:
        await asyncio.sleep(3600)
        return call()

    slow = Together[int, int](lambda asked: [2 * n for n in asked], forever)

    async def left() -> None:
        task = asyncio.create_task(slow.ask(1))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(slow.ask(2))
        await asyncio.sleep(0.01)
        assert slow._task is not None
        slow._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(left())

    async def quick(call: Callable[[], Sequence[int | Exception]]) -> Sequence[int | Exception]:
        return call()

    slow._in_thread = quick
    assert asyncio.run(slow.ask(3)) == 6
