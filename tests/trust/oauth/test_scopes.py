from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import ConfigurationError, IdentityError, InsufficientScope, ScopeMalformed
from trust.oauth.scopes import (
    MAX_LIST_CHARACTERS,
    MAX_SCOPES,
    Calendar,
    Catalogue,
    attenuates,
    covers,
    expiry_cap,
    parse,
    parse_scope_list,
    satisfies,
    time_allows,
)

AGENT = Catalogue({"agent:admin": ["agent:execute"], "agent:execute": "agent:read agent:list"})
ISSUED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday
OFFICE = Calendar(zone="Europe/Berlin", days=frozenset({1, 2, 3, 4, 5}), opens=time(9), closes=time(17, 30))
CALENDARS = {"business-hours": OFFICE}


# The language of a pattern, by enumeration: independent of how `covers` reasons about it.

SEGMENTS = ("a", "fresh")  # patterns use only "a", so "fresh" stands for every segment that no pattern names
CONCRETE = [
    "h:" + segments[0] + "".join(s + n for s, n in zip(separators, segments[1:], strict=True))
    for count in range(1, 6)
    for segments in product(SEGMENTS, repeat=count)
    for separators in product("./", repeat=count - 1)
]


def language(pattern: str) -> frozenset[str]:
    regex = re.escape(pattern).replace(r"\*\*", r"[^./]+(?:[./][^./]+)*").replace(r"\*", "[^./]+")
    return frozenset(c for c in CONCRETE if re.fullmatch(regex, c))


def patterns(most: int) -> list[str]:
    """Every pattern of at most `most` segments over "a", "*" and a final "**"."""
    found = []
    for count in range(1, most + 1):
        for segments in product(("a", "*"), repeat=count - 1):
            for last in ("a", "*", "**"):
                for separators in product("./", repeat=count - 1):
                    tail = zip(separators, (*segments, last)[1:], strict=True)
                    found.append("h:" + (*segments, last)[0] + "".join(s + n for s, n in tail))
    return found


def test_covers_is_containment_of_languages() -> None:
    languages = {p: language(p) for p in patterns(3)}
    assert len(languages) == 3 + 12 + 48
    assert all(languages.values())
    wrong = [
        (a, b, expected)
        for (a, of_a), (b, of_b) in product(languages.items(), repeat=2)
        if covers(a, b) is not (expected := of_b <= of_a)
    ]
    assert wrong == []


segment = st.sampled_from(["a", "b", "*"])
scope = st.builds(
    lambda head, first, rest, tail: f"{head}:{first}{''.join(rest)}{tail}",
    st.sampled_from(["read", "write"]),
    segment,
    st.lists(st.builds("{}{}".format, st.sampled_from("./"), segment), max_size=4),
    st.sampled_from(["", ".**", "/**"]),
) | st.sampled_from(["read:**", "write:**"])


@given(scope, scope, scope)
def test_covers_is_an_order(a: str, b: str, c: str) -> None:
    assert covers(a, a)
    assert not (covers(a, b) and covers(b, c)) or covers(a, c)
    assert not (covers(a, b) and covers(b, a)) or a == b


@given(st.lists(scope, max_size=3), st.lists(scope, max_size=3), st.lists(scope, max_size=3))
def test_a_chain_of_attenuations_never_grows(a: list[str], b: list[str], c: list[str]) -> None:
    assert not (attenuates(a, b) and attenuates(b, c)) or attenuates(a, c)


@given(st.text(max_size=40) | st.from_regex(r"[a*]{1,3}:([a*]{1,3}[./]?){0,5}", fullmatch=True))
def test_parse_accepts_the_grammar_and_nothing_else(text: str) -> None:
    head, colon, path = text.partition(":")
    parts = re.split("[./]", path)
    named = [p for p in [head, *parts[:-1]] if re.fullmatch("[A-Za-z0-9_-]+", p)]
    good = (
        bool(colon)
        and head in named
        and len(named) + parts[:-1].count("*") == len(parts)
        and (parts[-1] in ("*", "**") or re.fullmatch("[A-Za-z0-9_-]+", parts[-1]) is not None)
    )
    if good:
        assert parse(text).text == text
    else:
        with pytest.raises(ScopeMalformed):
            parse(text)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("read:customers", "read:customers", True),
        ("read:customers", "read:customers.eu", False),  # no implicit prefix
        ("read:customers.eu", "read:customers", False),
        ("read:customers.*", "read:customers.eu", True),
        ("read:customers.*", "read:customers/eu", False),
        ("read:customers.*", "read:customers.eu.de", False),
        ("read:customers.**", "read:customers.eu.de", True),
        ("read:customers.**", "read:customers.eu/de", True),
        ("read:customers.**", "read:customers/eu", False),
        ("read:customers.**", "read:customers", False),
        ("read:**", "read:customers", True),
        ("read:**", "write:customers", False),
        ("read:*", "read:**", False),
        ("read:*.*", "read:*.**", False),
        ("read:*.**", "read:*.*", True),
        ("read:*.**", "read:**", False),
        ("read:Customers", "read:customers", False),
        ("temporal:30min", "temporal:30min", True),
        ("temporal:*", "temporal:30min", False),
        ("temporal:**", "temporal:business-hours", False),
    ],
)
def test_covers(a: str, b: str, expected: bool) -> None:
    assert covers(a, b) is expected


def test_long_scopes_are_compared_in_linear_time() -> None:
    many = ".".join(["*"] * 1000)
    assert covers(f"read:{many}.**", f"read:{many}.a.a")
    assert not covers(f"read:{many}.a.**", f"read:{many}.b.**")


