"""Time scopes: durations and calendars, compared with a walk over every minute."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.errors import ConfigurationError, IdentityError, InsufficientScope
from trust.oauth.calendars import (
    MAX_CALENDARS,
    MAX_CLOSED,
    Calendar,
    calendars_of,
    check_calendars,
    expiry_cap,
    time_allows,
)

ISSUED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday
OFFICE = Calendar(zone="Europe/Berlin", days=frozenset({1, 2, 3, 4, 5}), opens=time(9), closes=time(17, 30))
CALENDARS = {"business-hours": OFFICE}
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("name", "minutes"), [("1min", 1), ("30min", 30), ("90min", 90), ("2h", 120), ("9999h", 9999 * 60)]
)
def test_a_duration_begins_with_the_root_token(name: str, minutes: int) -> None:
    end = ISSUED + timedelta(minutes=minutes)
    just_before = end - timedelta(microseconds=1)
    scopes = ["agent:read", f"temporal:{name}"]
    assert expiry_cap(scopes, root_issued_at=ISSUED, now=just_before, calendars={}) == end
    assert time_allows(scopes, issued_at=ISSUED, now=just_before, calendars={})
    assert not time_allows(scopes, issued_at=ISSUED, now=end, calendars={})
    with pytest.raises(InsufficientScope):
        expiry_cap(scopes, root_issued_at=ISSUED, now=end, calendars={})


def test_the_narrowest_time_scope_counts() -> None:
    both = ["temporal:9h", "temporal:30min", "temporal:business-hours"]
    late = ISSUED + timedelta(hours=4, minutes=20)  # 17:20 in Berlin
    assert expiry_cap(both, root_issued_at=ISSUED, now=ISSUED, calendars=CALENDARS) == ISSUED + timedelta(minutes=30)
    assert expiry_cap(both, root_issued_at=late, now=late, calendars=CALENDARS) == late + timedelta(minutes=10)
    assert expiry_cap(["agent:read"], root_issued_at=ISSUED, now=ISSUED, calendars={}) is None


@pytest.mark.parametrize("name", ["0min", "030min", "30m", "30", "-5min", "10000h", "30min.x", "30MIN", "x", "", "**"])
def test_an_unknown_time_scope_denies(name: str) -> None:
    assert not time_allows([f"temporal:{name}"], issued_at=ISSUED, now=ISSUED, calendars=CALENDARS)


def test_any_days_that_are_days_will_do() -> None:
    for days in ([1, 2, 3, 4, 5], range(1, 6), iter((1, 2, 3, 4, 5))):
        calendar = replace(OFFICE, days=days)
        assert calendar == OFFICE and hash(calendar) == hash(OFFICE)
    for days in ([], [0], [8], [1, "tue"], "12", [True], [[1]], 5, None):
        with pytest.raises(ConfigurationError, match="calendar days") as caught:
            replace(OFFICE, days=days)
        assert type(caught.value) is ConfigurationError


def test_any_collections_of_dates_will_do() -> None:
    dates, yearly = [date(2027, 3, 26)], [[12, 25]]
    calendar = replace(HOLIDAYS, closed=dates, closed_yearly=[*yearly, (2, 29)])
    assert calendar == HOLIDAYS and hash(calendar) == hash(HOLIDAYS)
    assert calendar.open_until(at("2031-12-25T20:00:00")) is None


def test_a_time_without_a_zone_is_refused() -> None:
    naive = ISSUED.replace(tzinfo=None)
    with pytest.raises(IdentityError):
        OFFICE.open_until(naive)
    with pytest.raises(IdentityError):
        expiry_cap(["temporal:30min"], root_issued_at=naive, now=ISSUED, calendars={})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text + "+00:00")


NIGHT = Calendar(zone="Europe/Berlin", days=frozenset({5}), opens=time(22), closes=time(6))
ROUND_THE_CLOCK = Calendar(zone="UTC", days=frozenset({5, 6}), opens=time(0), closes=time(0))
# Berlin 2026: clocks go forward on Sunday 29 March (02:00 -> 03:00), back on Sunday 25 October (03:00 -> 02:00).
SUNDAY = Calendar(zone="Europe/Berlin", days=frozenset({7}), opens=time(2, 30), closes=time(12))
UNTIL_HALF_PAST_TWO = Calendar(zone="Europe/Berlin", days=frozenset({7}), opens=time(0), closes=time(2, 30))
HOLIDAYS = Calendar(
    zone="Europe/Berlin",
    days=frozenset(range(1, 8)),
    opens=time(20),
    closes=time(4),
    closed=frozenset({date(2027, 3, 26)}),
    closed_yearly=frozenset({(12, 25), (2, 29)}),
)


@pytest.mark.parametrize(
    ("calendar", "now", "until"),
    [
        (OFFICE, "2026-11-20T08:00:00", "2026-11-20T16:30:00"),
        (OFFICE, "2026-11-20T07:59:59", None),
        (OFFICE, "2026-11-20T16:30:00", None),
        (OFFICE, "2026-11-21T10:00:00", None),  # Saturday
        (OFFICE, "2026-07-17T07:00:00", "2026-07-17T15:30:00"),  # summer time
        (NIGHT, "2026-11-20T21:00:00", "2026-11-21T05:00:00"),
        (NIGHT, "2026-11-21T04:59:59", "2026-11-21T05:00:00"),
        (NIGHT, "2026-11-20T04:00:00", None),  # the night that began on Thursday
        (NIGHT, "2026-11-21T22:00:00", None),
        (ROUND_THE_CLOCK, "2026-11-20T00:00:00", "2026-11-21T00:00:00"),
        (ROUND_THE_CLOCK, "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
        (ROUND_THE_CLOCK, "2026-11-22T00:00:00", None),
        # 02:30 does not exist: 01:30 UTC (03:30) is the narrower reading, not 00:30 UTC (01:30).
        (SUNDAY, "2026-03-29T01:29:59", None),
        (SUNDAY, "2026-03-29T01:30:00", "2026-03-29T10:00:00"),
        # 02:30 comes twice: opening counts from the second (01:30 UTC), closing from the first (00:30 UTC).
        (SUNDAY, "2026-10-25T00:45:00", None),
        (SUNDAY, "2026-10-25T01:30:00", "2026-10-25T11:00:00"),
        (UNTIL_HALF_PAST_TWO, "2026-10-25T00:29:59", "2026-10-25T00:30:00"),
        (UNTIL_HALF_PAST_TWO, "2026-10-25T00:30:00", None),
        # The night before a holiday ends at its midnight (23:00 UTC), and its own does not begin.
        (HOLIDAYS, "2026-12-24T22:59:59", "2026-12-24T23:00:00"),
        (HOLIDAYS, "2026-12-24T23:00:00", None),
        (HOLIDAYS, "2026-12-25T20:00:00", None),
        (HOLIDAYS, "2026-12-26T02:00:00", None),  # of the night that would have begun on the holiday
        (HOLIDAYS, "2026-12-26T20:00:00", "2026-12-27T03:00:00"),
        (HOLIDAYS, "2031-12-25T20:00:00", None),  # every year
        (HOLIDAYS, "2027-03-26T20:00:00", None),
        (HOLIDAYS, "2028-03-26T20:00:00", "2028-03-27T02:00:00"),  # that year only
        (HOLIDAYS, "2028-02-29T20:00:00", None),
        (HOLIDAYS, "2027-02-28T20:00:00", "2027-03-01T03:00:00"),
    ],
)
def test_calendar(calendar: Calendar, now: str, until: str | None) -> None:
    assert calendar.open_until(at(now)) == (at(until) if until else None)
    cap = {"scopes": ["temporal:c"], "now": at(now), "calendars": {"c": calendar}}
    assert time_allows(issued_at=at(now), **cap) is (until is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {"zone": "Mars/Olympus"},
        {"zone": "../etc/passwd"},
        {"zone": ""},
        {"zone": "Europe"},
        {"days": frozenset()},
        {"days": frozenset({0})},
        {"closed_yearly": frozenset({(2, 30)})},
        {"closed_yearly": frozenset({(13, 1)})},
        {"zone": ZoneInfo("UTC")},
        {"zone": None},
        {"opens": "08:00"},
        {"opens": 8},
        {"opens": time(8, tzinfo=UTC)},
        {"closes": "17:30"},
        {"closes": datetime(2026, 11, 22, 17, tzinfo=UTC)},
        {"closes": time(17, tzinfo=UTC)},
        {"closed": "2027-03-26"},
        {"closed": date(2027, 3, 26)},
        {"closed": ["2027-03-26"]},
        {"closed": [datetime(2027, 3, 26, tzinfo=UTC)]},
        {"closed": None},
        {"closed_yearly": "12-25"},
        {"closed_yearly": ["12-25"]},
        {"closed_yearly": [("12", "25")]},
        {"closed_yearly": [date(2027, 12, 25)]},
        {"closed_yearly": (12, 25)},
        {"closed_yearly": None},
    ],
    ids=str,
)
def test_calendar_refuses(changes: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"zone": "UTC", "days": frozenset({1}), "opens": time(9), "closes": time(17)}
    with pytest.raises(ConfigurationError, match=r"calendar|closed date") as caught:
        Calendar(**{**parts, **changes})
    assert type(caught.value) is ConfigurationError and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [["office"], "office", None, OFFICE, {"office": "UTC"}], ids=["list", "str", "None", "one", "zone"]
)
def test_what_are_no_calendars_by_name(given: Any) -> None:
    check_calendars(CALENDARS)
    with pytest.raises(ConfigurationError, match=r"calendars?( office)?: got .*, expected .*Calendar") as caught:
        check_calendars(given)
    assert type(caught.value) is ConfigurationError and "\n" not in str(caught.value)


# The same by a walk: every minute of a few days is looked at on the wall clock of the zone.


class Walk:
    """The wall clock of a zone, minute by minute, around one date."""

    def __init__(self, zone: str, middle: date) -> None:
        start = datetime(middle.year, middle.month, middle.day, tzinfo=UTC) - 3 * DAY
        # All of the hours that begin from two days before it to one day after it, wherever on earth.
        self.minutes = [start + n * MINUTE for n in range(7 * 24 * 60)]
        self.walls = [minute.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for minute in self.minutes]
        self.at: dict[datetime, list[datetime]] = {}
        for minute, wall in zip(self.minutes, self.walls, strict=True):
            self.at.setdefault(wall, []).append(minute)

    def readings(self, wall: datetime) -> list[datetime]:
        """The minutes at which the clock shows this; where it skips it, what they would be without the change."""
        if wall in self.at:
            return self.at[wall]
        jump = next(n for n, w in enumerate(self.walls) if w > wall)
        offsets = [self.walls[n] - self.minutes[n].replace(tzinfo=None) for n in (jump - 1, jump)]
        return [(wall - offset).replace(tzinfo=UTC) for offset in offsets]

    def hours(self, calendar: Calendar, day: date) -> tuple[datetime, datetime] | None:
        """Of one day: the latest reading of the opening, the earliest of the end."""
        if day.isoweekday() not in calendar.days or self.is_closed(calendar, day):
            return None
        last = day if calendar.closes > calendar.opens else day + DAY
        ends = self.readings(datetime.combine(last, calendar.closes))
        if self.is_closed(calendar, day + DAY):
            ends = ends + self.readings(datetime.combine(day + DAY, time(0)))
        return max(self.readings(datetime.combine(day, calendar.opens))), min(ends)

    @staticmethod
    def is_closed(calendar: Calendar, day: date) -> bool:
        return day in calendar.closed or any((day.month, day.day) == md for md in calendar.closed_yearly)

    def compare(self, calendar: Calendar, middle: date) -> Iterator[str]:
        all_hours = [hours for n in (-2, -1, 0, 1) if (hours := self.hours(calendar, middle + n * DAY))]
        noon = datetime(middle.year, middle.month, middle.day, 12, tzinfo=UTC)
        for now in (m for m in self.minutes[::7] if abs(m - noon) < timedelta(hours=20)):
            # Hours of two days may touch or overlap where they last 24 h: those of the later day are then the longer.
            expected = max((end for start, end in all_hours if start <= now < end), default=None)
            if calendar.open_until(now) != expected:
                yield f"{now}: {calendar.open_until(now)}, not {expected}"


# Dates at which clocks change, both ways and in both hemispheres, by an hour and by half of one, at night and at
# midnight itself; and quiet ones.
CHANGES = [
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("Pacific/Auckland", date(2026, 4, 5)),
    ("Pacific/Auckland", date(2026, 9, 27)),
    ("America/Santiago", date(2026, 4, 4)),
    ("America/Santiago", date(2026, 9, 6)),  # midnight does not exist
    ("Asia/Kathmandu", date(2026, 6, 15)),
    ("UTC", date(2024, 2, 29)),
]
WALKS: dict[tuple[str, date], Walk] = {}  # each is made when it is first asked for

HALF_HOURS = [time(h, m) for h in range(24) for m in (0, 30)]
calendar_parts = st.fixed_dictionaries(
    {
        "days": st.frozensets(st.integers(1, 7), min_size=4),
        "opens": st.sampled_from(HALF_HOURS) | st.times().map(lambda t: t.replace(second=0, microsecond=0)),
        "closes": st.sampled_from(HALF_HOURS),
        "closed": st.frozensets(st.integers(-2, 2), max_size=2),
        "yearly": st.booleans(),
    }
)


@pytest.mark.parametrize(("zone", "middle"), CHANGES, ids=str)
@settings(max_examples=6)
@given(parts=calendar_parts)
def test_calendars_are_what_a_walk_over_every_minute_finds(zone: str, middle: date, parts: dict[str, Any]) -> None:
    walk = WALKS.get((zone, middle)) or WALKS.setdefault((zone, middle), Walk(zone, middle))
    closed = frozenset(middle + n * DAY for n in parts["closed"])
    calendar = Calendar(
        zone=zone,
        days=parts["days"],
        opens=parts["opens"],
        closes=parts["closes"],
        closed=frozenset() if parts["yearly"] else closed,
        closed_yearly=frozenset((d.month, d.day) for d in closed) if parts["yearly"] else frozenset(),
    )
    assert list(walk.compare(calendar, middle)) == []


TOML = """
[[calendar]]
name = "business-hours"
zone = "Europe/Berlin"
days = ["mon", "tue", "wed", "thu", "fri"]
opens = "09:00"
closes = "17:30"

