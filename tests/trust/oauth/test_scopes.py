from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, time
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import ConfigurationError, ScopeMalformed
from trust.oauth.calendars import Calendar
from trust.oauth.scopes import (
    MAX_LIST_CHARACTERS,
    MAX_SCOPES,
    Catalogue,
    _covers,
    _overlaps,
    _parse_list,
    attenuates,
    broad,
    check_rules,
    covers,
    parse,
    parse_scope_list,
    satisfies,
    touches,
)

AGENT = Catalogue({"agent:admin": ["agent:execute"], "agent:execute": "agent:read agent:list"})
ISSUED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday
OFFICE = Calendar(zone="Europe/Berlin", days=frozenset({1, 2, 3, 4, 5}), opens=time(9), closes=time(17, 30))
CALENDARS = {"business-hours": OFFICE}


# The language of a pattern, by enumeration and regular expressions: nothing here reasons as `covers` does.
#
# The universe decides exactly. A pattern of n segments looks at the first n segments of a scope, and then at most at
# whether there are more: so two scopes that are longer than n and begin alike are the same to it, and length n + 1
# stands for all that are longer. Patterns name "a" and "b" only, so "c" stands for every other segment.

NAMES = ("a", "b", "c")


def concrete(most: int, heads: str) -> list[str]:
    """Every scope of at most `most` segments."""
    return [
        f"{head}:" + segments[0] + "".join(s + n for s, n in zip(separators, segments[1:], strict=True))
        for head in heads
        for count in range(1, most + 1)
        for segments in product(NAMES, repeat=count)
        for separators in product("./", repeat=count - 1)
    ]


def patterns(most: int, heads: str = "hk") -> list[str]:
    """Every pattern of at most `most` segments over "a", "b", "*" and a final "**"."""
    return [
        f"{head}:" + segments[0] + "".join(s + n for s, n in zip(separators, segments[1:], strict=True))
        for head in heads
        for count in range(1, most + 1)
        for segments in product(*[("a", "b", "*")] * (count - 1), ("a", "b", "*", "**"))
        for separators in product("./", repeat=count - 1)
    ]


def languages(of: list[str], most: int, heads: str = "hk") -> dict[str, int]:
    """Each pattern with the scopes that it matches, as the bits of an integer."""
    universe = concrete(most, heads)
    found = {}
    for pattern in of:
        regex = re.escape(pattern).replace(r"\*\*", r"[^./:]+(?:[./][^./:]+)*").replace(r"\*", "[^./:]+")
        matches = re.compile(regex).fullmatch
        found[pattern] = sum(1 << n for n, scope in enumerate(universe) if matches(scope))
    return found


def disagreements(most: int, heads: str = "hk") -> list[tuple[str, str]]:
    words = languages(patterns(most, heads), most + 1, heads)
    assert all(words.values()) and len(set(words.values())) == len(words)  # no two patterns say the same
    parsed = {pattern: parse(pattern) for pattern in words}
    return [
        (a, b)
        for (a, of_a), (b, of_b) in product(words.items(), repeat=2)
        if _covers(parsed[a], parsed[b]) is not (of_b & ~of_a == 0)
        or _overlaps(parsed[a], parsed[b]) is not (of_a & of_b != 0)
    ]


def test_covers_and_overlaps_are_containment_and_intersection_of_languages() -> None:
    """All pairs of the 344 patterns of up to three segments; containment, and so transitive."""
    assert len(patterns(3)) == 2 * (4 + 24 + 144)
    assert disagreements(3) == []


@pytest.mark.slow
def test_so_they_are_for_four_segments() -> None:
    assert len(patterns(4, "h")) == 4 + 24 + 144 + 864
    assert disagreements(4, "h") == []


def test_attenuates_and_satisfies_ask_covers_of_each_pair() -> None:
    words = languages(patterns(2), 3)
    for held, wanted in product(combinations(list(words)[::5], 2), repeat=2):
        inside = all(any(words[w] & ~words[h] == 0 for h in held) for w in wanted)
        assert attenuates(held, wanted) is inside, (held, wanted)
        assert satisfies(held, wanted, issued_at=ISSUED, now=ISSUED) is inside, (held, wanted)


