"""One of several processes that try the same message at the same moment: 250 copies in as many threads.

Run as a program with the address of a store. It says "ready", waits for a line, and says what became of the copies.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from datetime import UTC, datetime

from trust.errors import TrustError
from trust.replay import RedisReplayGuard, ReplayGuard, SQLiteReplayGuard, redis, replay_key, sqlite

KEY = replay_key("spiffe://fleet.example/planner", "spiffe://fleet.example/billing", "the same")
PATIENCE = 60  # the machine may be busy


def outcomes(guard: ReplayGuard, copies: int, issued_at: int) -> Counter[str]:
    """What becomes of so many copies at once, by the name of the error."""
    go, found = threading.Event(), Counter[str]()
    lock = threading.Lock()

    def one() -> None:
        go.wait()
        try:
            # By a clock a little behind the signer's: also a store that started this second knows of such messages.
            guard.remember(KEY, issued_at=issued_at, expires_at=issued_at + 60, now=issued_at - 5)
            outcome = "accepted"
        except TrustError as error:
            outcome = type(error).__name__
        with lock:
            found[outcome] += 1

    threads = [threading.Thread(target=one) for _ in range(copies)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    return found


def main(store: str, issued_at: int) -> None:
    redis.WAIT_SECONDS = sqlite.WAIT_SECONDS = PATIENCE
    start = datetime.fromtimestamp(issued_at, UTC)
    guard = RedisReplayGuard(store) if store.startswith("redis") else SQLiteReplayGuard(store, started_at=start)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(outcomes(guard, 250, issued_at)), flush=True)
    guard.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
