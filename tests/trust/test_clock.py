"""Times: with a zone, or refused; and how people see them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from trust.clock import shown, utc, wall_clock
from trust.errors import IdentityError


def test_times_are_turned_into_utc() -> None:
    tokyo = datetime(2030, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert utc(tokyo) == tokyo
    assert utc(tokyo).tzinfo is UTC
    assert utc(tokyo).hour == 0


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(IdentityError, match="without a zone"):
        utc(datetime(2030, 1, 1))


def test_a_time_for_people_is_in_utc() -> None:
    tokyo = datetime(2026, 11, 22, 9, 56, 54, 999, tzinfo=timezone(timedelta(hours=9)))
    assert shown(tokyo) == "2026-11-22 00:56:54 UTC"


def test_the_wall_clock_has_a_zone() -> None:
    assert abs(wall_clock() - datetime.now(UTC)) < timedelta(minutes=1)
