"""Time scopes: when a token may be used, by a duration or by the hours of a declared calendar.

`temporal:30min` (or `h`) ends that long after the root token was issued, `temporal:<name>` at the end of the hours that
the calendar of that name has now. The authorization server refuses outside of them and lets no token live longer; the
receiver of a token asks again at every request. One that is not understood denies.

    [[calendar]]
    name = "business-hours"
    zone = "Europe/Berlin"
    days = ["mon", "tue", "wed", "thu", "fri"]          # those on which the hours begin
    opens = "09:00"
    closes = "17:30"                                    # on the next day, where it is not later than `opens`
    closed = ["2027-03-26", "12-25"]                    # holidays: one date, or one of every year

Nothing here reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from zoneinfo import ZoneInfo

from trust.clock import utc
from trust.errors import ConfigurationError, InsufficientScope, must_be

TIME_PREFIX = "temporal:"

MAX_CALENDARS = 64  # of one file
MAX_CLOSED = 1024  # dates of one calendar: holidays of many years

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DURATION = re.compile(r"([1-9][0-9]{0,3})(min|h)")
_MINUTES = {"min": 1, "h": 60}
_LEAP_YEAR = 2000  # in which every date of a year exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Weekly hours in one time zone, such as business hours, apart from the dates that are closed.

    Local times that a clock change repeats or skips have two readings: the one that makes the hours shorter counts.

    Args:
        zone: an IANA time zone name, such as "Europe/Berlin".
        days: the days on which the hours begin, ISO numbers: 1 is Monday, 7 Sunday.
        opens, closes: local times; where `closes` is not after `opens` it is on the next day.
        closed: dates on which nothing is open, from midnight to midnight: hours of the day before end there.
        closed_yearly: the same for every year, as (month, day).

    Raises:
        ConfigurationError: no such zone, no days, no local time, no such date in any year, or another type.
    """

    zone: str
    days: Collection[int]
    opens: time
    closes: time
    closed: Collection[date] = frozenset()
    closed_yearly: Collection[tuple[int, int]] = frozenset()
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        days = tuple(self.days) if isinstance(self.days, Iterable) else ()
        if not days or not all(type(day) is int and 1 <= day <= 7 for day in days):
            raise ConfigurationError("calendar days", got=self.days, expected="numbers from 1 (Monday) to 7 (Sunday)")
        object.__setattr__(self, "days", frozenset(days))
        for name, local in (("opens", self.opens), ("closes", self.closes)):
            must_be(f"calendar {name}", local, time, expected="a datetime.time", do="write it as time(9, 30)")
            if local.tzinfo is not None:
                raise ConfigurationError(f"calendar {name}", got="a time with a zone", expected="a local time")
        object.__setattr__(self, "closed", _dates(self.closed))
        object.__setattr__(self, "closed_yearly", _yearly(self.closed_yearly))
        must_be("calendar zone", self.zone, str, expected="the name of an IANA time zone")
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.zone))
        except (KeyError, ValueError, OSError):  # unknown; a path outside the database; a folder of it
            raise ConfigurationError(
                "calendar zone", got=self.zone, expected="an IANA time zone", do="install tzdata where it is missing"
            ) from None

    def open_until(self, now: datetime) -> datetime | None:
        """When the hours that `now` is in will end, in UTC; None outside them."""
        today = utc(now).astimezone(self._zone).date()
        for day in (today, today - timedelta(days=1)):  # yesterday's hours may reach into today
            if day.isoweekday() in self.days and not self._is_closed(day):
                tomorrow = day + timedelta(days=1)
                opens = max(self._instants(datetime.combine(day, self.opens)))
                last = day if self.closes > self.opens else tomorrow
                ends = self._instants(datetime.combine(last, self.closes))
                if self._is_closed(tomorrow):
                    ends += self._instants(datetime.combine(tomorrow, time(0)))
                closes = min(ends)
                if opens <= now < closes:
                    return closes
        return None

    def _is_closed(self, day: date) -> bool:
        return day in self.closed or (day.month, day.day) in self.closed_yearly

    def _instants(self, local: datetime) -> list[datetime]:
        # In UTC, because datetimes of one zone compare by their wall time, whatever the clock changes between them.
        return [local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)]


def _dates(given: Collection[date]) -> frozenset[date]:
    must_be("calendar closed", given, Collection, expected="dates")
    for day in given:
        if type(day) is not date:  # a text or a datetime would equal no day, and nothing be closed
            raise ConfigurationError("calendar closed", got=repr(day), expected="dates, such as date(2027, 3, 26)")
    return frozenset(given)


