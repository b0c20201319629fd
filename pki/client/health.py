"""How a renewal goes: what programs, operators and readiness checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pki.client.answers import CLOCK_SAYS, SKEW_WORTH_SAYING, clocks
from trust.clock import shown
from trust.identity import AgentID


class Condition(StrEnum):
    HEALTHY = "healthy"
    LATE = "late"  # renewal is due and does not succeed; the certificate is still good
    REFUSED = "refused"  # the CA said no to this agent; the certificate may still be good
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of one agent's credentials at one moment."""

    condition: Condition
    agent_id: AgentID
    not_after: datetime
    next_attempt: datetime
    failures: int  # since the last success
    problem: str | None  # why the last attempt failed
    our_clock: datetime
    ca_clock: datetime | None  # when the CA last answered, by its clock now
    trust_problem: str | None  # why bundle or revocation lists are not fresh

    @property
    def ok(self) -> bool:
        """Whether the certificate is good by our clock. One that cannot be renewed is, for as long as it lasts."""
        return self.condition is not Condition.EXPIRED and self.our_clock <= self.not_after

    @property
    def _clocks_matter(self) -> bool:
        if self.ca_clock is None:
            return self.condition is Condition.EXPIRED
        return abs(self.ca_clock - self.our_clock) >= SKEW_WORTH_SAYING

    def __str__(self) -> str:
        """One line for people."""
        ends = "ended" if self.condition is Condition.EXPIRED else "expires"
        line = f"{self.agent_id}: {self.condition}, {ends} {shown(self.not_after)}"
        if self.condition is Condition.HEALTHY:
            line += f", renews {shown(self.next_attempt)}"
        elif self.problem is None:
            line += ", renewal is due"
        else:
            line += f", tries again {self.next_attempt:%H:%M:%S}: {self.problem}"
            if self._clocks_matter and CLOCK_SAYS not in self.problem:
                line += f"; {clocks(self.our_clock, self.ca_clock)}"
        if self.condition is Condition.EXPIRED:
            line += "; enrol again with a new token"
        return line + (f"; trust is not fresh: {self.trust_problem}" if self.trust_problem else "")