[[calendar]]
name = "nights"
zone = "Pacific/Auckland"
days = ["fri", "sun"]
opens = "22:00"
closes = "06:00"
closed = ["2027-03-26", "12-25", "02-29"]
"""


def test_calendars_are_declared_in_toml() -> None:
    assert calendars_of(tomllib.loads(TOML)["calendar"]) == {
        "business-hours": OFFICE,
        "nights": Calendar(
            zone="Pacific/Auckland",
            days=frozenset({5, 7}),
            opens=time(22),
            closes=time(6),
            closed=frozenset({date(2027, 3, 26)}),
            closed_yearly=frozenset({(12, 25), (2, 29)}),
        ),
    }
    assert calendars_of([]) == {}


TABLE: dict[str, Any] = {
    "name": "c",
    "zone": "UTC",
    "days": ["mon"],
    "opens": "09:00",
    "closes": "17:00",
    "closed": ["12-25"],
}

MISTAKES: dict[str, Any] = {
    "not a list": {"c": TABLE},
    "not a table": ["c"],
    "nothing": None,
    "a name twice": [TABLE, TABLE],
    "too many": [{**TABLE, "name": f"c{n}"} for n in range(MAX_CALENDARS + 1)],
    "no name": [{n: v for n, v in TABLE.items() if n != "name"}],
    "a name that is a number": [{**TABLE, "name": 1}],
    "a name that is a duration": [{**TABLE, "name": "30min"}],
    "a name with a space": [{**TABLE, "name": "c d"}],
    "a misspelt member": [{**TABLE, "close": ["12-26"]}],
    "no zone": [{n: v for n, v in TABLE.items() if n != "zone"}],
    "no such zone": [{**TABLE, "zone": "Mars/Olympus"}],
    "a zone that is a number": [{**TABLE, "zone": 1}],
    "no days": [{**TABLE, "days": []}],
    "a day in full": [{**TABLE, "days": ["monday"]}],
    "days that are numbers": [{**TABLE, "days": [1]}],
    "days that are lists": [{**TABLE, "days": [["mon"]]}],
    "a day, not a list": [{**TABLE, "days": "mon"}],
    "opens without minutes": [{**TABLE, "opens": "9"}],
    "opens at 24:00": [{**TABLE, "opens": "24:00"}],
    "opens with a zone": [{**TABLE, "opens": "09:00+01:00"}],
    "closes as a number": [{**TABLE, "closes": 17}],
    "closed is a text": [{**TABLE, "closed": "12-25"}],
    "closed on no such date": [{**TABLE, "closed": ["2027-02-29"]}],
    "closed on no such day of a year": [{**TABLE, "closed": ["02-30"]}],
    "closed on a week": [{**TABLE, "closed": ["2027-W01-1"]}],
    "closed by a TOML date": [{**TABLE, "closed": [date(2027, 3, 26)]}],
    "closed too often": [{**TABLE, "closed": ["12-25"] * (MAX_CLOSED + 1)}],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_calendar_is_told_in_one_line(mistake: str) -> None:
    assert len(calendars_of([TABLE])) == 1
    with pytest.raises(ConfigurationError) as caught:
        calendars_of(MISTAKES[mistake])
    assert type(caught.value) is ConfigurationError and "\n" not in str(caught.value)
