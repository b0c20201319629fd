"""What a token may do: scopes with wildcards, a declared hierarchy, and time scopes.

    scope = head ":" ( "**" / seg *(sep seg) [sep "**"] )      head = 1*(ALPHA / DIGIT / "_" / "-")
    seg   = head / "*"                                         sep  = "." / "/"

`*` is exactly one segment; a final `**` is one or more segments with either separator between them. There is no
implicit prefix: `read:customers` says nothing about `read:customers.eu`. The head is never a wildcard, case counts.

`temporal:...` is a time scope: a caveat that takes authority away. It is compared as a whole, so that no wildcard and
no hierarchy ever matches it; a child token carries at least its parent's; one that is not understood denies.

Nothing here reads a clock, and all work is linear in the length of the scopes compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from zoneinfo import ZoneInfo

from trust.clock import utc
from trust.errors import ConfigurationError, InsufficientScope, ScopeMalformed

MAX_SCOPES = 128  # of one list: a token for more skills than that should hold a wildcard
MAX_LIST_CHARACTERS = 4096  # a scope list travels inside a token, and that inside one 8 KiB header line

TIME_PREFIX = "temporal:"

_NAME = "[A-Za-z0-9_-]+"
_SEGMENT = rf"(?:{_NAME}|\*)"
_SCOPE = re.compile(rf"{_NAME}:(?:\*\*|{_SEGMENT}(?:[./]{_SEGMENT})*(?:[./]\*\*)?)")
_SCOPE_TOKENS = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749 section 3.3
_DURATION = re.compile(r"([1-9][0-9]{0,3})(min|h)")
_MINUTES = {"min": 1, "h": 60}


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope of the grammar above; `parse` is the only door."""

    text: str
    head: str
    # Each segment with the separator before it; the first one's is "". The `**` of a tail is the last of them.
    segments: tuple[tuple[str, str], ...]

    @property
    def is_time(self) -> bool:
        return self.text.startswith(TIME_PREFIX)

    @property
    def has_wildcard(self) -> bool:
        return "*" in self.text


def parse(text: str) -> Scope:
    """Parse one scope.

    Raises:
        ScopeMalformed: (a ValueError) the text is not a scope of the grammar.
    """
    if not isinstance(text, str):
        raise ScopeMalformed("scope", got=type(text).__name__, expected="a str")
    if len(text) > MAX_LIST_CHARACTERS:
        raise ScopeMalformed("scope too long", got=f"{len(text)} characters", expected=f"<= {MAX_LIST_CHARACTERS}")
    scope = _parse(text)
    if scope is None:
        raise ScopeMalformed("scope", got=repr(text), expected="verb:segment[.segment...], '*' or a final '**'")
    return scope


@lru_cache(maxsize=1024)  # the same few scopes are asked for again with every request
def _parse(text: str) -> Scope | None:
    if not _SCOPE.fullmatch(text):
        return None
    head, _, path = text.partition(":")
    parts = re.split("([./])", path)
    return Scope(text, head, tuple(zip(["", *parts[1::2]], parts[0::2], strict=True)))


def parse_scope_list(text: str) -> tuple[str, ...]:
    """Split a space-delimited scope list (RFC 6749 section 3.3) into its scopes, in order, each once.

    Checks the characters, the count and the length, not the grammar of each scope: servers put scopes of their own
    (`openid`) beside ours. The empty text is no scopes.

    Raises:
        ScopeMalformed: other characters, doubled or outer spaces, too many scopes, too long.
    """
    if not isinstance(text, str):
        raise ScopeMalformed("scope list", got=type(text).__name__, expected="a space-delimited str")
    if len(text) > MAX_LIST_CHARACTERS:
        raise ScopeMalformed("scope list too long", got=f"{len(text)} characters", expected=f"<= {MAX_LIST_CHARACTERS}")
    if not text:
        return ()
    if not _SCOPE_TOKENS.fullmatch(text):
        raise ScopeMalformed("scope list", got=repr(text), expected="scope tokens with one space between them")
    if text.count(" ") >= MAX_SCOPES:
        raise ScopeMalformed("too many scopes", got=text.count(" ") + 1, expected=f"<= {MAX_SCOPES}")
    return tuple(dict.fromkeys(text.split(" ")))


def covers(a: str, b: str) -> bool:
    """Whether every scope that `b` matches is matched by `a`: exact containment of the two languages.

    Raises:
        ScopeMalformed: one of them is not a scope.
    """
    return _covers(parse(a), parse(b))


def _covers(a: Scope, b: Scope) -> bool:
    if a.is_time or b.is_time:
        return a.text == b.text
    if a.head != b.head:
        return False
    has_tail = a.segments[-1][1] == "**"
    fixed = a.segments[:-1] if has_tail else a.segments
    # A `**` in b stands for arbitrarily many segments, beginning with one at its own place. So it is within a only
    # if a has a tail that starts there or before: where b's `**` meets a fixed segment of a, even `*`, it is not.
    if len(b.segments) < len(a.segments) or (not has_tail and len(b.segments) > len(a.segments)):
        return False
    for (separator, segment), (b_separator, b_segment) in zip(fixed, b.segments, strict=False):
        if separator != b_separator or b_segment == "**" or segment not in ("*", b_segment):
            return False
    return not has_tail or a.segments[-1][0] == b.segments[len(fixed)][0]