def _yearly(given: Collection[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    must_be("calendar closed_yearly", given, Collection, expected="months and days, such as (12, 25)")
    found = set()
    for entry in given:
        try:
            month, day = entry
            date(_LEAP_YEAR, month, day)
        except (TypeError, ValueError):
            raise ConfigurationError("closed date", got=entry, expected="a month and a day of it") from None
        found.add((month, day))
    return frozenset(found)


def check_calendars(calendars: Mapping[str, Calendar]) -> None:
    """That these are calendars by name.

    Raises:
        ConfigurationError: they are not.
    """
    must_be("calendars", calendars, Mapping, expected='calendars by name, such as {"office": Calendar(...)}')
    for name, calendar in calendars.items():
        must_be(f"calendar {name}", calendar, Calendar, expected="a Calendar")


def calendars_of(tables: object) -> Mapping[str, Calendar]:
    """The calendars that `[[calendar]]` tables of a TOML file declare, by name, as in this module's docstring.

    Args:
        tables: what the parsed file has under `calendar`; an empty list for none.

    Raises:
        ConfigurationError: not such tables, unknown members, values as in `Calendar`, or a name twice.
    """
    if not isinstance(tables, list) or len(tables) > MAX_CALENDARS or not all(isinstance(t, dict) for t in tables):
        raise ConfigurationError("calendars", expected=f"at most {MAX_CALENDARS} [[calendar]] tables")
    found: dict[str, Calendar] = {}
    for number, table in enumerate(tables, 1):
        name = table.get("name", "")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or _DURATION.fullmatch(name):
            raise ConfigurationError(
                f"calendar {number}: name", got=name, expected="1-64 letters, digits, '-' and '_', and no duration"
            )
        if name in found:
            raise ConfigurationError(f"calendar {name} is declared twice", expected="each name once")
        try:
            found[name] = _calendar(table)
        except ConfigurationError as error:
            raise ConfigurationError(f"calendar {name}: {error}") from None
    return MappingProxyType(found)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MEMBERS = frozenset({"name", "zone", "days", "opens", "closes", "closed"})


def _calendar(table: Mapping[str, object]) -> Calendar:
    # A misspelt holiday list must not be one that silently is not there.
    if table.keys() - {"closed"} != _MEMBERS - {"closed"}:
        raise ConfigurationError(
            "members", got=", ".join(sorted(table)), expected=f"{', '.join(sorted(_MEMBERS))}; closed may be left out"
        )
    zone, days, closed = table["zone"], table["days"], table.get("closed", [])
    if not isinstance(zone, str):
        raise ConfigurationError("zone", got=zone, expected="an IANA time zone")
    if not isinstance(days, list) or not all(day in _DAYS for day in days):
        raise ConfigurationError("days", got=days, expected=f"some of {', '.join(_DAYS)}")
    if not isinstance(closed, list) or len(closed) > MAX_CLOSED:
        raise ConfigurationError("closed", expected=f"at most {MAX_CLOSED} dates")
    dates = [_closed(entry) for entry in closed]
    return Calendar(
        zone=zone,
        days=frozenset(_DAYS.index(day) + 1 for day in days),
        opens=_time("opens", table["opens"]),
        closes=_time("closes", table["closes"]),
        closed=frozenset(d for d in dates if isinstance(d, date)),
        closed_yearly=frozenset(d for d in dates if isinstance(d, tuple)),
    )


def _time(member: str, value: object) -> time:
    if isinstance(value, str) and re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", value):
        return time.fromisoformat(value)
    raise ConfigurationError(member, got=value, expected='a local time, such as "17:30"')


def _closed(value: object) -> date | tuple[int, int]:
    if isinstance(value, str):
        if re.fullmatch(r"[0-9]{2}-[0-9]{2}", value):
            return int(value[:2]), int(value[3:])
        try:
            if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
                return date.fromisoformat(value)
        except ValueError:  # no such day in that month
            pass
    raise ConfigurationError(
        "closed", got=value, expected='a date, such as "2027-03-26", or one of every year, "12-25"'
    )


def expiry_cap(
    scopes: Iterable[str], *, root_issued_at: datetime, now: datetime, calendars: Mapping[str, Calendar]
) -> datetime | None:
    """The latest time at which a token with these scopes may expire, or None where no time scope limits it.

    Args:
        root_issued_at: when the first token of the chain was issued, before any exchange.

    Raises:
        InsufficientScope: the time is over, outside the calendar, or a time scope is not understood.
    """
    caps = []
    for text in scopes:
        if not text.startswith(TIME_PREFIX):
            continue
        name = text.removeprefix(TIME_PREFIX)
        cap: datetime | None
        if duration := _DURATION.fullmatch(name):
            cap = utc(root_issued_at) + timedelta(minutes=int(duration[1]) * _MINUTES[duration[2]])
        elif name in calendars:
            cap = calendars[name].open_until(now)
        else:
            raise InsufficientScope("time scope is not understood", got=text, expected="a duration or a known calendar")
        if cap is None or cap <= utc(now):
            raise InsufficientScope("time scope does not allow this time", got=text, do="ask again when it does")
        caps.append(cap)
    return min(caps, default=None)


def unknown_calendars(scopes: Iterable[str], calendars: Collection[str]) -> list[str]:
    """The time scopes that are no duration and not the name of one of these calendars: nobody ever gets anything."""
    names = {text: text.removeprefix(TIME_PREFIX) for text in scopes if text.startswith(TIME_PREFIX)}
    return [text for text, name in names.items() if not _DURATION.fullmatch(name) and name not in calendars]


def time_allows(
    scopes: Iterable[str], *, issued_at: datetime, now: datetime, calendars: Mapping[str, Calendar]
) -> bool:
    """Whether the time scopes among `scopes` allow `now`: the resource's side of `expiry_cap`.

    Args:
        issued_at: `iat` of the token. That of the root token is known to the issuer, which has capped `exp` by it.
    """
    try:
        expiry_cap(scopes, root_issued_at=issued_at, now=now, calendars=calendars)
    except InsufficientScope:
        return False
    return True
