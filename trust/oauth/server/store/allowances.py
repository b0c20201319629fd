"""How many tokens one client may hold at a time.

Agents take a list of at most 100,000 revoked tokens (`trust.oauth.denylist.document`), and refuse everything where it
is longer. So nobody may hold so many that revoking them would make it so: four hostile clients cannot, whatever they
ask for. (Five or more can, and so can disabling them: then agents refuse all until enough of their tokens have ended.)

Counting 20,000 rows for each token would cost more than the token. So a client is counted once for many of its tokens:
a process adds `COUNTED_FOR` before it counts again, and each may go beyond the limit by as many.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import datetime

import sqlalchemy as sa

from trust.errors import TooManyTokensHeld
from trust.oauth.server.store.schema import TOKENS, seconds_of

MAX_HELD = 20_000  # tokens of one client, revoked ones included: 11 a second that live for half an hour
COUNTED_FOR = 250  # tokens
FULL_SECONDS = 10  # for which a client that holds too many is refused without being counted again
KNOWN_CLIENTS = 10_000  # in memory, about 2 MB; who is forgotten is counted again


class Allowances:
    """Of all clients, in one process. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How many more a client may have before it is counted again; and if none, from when on that may be.
        self._known: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def refused(self, connection: sa.Connection, client_id: str, now: datetime) -> TooManyTokensHeld | None:
        """Why this client gets no token, in the transaction that would add it; None, and one is counted, if it does."""
        seconds = seconds_of(now)
        with self._lock:
            left, full_until = self._known.get(client_id, (0, 0))
            if left:
                self._known[client_id] = (left - 1, 0)
                return None
        if 0 < full_until - seconds <= FULL_SECONDS:  # more than that was said by a clock that was ahead
            return _refusal(client_id, full_until - seconds)
        living = (TOKENS.c.client_id == client_id, TOKENS.c.expires_at > seconds)
        held = connection.execute(sa.select(sa.func.count()).select_from(TOKENS).where(*living)).scalar_one()
        is_full = held >= MAX_HELD
        with self._lock:
            self._known.pop(client_id, None)
            while len(self._known) >= KNOWN_CLIENTS:
                self._known.popitem(last=False)
            self._known[client_id] = (
                (0, seconds + FULL_SECONDS) if is_full else (min(COUNTED_FOR, MAX_HELD - held) - 1, 0)
            )
        return _refusal(client_id, FULL_SECONDS, is_first=True) if is_full else None


def _refusal(client_id: str, wait: int, *, is_first: bool = False) -> TooManyTokensHeld:
    return TooManyTokensHeld(
        "tokens of one client",
        got=f"{MAX_HELD} of {client_id} that have not expired",
        expected="fewer",
        do="have it use each until it ends",
        retry_after=wait,
        is_first=is_first,
    )
