"""When an agent renews, and when it tries again: by tables and by chance, without a clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.client.schedule import (
    FIRST_WAIT_REFUSED,
    LONGEST_WAIT,
    LONGEST_WAIT_EXPIRED,
    LONGEST_WAIT_REFUSED,
    MAX_LOOK,
    SHORTEST_WAIT_REFUSED,
    Schedule,
)

NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DICE = st.floats(0, 1)
LIVES = st.integers(1, 7 * 86_400).map(lambda seconds: timedelta(seconds=seconds))


def of(life: timedelta = DAY, *, dice: float = 0, received: datetime | None = NOON) -> Schedule:
    return Schedule.of(NOON - timedelta(minutes=1), NOON + life, received=received, dice=dice)


@pytest.mark.parametrize(
    "schedule, hours",
    [
        (of(), 16),
        (of(dice=1), 14.4),
        (of(timedelta(hours=3)), 2),
        # Found on disk: nobody knows when it came, so its life counts from notBefore.
        (of(received=None), 16 - 1 / 60 / 3),
    ],
    ids=["at two thirds", "with jitter up to a fifteenth earlier", "a short one", "from disk"],
)
def test_when_a_certificate_is_renewed(schedule: Schedule, hours: float) -> None:
    assert abs(schedule.renew_at - (NOON + timedelta(hours=hours))) < timedelta(seconds=1)
    assert not schedule.due(schedule.renew_at - timedelta(seconds=1))
    assert schedule.due(schedule.renew_at)
    assert schedule.due(NOON + 365 * DAY)  # long after its end, too


def test_seconds_long_certificates_count_from_when_they_came() -> None:
    schedule = of(timedelta(seconds=6))
    assert schedule.renew_at - NOON == timedelta(seconds=4)  # and not before they came, as two thirds of 66 s are


@pytest.mark.parametrize(
    "left, kept",
    [
        (timedelta(hours=1), timedelta(minutes=54)),
        (timedelta(hours=2), timedelta(hours=1.3)),
        (timedelta(), timedelta()),
    ],
    ids=["to its last moment", "a twentieth of a day", "it ended before it came"],
)
def test_a_certificate_that_is_nearly_over_when_it_comes_does_not_cause_a_storm(
    left: timedelta, kept: timedelta
) -> None:
    schedule = Schedule.of(NOON - DAY, NOON + left, received=NOON, dice=1)
    assert schedule.renew_at - NOON == kept


@given(life=LIVES, dice=DICE, failures=st.integers(0, 50))
def test_waits_grow_are_bounded_and_are_never_nothing(life: timedelta, dice: float, failures: int) -> None:
    schedule, now = of(life), NOON + life * 0.9
    waits = []
    for _ in range(failures + 1):
        schedule = schedule.failed(now, refused=False, dice=dice)
        assert schedule.retry_at is not None
        waits.append(schedule.retry_at - now)
    assert waits == sorted(waits)
    assert min(waits) >= timedelta(seconds=0.125)
    assert max(waits) <= LONGEST_WAIT
    # Whoever has a tenth of its life left gets several attempts before the end.
    assert waits[0] <= max(life / 100, timedelta(seconds=0.25))


@given(life=LIVES, dice=DICE)
def test_after_the_end_the_service_is_left_in_peace(life: timedelta, dice: float) -> None:
    late, refused, end = of(life), of(life), NOON + life + DAY
    for _ in range(40):
        late = late.failed(end, refused=False, dice=dice)
        refused = refused.failed(end, refused=True, dice=dice)
        assert refused.retry_at is not None
        assert refused.retry_at - end >= FIRST_WAIT_REFUSED / 2
    assert late.retry_at is not None and refused.retry_at is not None
    assert LONGEST_WAIT_EXPIRED / 2 <= late.retry_at - end <= LONGEST_WAIT_EXPIRED
    assert LONGEST_WAIT_REFUSED / 2 <= refused.retry_at - end <= LONGEST_WAIT_REFUSED


@given(life=LIVES, dice=DICE, failures=st.integers(0, 50), refused=st.booleans(), used=st.floats(0.6, 1))
def test_no_wait_takes_more_than_a_fifth_of_what_is_left(
    life: timedelta, dice: float, failures: int, refused: bool, used: float
) -> None:
    """One refusal, by a policy that was wrong for a moment, must not be the end of an agent with a short life."""
    now = NOON + life * used
    schedule = replace(of(life), failures=failures).failed(now, refused=refused, dice=dice)
    assert schedule.retry_at is not None
    least = SHORTEST_WAIT_REFUSED if refused else timedelta(seconds=1)
    if now < schedule.end:
        assert schedule.retry_at - now <= max(least, (schedule.end - now) / 5)
    assert schedule.retry_at - now >= (SHORTEST_WAIT_REFUSED / 2 if refused else timedelta(seconds=0.125))


def test_a_failure_is_followed_by_a_wait() -> None:
    now = NOON + timedelta(hours=17)
    schedule = of().failed(now, refused=False, dice=0)
    assert not schedule.due(now)
    assert not schedule.due(now + timedelta(seconds=14))
    assert schedule.due(now + timedelta(seconds=15))
    assert schedule.next_attempt() == now + timedelta(seconds=15)


def test_a_clock_that_is_set_back_after_a_failure_does_not_silence_the_agent() -> None:
    wrong = NOON + 365 * DAY
    schedule = of().failed(wrong, refused=True, dice=1)
    assert not schedule.due(wrong)
    assert schedule.due(NOON + timedelta(hours=17))  # a year before the time that was waited for
    assert not schedule.due(NOON)  # and nothing is due when the certificate is fresh by the right clock


def test_a_clock_that_is_set_forward_makes_one_attempt() -> None:
    schedule = of()
    later = NOON + 30 * DAY
    assert schedule.due(later)
    assert not schedule.failed(later, refused=False, dice=1).due(later + timedelta(seconds=1))


def test_sooner_is_now_unless_a_failure_is_waited_out() -> None:
    schedule = of().sooner(NOON)
    assert schedule.due(NOON)
    failed = schedule.failed(NOON, refused=False, dice=1).sooner(NOON)
    assert not failed.due(NOON)
    assert failed.due(NOON + timedelta(seconds=30))


@given(life=LIVES, offset=st.integers(-86_400, 8 * 86_400))
def test_the_clock_is_looked_at_again_soon(life: timedelta, offset: int) -> None:
    pause = of(life).pause(NOON + timedelta(seconds=offset))
    assert 0 < pause <= MAX_LOOK
    assert pause <= max(0.05, life.total_seconds() / 50)
