"""The fuzzer's targets find what they are for: each row plants a mistake that a verifier has really had.

Without atheris, which only chooses the inputs better.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.targets import SEEDS, TARGETS, Difference, Verdict, jws_target, mutated
from trust.signing import algorithms, canonical, jws

INPUTS = 700  # a planted mistake is found among them many times over


def inputs(name: str) -> list[bytes]:
    chance = random.Random(7515)
    made = list(SEEDS[name])
    made += [mutated(name, chance.choice(made[: 4 * len(SEEDS[name])]), chance) for _ in range(INPUTS)]
    return made


def lenient_decode(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return jws_decode(b"".join(raw.split()))


jws_decode = jws.decode
PLANTED: dict[str, tuple[str, Any, str, Any]] = {
    "crit is not looked at (CVE-2026-32597)": ("jws", jws, "_check_members", lambda *_: None),
    "base64url with white space": ("jws", jws, "decode", lenient_decode),
    "any signature of the right length": ("jws", algorithms, "verify", lambda *_: None),
    "numbers as orjson writes them": ("canonical", canonical, "_may_differ", lambda _: False),
    "members in the order of UTF-8": ("canonical", canonical, "_utf16", str.encode),
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """Headers that were judged before a mistake was planted, or by it, are judged anew."""
    jws._header_of_compact.cache_clear()
    yield
    jws._header_of_compact.cache_clear()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, module, function, mistake = PLANTED[name]
    monkeypatch.setattr(module, function, mistake)
    with pytest.raises(Difference):
        for data in inputs(target):
            TARGETS[target](data, None)


def test_without_one_there_is_no_difference() -> None:
    for data in inputs("canonical"):
        TARGETS["canonical"](data, None)
    verdicts: Counter[type[Exception] | None] = Counter()
    for data in inputs("jws"):
        verdict = jws_target(data, None)
        assert isinstance(verdict, Verdict)
        verdicts[verdict.ours] += 1
    assert verdicts[None] > INPUTS // 20  # many are accepted, or nothing would be compared
    assert len(verdicts) >= 7  # and every step of the verifier refuses some
