"""What people have decided by command, in any process over the database, comes into the audit trail of a server."""

from __future__ import annotations

from types import TracebackType

from trust.audit import AuditSink
from trust.clock import Clock, wall_clock
from trust.oauth.server.rounds import Rounds
from trust.oauth.server.store.decisions import DecisionTable

ROUND_SECONDS = 2.0  # between two looks whether there is something to tell
MAX_TOLD = 1000  # of one round: whoever closes the server waits for its end


class ToldDecisions:
    """Tells a trail of every decision, for as long as the `with` block runs.

    Each is told by one of the servers over the database, to its own trail. One that crashes in between may have told a
    decision that is then told again, by the same `number`; none is left out. Where the trail fails, what it has not
    taken waits for the next round.
    """

    def __init__(self, table: DecisionTable, audit: AuditSink, *, clock: Clock = wall_clock) -> None:
        self._table, self._audit, self._clock = table, audit, clock
        self._rounds = Rounds(
            self._tell,
            seconds=ROUND_SECONDS,
            name="a2a-trust-decisions",
            failing="decisions made by command cannot be recorded, and wait",
            again="decisions made by command are recorded again",
        )

    @property
    def problem(self) -> str | None:
        """Why the last round failed, in one line; None where it did not."""
        return self._rounds.problem

    def __enter__(self) -> ToldDecisions:
        self._rounds.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rounds.close()

    def _tell(self) -> None:
        for _ in range(MAX_TOLD):
            decided = self._table.take(now=self._clock())
            if decided is None:
                return
            try:
                self._audit.record(
                    event=decided.event,
                    decision="allow",
                    check="all",
                    target=decided.target,
                    by=decided.by,
                    account=decided.account,
                    at=decided.at.isoformat(),
                    number=decided.number,
                    **decided.facts,  # type: ignore[arg-type]  # one of them may be the subject
                )
            except BaseException:
                self._table.give_back(decided)
                raise
            self._table.told(decided)