def test_a_catalogue_holds_what_following_its_entries_finds() -> None:
    """Every catalogue of three entries that include nothing or one of six; by languages, until nothing is added."""
    entries = ("h:a", "h:b", "k:a.b")
    included = (None, "h:b", "h:*", "h:a.*", "k:a.*", "k:**", "k:b")
    asked = ("h:a", "h:b", "h:*", "k:a.b", "k:a.*", "k:b", "k:**", "h:a.a", "h:**")
    words = languages(sorted({*entries, *asked, *filter(None, included)}), 3)
    for choice in product(included, repeat=len(entries)):
        declared = {e: [i] for e, i in zip(entries, choice, strict=True) if i is not None}
        catalogue = Catalogue(declared)
        for granted in asked:
            held = {granted}
            while more := {i for e, (i,) in declared.items() if any(not words[e] & ~words[h] for h in held)} - held:
                held |= more
            for required in asked:
                expected = any(words[required] & ~words[h] == 0 for h in held)
                assert catalogue.covers(parse(granted), parse(required)) is expected, (declared, granted, required)


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


@pytest.mark.parametrize(
    ("rules", "scopes", "catalogue", "expected"),
    [
        (["pay:*"], ["pay:bills"], None, True),
        (["pay:bills"], ["read:x", "pay:*"], None, True),
        (["pay:bills"], ["pay:wages"], None, False),
        (["agent:list"], ["agent:admin"], AGENT, True),
        (["agent:list"], ["agent:admin"], None, False),
        (["agent:admin"], ["agent:list"], AGENT, False),
        ([], ["pay:bills"], AGENT, False),
        (["pay:**"], [], AGENT, False),
    ],
)
def test_touches(rules: list[str], scopes: list[str], catalogue: Catalogue | None, expected: bool) -> None:
    assert touches(rules, scopes, catalogue) is expected


@pytest.mark.parametrize("rule", ["openid", "", "temporal:20min", 7])
def test_what_is_no_scope_and_what_is_a_time_scope_are_no_rules(rule: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^approvals"):
        check_rules(["pay:*", rule], "approvals")
    check_rules(["pay:*"], "approvals")


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


@given(st.lists(st.text(alphabet='ab: "\u00e9', max_size=6), min_size=2, max_size=8))
def test_a_remembered_scope_list_is_what_it_is_read_as_anew(texts: list[str]) -> None:
    for text in [*texts, *texts]:  # in any order, known or not, refused before or not
        assert _outcome(parse_scope_list, text) == _outcome(_parse_list.__wrapped__, text)


def _outcome(read: Callable[[str], tuple[str, ...]], text: str) -> tuple[str, ...] | str:
    try:
        return read(text)
    except ScopeMalformed as error:
        return str(error)


def test_remembered_scope_lists_are_few_and_small() -> None:
    for number in range(400):
        parse_scope_list(f"r:{number}")
    before = _parse_list.cache_info().currsize
    for refused in ("r:refused  ", "x" * (MAX_LIST_CHARACTERS + 1), None, 1, ["r:a"]):
        with pytest.raises(ScopeMalformed):
            parse_scope_list(refused)  # type: ignore[arg-type]
    assert _parse_list.cache_info().currsize == before <= 256
    many = " ".join(f"r:{number:029}" for number in range(MAX_SCOPES))
    assert len(many) == MAX_LIST_CHARACTERS - 1
    assert sum(map(sys.getsizeof, (many, held := parse_scope_list(many), *held))) <= 16 << 10


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


WHY = {
    "read:**": "read:** is everything that begins with read:",
    "read:customers.**": "read:customers.** is everything below, at any depth",
    "read:customers.*": "read:customers.* is a wildcard: what is named like that tomorrow is granted today",
    "read:*.eu": "read:*.eu is a wildcard: what is named like that tomorrow is granted today",
    "delegate:*": "delegate:* is for every agent: whoever gets the token may act with it",
    "delegate:**": "delegate:** is for every agent: whoever gets the token may act with it",
    "invoke:**": "invoke:** is for every agent: the token is good for whoever it is sent to",
    "invoke:eu.*": "invoke:eu.* is a wildcard: what is named like that tomorrow is granted today",
    "agent:admin": "agent:admin is the top of the catalogue: it includes agent:execute agent:read agent:list",
}


@pytest.mark.parametrize("text", WHY)
def test_what_is_broad_says_why(text: str) -> None:
    assert broad(["read:customers", "agent:execute", text, "temporal:30min"], AGENT) == [WHY[text]]


def test_the_top_of_a_cycle_is_each_of_its_entries_and_one_that_includes_nothing_is_no_top() -> None:
    cycle = Catalogue({"a:x": ["a:y"], "a:y": ["a:x"], "b:alone": []})
    assert [line.split()[0] for line in broad("a:x a:y b:alone", cycle)] == ["a:x", "a:y"]
    assert broad("a:x b:alone") == []
    with pytest.raises(ScopeMalformed):
        broad(["openid"])