def attenuates(parent: str | Iterable[str], child: str | Iterable[str], catalogue: Catalogue | None = None) -> bool:
    """Whether a token with the scopes `child` may be made from one with the scopes `parent`.

    It may when the child carries each time scope of the parent (it may add others), and each other scope of the
    child is covered by one of the parent's, directly or through the catalogue. A child without scopes may nothing,
    and so is allowed.

    Args:
        parent, child: a space-delimited list, or the scopes one by one.

    Raises:
        ScopeMalformed: one of them holds something that is not a scope.
    """
    catalogue = catalogue or _EMPTY
    held, wanted = [[parse(s) for s in _scopes(scopes)] for scopes in (parent, child)]
    if not {s.text for s in held if s.is_time} <= {s.text for s in wanted if s.is_time}:
        return False
    return all(any(catalogue.covers(h, w) for h in held) for w in wanted if not w.is_time)


def satisfies(
    granted: Iterable[str],
    required: str | Iterable[str],
    catalogue: Catalogue | None = None,
    *,
    issued_at: datetime,
    now: datetime,
    calendars: Mapping[str, Calendar] = MappingProxyType({}),
) -> bool:
    """Whether a token that holds `granted` may do what needs all of `required`, at this time.

    Args:
        granted: the scopes of a validated token. One that is not of our grammar (`openid`) grants nothing.
        required: one scope, several space-delimited, or the scopes one by one.
        issued_at: when the token was issued (`iat`).
        calendars: what the named time scopes mean here, by name.

    Raises:
        ScopeMalformed: `required` is empty or holds something that is not a scope; a mistake of the configuration.
    """
    granted = tuple(granted)
    if not _held(granted, required if isinstance(required, str) else _scopes(required), catalogue or _EMPTY):
        return False
    return time_allows(granted, issued_at=issued_at, now=now, calendars=calendars)


@lru_cache(maxsize=1024)  # the same few questions are asked with every request
def _held(granted: tuple[str, ...], required: str | tuple[str, ...], catalogue: Catalogue) -> bool:
    """`satisfies`, at any time."""
    wanted = [parse(s) for s in _scopes(required)]
    if not wanted or any(w.is_time for w in wanted):
        raise ScopeMalformed("required scope", got=required, expected="at least one scope, no time scopes")
    held = [scope for text in granted if (scope := _parse(text)) is not None]
    return all(any(catalogue.covers(h, w) for h in held) for w in wanted)


class Catalogue:
    """A declared hierarchy of scopes that their names do not show: `agent:admin` includes `agent:execute`.

    Closed transitively, cycles and wildcards included: whoever holds a scope that covers an entry holds all that the
    entry includes.

    Args:
        includes: each concrete scope (no wildcard) with the scopes that it includes.

    Raises:
        ScopeMalformed: an entry is no scope, has a wildcard, or a time scope occurs.
    """

    __slots__ = ("_closed",)

    def __init__(self, includes: Mapping[str, Iterable[str]]) -> None:
        declared = {parse(entry): tuple(parse(s) for s in _scopes(included)) for entry, included in includes.items()}
        for entry, included in declared.items():
            if entry.has_wildcard or any(s.is_time for s in (entry, *included)):
                raise ScopeMalformed(
                    "scope catalogue", got=entry.text, expected="entries without wildcards, and no time scopes"
                )
        self._closed = {entry: _closure(entry, declared) for entry in declared}

    def covers(self, granted: Scope, required: Scope) -> bool:
        """As the function `covers`, with the hierarchy."""
        if _covers(granted, required):
            return True
        return any(
            _covers(granted, entry) and any(_covers(s, required) for s in included)
            for entry, included in self._closed.items()
        )


def _closure(start: Scope, declared: Mapping[Scope, tuple[Scope, ...]]) -> tuple[Scope, ...]:
    reached = {start: None}  # a dict, for its order
    waiting = [start]
    while waiting:
        scope = waiting.pop()
        for entry, included in declared.items():
            if _covers(scope, entry):
                new = [s for s in included if s not in reached]
                reached.update(dict.fromkeys(new))
                waiting.extend(new)
    return tuple(reached)


_EMPTY = Catalogue({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Weekly hours in one time zone, such as business hours. Public holidays are not known.

    Args:
        zone: an IANA time zone name, such as "Europe/Berlin".
        days: the days on which the hours begin, ISO numbers: 1 is Monday, 7 Sunday.
        opens, closes: local times; where `closes` is not after `opens` it is on the next day.

    Raises:
        ConfigurationError: no such zone, or no days.
    """

    zone: str
    days: frozenset[int]
    opens: time
    closes: time
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.days or not self.days <= set(range(1, 8)):
            raise ConfigurationError("calendar days", got=sorted(self.days), expected="1 (Monday) to 7 (Sunday)")
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
            if day.isoweekday() in self.days:
                last = day if self.closes > self.opens else day + timedelta(days=1)
                # Local times that a clock change repeats or skips have two readings; the narrower hours count.
                opens = max(self._instants(datetime.combine(day, self.opens)))
                closes = min(self._instants(datetime.combine(last, self.closes)))
                if opens <= now < closes:
                    return closes
        return None

    def _instants(self, local: datetime) -> list[datetime]:
        # In UTC, because datetimes of one zone compare by their wall time, whatever the clock changes between them.
        return [local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)]


def expiry_cap(
    scopes: Iterable[str], *, root_issued_at: datetime, now: datetime, calendars: Mapping[str, Calendar]
) -> datetime | None:
    """The latest time at which a token with these scopes may expire, or None where no time scope limits it.

    `temporal:30min` (or `h`) ends that long after the root token was issued; `temporal:<name>` at the end of the
    hours of that calendar.

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


def _scopes(scopes: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(scopes, str):
        return parse_scope_list(scopes)
    listed = list(islice(scopes, MAX_SCOPES + 1))
    if len(listed) > MAX_SCOPES or not all(isinstance(scope, str) for scope in listed):
        raise ScopeMalformed("scopes", expected=f"at most {MAX_SCOPES}, each a str")
    return tuple(dict.fromkeys(listed))
