"""When to renew, and when to try again. Pure: the time and the dice are arguments.

The wall clock is compared, never slept towards: a machine that was suspended or whose clock was set finds out at its
next look. `pause` says how soon that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

RENEW_AFTER = 2 / 3  # of life, as step-ca does; up to 1/15 earlier, so that a fleet does not come all at once
SPREAD = 1 / 15
LEAST = 1 / 20  # of nominal life that a certificate is kept before the next is asked for...
LAST_MOMENT = 9 / 10  # ...unless it ends before that: an expired one could not be renewed any more
MAX_LOOK = 5.0  # seconds between two looks at the clock
MIN_LOOK = 0.05

# While the certificate is good: the first wait after a failure, and the longest. Both shrink with its life.
FIRST_WAIT = timedelta(seconds=30)
LONGEST_WAIT = timedelta(minutes=15)
SHORTEST_WAIT = timedelta(seconds=0.25)
LONGEST_SHARE = 5  # a wait is a fifth of what is left at most, so that nothing that passes costs an agent its life...
SHORTEST_WAIT_REFUSED = timedelta(seconds=2)  # ...and not shorter than this when the service said no
# After its end, and after a refusal, only a person can help: a fleet of such agents must not be a load.
LONGEST_WAIT_EXPIRED = timedelta(hours=1)
FIRST_WAIT_REFUSED = timedelta(minutes=5)
LONGEST_WAIT_REFUSED = timedelta(hours=6)
MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One certificate's life, and how the attempts to follow it up went."""

    start: datetime  # of its life with us
    end: datetime
    renew_at: datetime
    failures: int = 0  # since the last success
    last_attempt: datetime | None = None
    retry_at: datetime | None = None

    @classmethod
    def of(cls, not_before: datetime, not_after: datetime, *, received: datetime | None, dice: float) -> Schedule:
        """The schedule of a new certificate.

        Its life counts from when we got it, because CAs set notBefore back; one that is nearly over when it comes is
        kept for a part of its nominal life, or nearly to its end, so that a CA which hands out such certificates is not
        stormed.

        Args:
            received: now, for one that has just been issued; None for one that was found on disk.
            dice: from 0 to 1.
        """
        start = not_before if received is None else max(not_before, received)
        renew_at = start + max(not_after - start, timedelta()) * (RENEW_AFTER - SPREAD * dice)
        if received is not None:
            left = max(not_after - received, timedelta())
            renew_at = max(renew_at, received + min((not_after - not_before) * LEAST, left * LAST_MOMENT))
        return cls(start=start, end=not_after, renew_at=renew_at)

    @property
    def life(self) -> timedelta:
        return max(self.end - self.start, timedelta(seconds=1))

    def due(self, now: datetime) -> bool:
        """Whether to try now. A clock that was set back since the last attempt is not waited for."""
        if now < self.renew_at:
            return False
        if self.retry_at is None or self.last_attempt is None:
            return True
        return now >= self.retry_at or now < self.last_attempt

    def sooner(self, now: datetime) -> Schedule:
        """Renew now: the issuer is not to be trusted any longer, or somebody asks for it."""
        return replace(self, renew_at=min(self.renew_at, now), retry_at=None if not self.failures else self.retry_at)

    def failed(self, now: datetime, *, refused: bool, dice: float) -> Schedule:
        """After an attempt that failed.

        Args:
            refused: the service said no to this agent, which another attempt will hardly change.
            dice: from 0 to 1.
        """
        if refused:
            first, longest = FIRST_WAIT_REFUSED, LONGEST_WAIT_REFUSED
        else:
            first = min(FIRST_WAIT, max(SHORTEST_WAIT, self.life / 100))
            longest = min(LONGEST_WAIT, max(4 * SHORTEST_WAIT, self.life / 20))
            if now >= self.end:
                longest = LONGEST_WAIT_EXPIRED
        if now < self.end:
            least = SHORTEST_WAIT_REFUSED if refused else SHORTEST_WAIT
            longest = min(longest, max(least, (self.end - now) / LONGEST_SHARE))
        # As a float: two to the thirtieth times five minutes is no timedelta.
        seconds = min(first.total_seconds() * 2 ** min(self.failures, MAX_DOUBLINGS), longest.total_seconds())
        wait = timedelta(seconds=seconds * (0.5 + dice / 2))
        return replace(self, failures=self.failures + 1, last_attempt=now, retry_at=now + wait)

    def next_attempt(self) -> datetime:
        return max(self.renew_at, self.retry_at or self.renew_at)

    def pause(self, now: datetime) -> float:
        """Seconds until the next look at the clock: short against this life, and never long."""
        until = (self.next_attempt() - now).total_seconds()
        return max(MIN_LOOK, min(MAX_LOOK, self.life.total_seconds() / 50, until if until > 0 else MIN_LOOK))
