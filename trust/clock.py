"""What time it is, and how it is written for people. Only edges read the clock; all else is told the time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from trust.errors import IdentityError

Clock = Callable[[], datetime]  # returns the aware time now


def wall_clock() -> datetime:
    return datetime.now(UTC)


def utc(now: datetime) -> datetime:
    """Return `now` in UTC; a time without a zone is refused, for it would be read as the wrong instant."""
    if now.tzinfo is UTC:  # nearly always, and asked at every step of a request
        return now
    if now.tzinfo is None:
        raise IdentityError(
            "time without a zone", got=now.isoformat(), expected="an aware datetime, e.g. datetime.now(UTC)"
        )
    try:
        return now.astimezone(UTC)
    except OverflowError:
        raise IdentityError("time outside the calendar", got=now.isoformat(), expected="years 1 to 9999") from None


def shown(time: datetime) -> str:
    """A time of a certificate, a list or a clock for people: "2026-11-22 00:56:54 UTC"."""
    return f"{utc(time):%Y-%m-%d %H:%M:%S} UTC"
