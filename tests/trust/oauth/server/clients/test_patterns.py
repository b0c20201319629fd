from __future__ import annotations

from itertools import product

import pytest

from trust.errors import IdentityError
from trust.identity import AgentID
from trust.oauth.server.clients import AgentPattern

FLEET = "spiffe://fleet.example"


@pytest.mark.parametrize(
    ("pattern", "agent", "expected"),
    [
        (f"{FLEET}/workers/*", f"{FLEET}/workers/7", True),
        (f"{FLEET}/workers/*", f"{FLEET}/workers", False),
        (f"{FLEET}/workers/*", f"{FLEET}/workers/7/8", False),
        (f"{FLEET}/workers/*", f"{FLEET}/Workers/7", False),
        (f"{FLEET}/workers/*", f"{FLEET}/workers2/7", False),
        (f"{FLEET}/workers/*", "spiffe://fleet.example.evil/workers/7", False),
        (f"{FLEET}/workers/*", "spiffe://partner.example/workers/7", False),
        (f"{FLEET}/*/eu", f"{FLEET}/billing/eu", True),
        (f"{FLEET}/*/eu", f"{FLEET}/billing/us", False),
        (f"{FLEET}/workers/**", f"{FLEET}/workers/7", True),
        (f"{FLEET}/workers/**", f"{FLEET}/workers/7/8/9", True),
        (f"{FLEET}/workers/**", f"{FLEET}/workers", False),
        (f"{FLEET}/*/**", f"{FLEET}/a/b", True),
        (f"{FLEET}/*/**", f"{FLEET}/a", False),
        (f"{FLEET}/**", f"{FLEET}/a", True),
    ],
)
def test_whom_a_pattern_names(pattern: str, agent: str, expected: bool) -> None:
    parsed = AgentPattern.parse(pattern)
    assert str(parsed) == pattern
    assert parsed.matches(AgentID.parse(agent)) is expected
    assert parsed.matches(parsed.example)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "**",
        "spiffe://*",
        "spiffe://**",
        "spiffe://*/workers",
        "spiffe://*.example/workers/*",
        "spiffe://fleet.*/workers",
        f"{FLEET}/workers",
        f"{FLEET}/work*",
        f"{FLEET}/*ers",
        f"{FLEET}/**/workers",
        f"{FLEET}/***",
        f"{FLEET}/workers/**/*",
        f"{FLEET}/workers/../*",
        f"{FLEET}/./*",
        f"{FLEET}/workers//*",
        f"{FLEET}/workers/*/",
        f"{FLEET}/workers/%2a/*",
        f"{FLEET}/workers/*?x",
        f"{FLEET}:443/*",
        "spiffe://Fleet.example/*",
        "https://fleet.example/*",
        "SPIFFE://fleet.example/*",
        f"{FLEET}/" + "a/" * 1100 + "*",
        None,
    ],
    ids=repr,
)
def test_what_is_no_pattern(text: object) -> None:
    with pytest.raises(IdentityError) as caught:
        AgentPattern.parse(text)  # type: ignore[arg-type]
    assert type(caught.value) is IdentityError


def test_patterns_overlap_exactly_when_there_is_an_agent_that_both_name() -> None:
    """By trying all of them: every pattern of up to three segments, and every path of up to four."""
    words = ("a", "b", "*")
    bodies = [body for n in range(4) for body in product(words, repeat=n)]
    tails = [(*body, "**") for body in bodies if len(body) < 3]
    segments = [s for s in (*bodies, *tails) if any("*" in part for part in s)]
    patterns = [AgentPattern.parse(f"{FLEET}/{'/'.join(s)}") for s in segments]
    agents = [AgentID.parse(f"{FLEET}/{'/'.join(path)}") for n in range(1, 5) for path in product("abc", repeat=n)]
    names = [{agent.path for agent in agents if pattern.matches(agent)} for pattern in patterns]
    assert len(patterns) == 38
    for (one, named), (other, others) in product(zip(patterns, names, strict=True), repeat=2):
        assert one.overlaps(other) is bool(named & others), (str(one), str(other))
    elsewhere = AgentPattern.parse("spiffe://partner.example/**")
    assert not any(elsewhere.overlaps(pattern) for pattern in patterns)
