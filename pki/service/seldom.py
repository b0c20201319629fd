"""What strangers can have written for nothing is written so often a minute, with the number of what was left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trust.audit import AuditSink, Decision

LINES = 60  # a minute: an incident is seen, and whoever knocks a thousand times a second fills no disk
MINUTE = 60.0

# Refusals of strangers who have shown nothing, and take no more than a packet each. Enrolments are bounded by address.
_CHEAP = ("handshake", "ocsp")


class Seldom:
    """So many lines in a minute, and how many there would have been besides. Safe for threads."""

    def __init__(self, lines: int = LINES, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._said = 0
        self._missed = 0

    def says(self) -> bool:
        """Whether there may be one more line now; what may not is counted."""
        with self._lock:
            if self._clock() - self._began >= MINUTE:
                self._began, self._said = self._clock(), 0
            if self._said >= self._lines:
                self._missed += 1
                return False
            self._said += 1
            return True

    def missed(self) -> int:
        """How many lines were left out since the last time this was asked."""
        with self._lock:
            count, self._missed = self._missed, 0
        return count

    def left_out(self) -> str:
        """The same, for the end of a line for people."""
        count = self.missed()
        return f" ({count:,} more like it)" if count else ""


class SparingAudit:
    """An audit sink that writes every decision but those refusals which are to be had without limit.

    Of each kind of these there are `LINES` a minute; the next one that is written says how many were `omitted`.
    """

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        self._seldom = {event: Seldom() for event in _CHEAP}

    def record(
        self,
        *,
        event: str,
        decision: Decision,
        check: str,
        peer: str = "",
        subject: str = "",
        target: str = "",
        **facts: str | int,
    ) -> None:
        seldom = self._seldom.get(event) if decision == "deny" else None
        if seldom is not None:
            if not seldom.says():
                return
            if omitted := seldom.missed():
                facts["omitted"] = omitted
        self._sink.record(
            event=event, decision=decision, check=check, peer=peer, subject=subject, target=target, **facts
        )
