"""How many tokens one client may hold at a time.

Agents take a list of at most 100,000 revoked tokens (`trust.oauth.denylist.document`), and refuse everything where it
is longer. So nobody may hold so many that revoking them would make it so: four hostile clients cannot, whatever they
ask for. (Five or more can, and so can disabling them: then agents refuse all until enough of their tokens have ended.)

Nor does one caller of an agent use up what that may hold for all: at most a quarter is on behalf of one other agent.

Counting 20,000 rows for each token would cost more than the token. So a client is counted once for many of its tokens:
a process adds `COUNTED_FOR` before it counts again, and each may go beyond the limits by as many.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from trust.errors import TooManyTokensHeld
from trust.oauth.server.store.schema import TOKENS, seconds_of

MAX_HELD = 20_000  # tokens of one client, revoked ones included: 11 a second that live for half an hour
MAX_ON_BEHALF = MAX_HELD // 4  # of them, for one other agent, whose requests it takes further
COUNTED_FOR = 250  # tokens
FULL_SECONDS = 10  # for which who holds too many is refused without being counted again
KNOWN_CLIENTS = 10_000  # in memory, about 3 MB; who is forgotten is counted again

_ALL = ""  # in place of a subject


@dataclass(slots=True)
class _Counted:
    """What is known of one client."""

    left: int  # tokens before it is counted again
    until: int  # seconds since the epoch: until then who is full is not counted again
    full: dict[str, bool]  # on whose behalf it holds too many, or `_ALL`; and whether that was said

    def refusal(self, client_id: str, subject: str, seconds: int) -> TooManyTokensHeld | None:
        """Why it gets no such token; None if it does."""
        name = _ALL if _ALL in self.full else subject
        if name not in self.full:
            return None
        was_said, self.full[name] = self.full[name], True
        held = f"{MAX_HELD} of {client_id}" if name == _ALL else f"{MAX_ON_BEHALF} of {client_id} for {name}"
        return TooManyTokensHeld(
            "tokens of one client",
            got=f"{held} that have not expired",
            expected="fewer",
            do="have it use each until it ends",
            retry_after=self.until - seconds,
            is_first=not was_said,
        )


class Allowances:
    """Of all clients, in one process. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Counted] = OrderedDict()

    def refused(
        self, connection: sa.Connection, client_id: str, subject: str, now: datetime
    ) -> TooManyTokensHeld | None:
        """Why a client gets no token, in the transaction that would add it; None, and one is counted, if it does."""
        seconds = seconds_of(now)
        with self._lock:
            counted = self._known.get(client_id)
            if counted is not None:
                refusal = counted.refusal(client_id, subject, seconds)
                if refusal is None and counted.left:
                    counted.left -= 1
                    return None
                if refusal is not None and 0 < refusal.retry_after <= FULL_SECONDS:  # more: by a clock that was ahead
                    return refusal
        counted = _counted(connection, client_id, seconds)
        with self._lock:
            self._known.pop(client_id, None)
            while len(self._known) >= KNOWN_CLIENTS:
                self._known.popitem(last=False)
            self._known[client_id] = counted
            refusal = counted.refusal(client_id, subject, seconds)
            if refusal is None:
                counted.left -= 1
            return refusal


def _counted(connection: sa.Connection, client_id: str, seconds: int) -> _Counted:
    living = (TOKENS.c.client_id == client_id, TOKENS.c.expires_at > seconds)
    number = sa.func.count()
    held = connection.execute(sa.select(number).select_from(TOKENS).where(*living)).scalar_one()
    full: list[str] = []
    if held >= MAX_HELD:
        full = [_ALL]
    elif held >= MAX_ON_BEHALF:  # or none of them can be
        others = sa.select(TOKENS.c.subject).where(*living, TOKENS.c.subject != TOKENS.c.agent_id)
        full = list(connection.execute(others.group_by(TOKENS.c.subject).having(number >= MAX_ON_BEHALF)).scalars())
    return _Counted(min(COUNTED_FOR, MAX_HELD - held), seconds + FULL_SECONDS, dict.fromkeys(full, False))
