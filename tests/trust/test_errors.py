"""The error tree: its drawing is true, each refusal can be told from the others, and messages stay on their line."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest

import trust.errors
from trust.errors import (
    ConfigurationError,
    Fault,
    InsufficientScope,
    TokenRequestRefused,
    TrustError,
    must_be,
    must_have,
)

CLASSES = {
    name: value
    for name, value in vars(trust.errors).items()
    if isinstance(value, type) and issubclass(value, TrustError)
}
OURS = {name: c for name, c in CLASSES.items() if c.__module__.startswith("trust.errors")}
LEAVES = {name: c for name, c in CLASSES.items() if not c.__subclasses__() or name not in OURS}


def drawn() -> list[tuple[str, str | None, str]]:
    """(class, parent, the rest of its line) for every name in the tree of the docstring."""
    found: list[tuple[str, str | None, str]] = []
    last_at: dict[int, str] = {}
    assert trust.errors.__doc__
    for line in trust.errors.__doc__.splitlines():
        line = line.removeprefix("    ")
        if line.startswith("TrustError"):
            found.append(("TrustError", None, line))
            last_at[0] = "TrustError"
            continue
        branches = list(re.finditer(r"[|`]- ([A-Z]\w+(?:, [A-Z]\w+)*)", line))
        if not branches or not last_at:
            continue
        # Three columns a level; a second branch on a line hangs from the first.
        level = branches[0].start() // 3 + 1
        for depth, branch in enumerate(branches, start=level):
            names = branch.group(1).split(", ")
            found.extend((name, last_at[depth - 1], line) for name in names)
            last_at[depth] = names[-1]
    return found


def test_every_class_is_drawn_once() -> None:
    names = [name for name, _, _ in drawn()]
    assert sorted(names) == sorted(CLASSES)


@pytest.mark.parametrize(("name", "parent", "line"), drawn())
def test_the_drawing_is_true(name: str, parent: str | None, line: str) -> None:
    expected = CLASSES[parent] if parent else Exception
    assert CLASSES[name].__bases__[0] is expected
    assert ("(also a ValueError)" in line) == issubclass(CLASSES[name], ValueError)


def test_every_leaf_names_a_check_of_its_own() -> None:
    checks = [c.__dict__.get("check") for c in LEAVES.values()]
    assert None not in checks
    everywhere = [c.__dict__["check"] for c in CLASSES.values() if "check" in c.__dict__]
    assert len(set(everywhere)) == len(everywhere)


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_wire_learns(name: str) -> None:
    error = CLASSES[name]
    assert isinstance(error.fault, Fault)
    assert 400 <= error.status <= 599
    assert re.fullmatch(r"[a-z_]*", error.code)
    assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", error.check)


def test_the_message_says_what_was_found_what_is_right_and_what_to_do() -> None:
    assert str(TrustError("it failed")) == "it failed"
    assert str(TrustError("it failed", got=7)) == "it failed: got 7"
    assert str(TrustError("it failed", expected="8")) == "it failed: expected 8"
    assert str(TrustError("it failed", got="", expected="8", do="try 8")) == "it failed: got , expected 8; try 8"
    assert TrustError("it failed", got=7).failed == "it failed"


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u200b", "\ud800"]
)
@pytest.mark.parametrize("part", ["failed", "got", "expected", "do"])
def test_no_part_of_a_message_forges_a_log_line(character: str, part: str) -> None:
    parts: dict[str, Any] = {"failed": "it failed", part: f"a{character}b"}
    message = str(TrustError(parts.pop("failed"), **parts))
    assert character not in message
    assert message.isprintable()
    assert f"a\\x{ord(character):02x}b" in message


def test_what_an_attacker_sent_is_cut_short() -> None:
    message = str(TrustError("it failed", got="x" * 1_000_000))
    assert message == "it failed: got " + "x" * 200 + "..."


def test_details_that_the_edge_needs() -> None:
    scope = InsufficientScope("too little", required="agent:execute agent:read", got="nothing")
    assert scope.required == "agent:execute agent:read"
    assert str(scope) == "too little: got nothing"
    refused = TokenRequestRefused("no", error="invalid_scope", expected="another scope")
    assert refused.error == "invalid_scope"
    assert str(refused) == "no: expected another scope"


@pytest.mark.parametrize("name", CLASSES)
def test_errors_cross_process_borders(name: str) -> None:
    error = CLASSES[name]("it failed", got="x", expected="y")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


FITTING: list[tuple[Any, type | str]] = [
    ("", str),
    ([], Collection),
    ({}, Mapping),
    ({}, "get"),
    (len, "__call__"),
]
MISTAKEN: list[tuple[Any, type | str, str]] = [
    (None, str, "a value of type NoneType"),
    (b"", str, "a value of type bytes"),
    ("ab", Collection, "a value of type str"),
    ([], Mapping, "a value of type list"),
    ("secret", "find", "a value of type str"),
    ([], "get", "a value of type list"),
    (dict, "get", "the class dict"),
    (dict, Mapping, "the class dict"),
]


def check(given: Any, kind: type | str, **words: str) -> None:
    if isinstance(kind, str):
        must_have("it", given, kind, **words)
    else:
        must_be("it", given, kind, **words)


@pytest.mark.parametrize(("given", "kind"), FITTING, ids=repr)
def test_an_argument_that_is_what_it_must_be(given: Any, kind: type | str) -> None:
    check(given, kind, expected="another")


@pytest.mark.parametrize(("given", "kind", "got"), MISTAKEN, ids=repr)
def test_an_argument_that_is_not_is_told_by_its_type_alone(given: Any, kind: type | str, got: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(given, kind, expected="another", do="give another")
    assert type(caught.value) is ConfigurationError
    assert str(caught.value) == f"it: got {got}, expected another; give another"