@pytest.mark.parametrize(
    ("parent", "child", "expected"),
    [
        ("read:a write:b", "read:a", True),
        ("read:a write:b", ["write:b", "read:a"], True),
        (("read:*",), "read:a read:b", True),
        (iter(["read:*"]), iter(["read:*"]), True),
        ("read:a", "", True),
        ("read:a", [], True),
        ("", "read:a", False),
        ("read:a temporal:30min", "read:a temporal:30min", True),
        ("read:a", "read:a temporal:30min", True),
        ("agent:admin", "agent:list", True),
        ("agent:*", "agent:read", True),
    ],
)
def test_attenuates(parent: Any, child: Any, expected: bool) -> None:
    assert attenuates(parent, child, AGENT) is expected


def test_without_a_catalogue_there_is_no_hierarchy() -> None:
    assert not attenuates("agent:admin", "agent:read")


def test_a_catalogue_is_closed_through_wildcards_and_cycles() -> None:
    catalogue = Catalogue({"a:x": ["b:*"], "b:y": ["c:z.**"], "c:z.q": ["a:x"]})
    for holder in ("a:x", "b:y", "c:z.q", "a:*", "c:**"):
        for held in ("a:x", "b:anything", "c:z.deep.er"):
            assert attenuates(holder, held, catalogue), (holder, held)
    assert not attenuates("b:other", "c:z.q", catalogue)
    assert not attenuates("a:x", "c:other", catalogue)


@pytest.mark.parametrize(
    "includes",
    [
        {"agent:*": ["agent:read"]},
        {"agent:admin": ["temporal:30min"]},
        {"temporal:30min": ["agent:read"]},
        {"agent:admin": ["read"]},
        {"admin": ["agent:read"]},
    ],
)
def test_catalogue_refuses(includes: dict[str, list[str]]) -> None:
    with pytest.raises(ScopeMalformed):
        Catalogue(includes)


def test_parse_scope_list() -> None:
    assert parse_scope_list("") == ()
    assert parse_scope_list("read:a openid read:a write:b") == ("read:a", "openid", "write:b")
    assert len(parse_scope_list(" ".join(f"r:{n}" for n in range(MAX_SCOPES)))) == MAX_SCOPES
    assert parse_scope_list("x" * MAX_LIST_CHARACTERS) == ("x" * MAX_LIST_CHARACTERS,)


@given(st.text(max_size=60))
def test_parse_scope_list_never_fails_otherwise(text: str) -> None:
    try:
        scopes = parse_scope_list(text)
    except ScopeMalformed:
        return
    assert all(re.fullmatch(r"[!#-\[\]-~]+", s) for s in scopes)
    assert set(scopes) == set(filter(None, text.split(" ")))


def may(granted: str, required: Any, **changes: Any) -> bool:
    context: dict[str, Any] = {"issued_at": ISSUED, "now": ISSUED, "calendars": CALENDARS, **changes}
    return satisfies(granted.split(), required, AGENT, **context)


@pytest.mark.parametrize(
    ("granted", "required", "expected"),
    [
        ("agent:admin", "agent:read", True),
        ("agent:read", "agent:admin", False),
        ("agent:read report:*", "agent:read report:q3", True),
        ("agent:read", "agent:read report:q3", False),
        ("agent:read report:q3", ["report:q3"], True),
        ("openid profile agent:read", "agent:read", True),  # other scopes of the issuer stand beside ours
        ("openid", "agent:read", False),
        ("", "agent:read", False),
        ("agent:read temporal:30min temporal:business-hours", "agent:read", True),
        ("agent:read temporal:lunch", "agent:read", False),
        ("agent:read temporal:", "agent:read", False),
        ("agent:read temporal:*", "agent:read", False),
    ],
)
def test_satisfies(granted: str, required: Any, expected: bool) -> None:
    assert may(granted, required) is expected


def test_one_question_of_several_catalogues_has_several_answers() -> None:
    """Answers are remembered: with a catalogue, without one, with another."""
    for catalogue, expected in (
        (AGENT, True),
        (None, False),
        (Catalogue({"agent:x": "agent:y"}), False),
        (AGENT, True),
    ):
        assert satisfies(["agent:admin"], "agent:list", catalogue, issued_at=ISSUED, now=ISSUED) is expected


def test_satisfies_needs_no_catalogue_and_no_calendars() -> None:
    assert satisfies(iter(["agent:read"]), "agent:read", issued_at=ISSUED, now=ISSUED)


@pytest.mark.parametrize("required", ["", [], "agent", "agent:read temporal:30min"])
def test_a_requirement_that_is_none_is_a_mistake(required: Any) -> None:
    with pytest.raises(ScopeMalformed):
        may("agent:read", required)


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
    ],
)
def test_calendar(calendar: Calendar, now: str, until: str | None) -> None:
    assert calendar.open_until(at(now)) == (at(until) if until else None)
    cap = {"scopes": ["temporal:c"], "now": at(now), "calendars": {"c": calendar}}
    assert time_allows(issued_at=at(now), **cap) is (until is not None)


@pytest.mark.parametrize(
    "changes", [{"zone": "Mars/Olympus"}, {"zone": "../etc/passwd"}, {"days": frozenset()}, {"days": frozenset({0})}]
)
def test_calendar_refuses(changes: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"zone": "UTC", "days": frozenset({1}), "opens": time(9), "closes": time(17)}
    with pytest.raises(ConfigurationError):
        Calendar(**{**parts, **changes})
