"""Requests for a person, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from tests.forge import NOW
from trust.errors import TooManyApprovals
from trust.oauth.server.store import Asked, Store
from trust.oauth.server.store.approvals import MAX_WAITING

WORKER = "spiffe://fleet.example/workers/7"


def test_whoever_asks_by_many_ways_at_once_gets_no_more_than_its_share(opened: Callable[[], Store]) -> None:
    stores, start = [opened() for _ in range(3)], threading.Barrier(12)

    def ask(worker: int) -> int:
        start.wait(20)
        new = 0
        for number in range(4):
            asked = Asked(
                request=f"{worker}-{number}",
                client_id=WORKER,
                agent_id=WORKER,
                subject=WORKER,
                actors=(),
                resource="spiffe://fleet.example/billing",
                scope="approve:payment",
                message="",
            )
            try:
                stores[worker % 3].approvals.ask(asked, now=NOW, lifetime=timedelta(minutes=5))
            except TooManyApprovals:
                continue
            new += 1
        return new

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, range(12))) == MAX_WAITING
    assert len(stores[0].approvals.waiting(now=NOW)) == MAX_WAITING
