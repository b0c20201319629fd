from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.forge import NOW
from trust.errors import ConfigurationError
from trust.oauth.keys import SigningKey
from trust.oauth.server.signing_keys import (
    CLOCKS_DIFFER,
    PREPARED_BEFORE,
    PUBLISHED_AFTER,
    PUBLISHED_BEFORE,
    SIGNS,
    KeyAction,
    KeyRing,
    following,
    plan,
    published,
)
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState

SECOND = timedelta(seconds=1)


def record(number: int, state: KeyState, since: datetime) -> KeyRecord:
    return KeyRecord(number=number, kid=f"key-{number}", alg="ES256", state=state, since=since, pem=b"")


def taken(records: tuple[KeyRecord, ...], now: datetime) -> tuple[KeyRecord, ...]:
    """The records after all that is due, one step after the other, as a database would have them."""
    while due := [step for step in plan(records, now) if step.at <= now]:
        step = due[0]
        by_number = {r.number: r for r in records}
        if step.record is None:
            first = not any(r.state is KeyState.ACTIVE for r in records)
            made = record(following(records), KeyState.ACTIVE if first else KeyState.NEXT, now)
            by_number[made.number] = made
        elif step.action is KeyAction.ERASE:
            del by_number[step.record.number]
        elif step.action is KeyAction.REDATE:
            by_number[step.record.number] = replace(step.record, since=now)
        else:
            by_number = {
                n: replace(r, state=KeyState.RETIRED, since=now) if r.state is KeyState.ACTIVE else r
                for n, r in by_number.items()
            }
            by_number[step.record.number] = replace(step.record, state=KeyState.ACTIVE, since=now)
        records = tuple(by_number[n] for n in sorted(by_number))
    return records


def states(records: tuple[KeyRecord, ...]) -> dict[int, str]:
    return {r.number: r.state.value for r in records}


def test_the_life_of_the_first_two_keys() -> None:
    now, records = NOW, taken((), NOW)
    told: list[tuple[timedelta, dict[int, str]]] = []
    while len(told) < 5:
        told.append((now - NOW, states(records)))
        now = plan(records, now)[0].at
        assert states(taken(records, now - SECOND)) == told[-1][1]
        records = taken(records, now)
    assert told == [
        (timedelta(0), {1: "active"}),
        (SIGNS - PREPARED_BEFORE, {1: "active", 2: "next"}),
        (SIGNS, {1: "retired", 2: "active"}),
        (SIGNS + PUBLISHED_AFTER, {2: "active"}),
        (2 * SIGNS - PREPARED_BEFORE, {2: "active", 3: "next"}),
    ]


def test_a_key_that_was_made_early_signs_as_soon_as_every_validator_can_know_it() -> None:
    early = (record(1, KeyState.ACTIVE, NOW), record(2, KeyState.NEXT, NOW + timedelta(days=1)))
    at = NOW + timedelta(days=1) + PUBLISHED_BEFORE
    assert states(taken(early, at - SECOND)) == {1: "active", 2: "next"}
    assert states(taken(early, at)) == {1: "retired", 2: "active"}
    # An hour of what validators keep at most, five minutes until they ask again, and five in a cache on the way.
    assert timedelta(minutes=70) <= PUBLISHED_BEFORE < PREPARED_BEFORE


def test_after_months_of_standstill_the_next_key_is_published_before_it_signs() -> None:
    records = taken((record(1, KeyState.ACTIVE, NOW),), NOW + 10 * SIGNS)
    assert states(records) == {1: "active", 2: "next"}
    assert states(taken(records, NOW + 10 * SIGNS + PUBLISHED_BEFORE)) == {1: "retired", 2: "active"}


def test_a_ring_without_an_active_key_signs_with_what_there_is() -> None:
    assert states(taken((record(4, KeyState.NEXT, NOW),), NOW)) == {4: "active"}
    assert states(taken((record(4, KeyState.RETIRED, NOW),), NOW)) == {4: "retired", 5: "active"}


def test_what_a_clock_that_was_ahead_has_dated_counts_from_now() -> None:
    ahead = NOW + timedelta(days=365)
    records = (record(1, KeyState.RETIRED, ahead), record(2, KeyState.ACTIVE, ahead), record(3, KeyState.NEXT, ahead))
    set_back = taken(records, NOW)
    assert states(set_back) == {1: "retired", 2: "active", 3: "next"}
    assert {r.since for r in set_back} == {NOW}
    assert states(taken(set_back, NOW + PUBLISHED_BEFORE)) == {2: "retired", 3: "active"}
    # Machines that share a database need not agree to the second.
    slightly = (record(1, KeyState.ACTIVE, NOW + CLOCKS_DIFFER),)
    assert taken(slightly, NOW) == slightly


@pytest.mark.parametrize("jumps", [False, True], ids=["forward", "jumps"])
@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_clock_does_no_key_signs_before_it_was_published_nor_again(seed: int, jumps: bool) -> None:
    chance = random.Random(seed)
    now, records = NOW, taken((), NOW)
    first_seen, signed, left = {1: NOW}, {1: NOW}, dict[int, datetime]()
    for _ in range(400):
        now += timedelta(seconds=chance.choice((3, 600, 4000, 90_000, 400_000)))
        if jumps and chance.random() < 0.1:
            now -= timedelta(days=chance.choice((0.01, 1, 40, 400)))
        before, records = records, taken(records, now)
        shown = states(records)
        assert list(shown.values()).count("active") == 1
        assert list(shown.values()).count("next") <= 1
        for number, state in shown.items():
            first_seen.setdefault(number, now)
            if state == "active":
                assert number not in left, "a retired key signs again"
                if number not in signed and not jumps:
                    assert now - first_seen[number] >= PUBLISHED_BEFORE
                signed[number] = now
            if state == "retired":
                left.setdefault(number, now)
        for gone in states(before).keys() - shown.keys():
            assert states(before)[gone] == "retired"
            if not jumps:
                assert now - left[gone] >= PUBLISHED_AFTER
        assert max(shown) == max(signed) or shown[max(shown)] == "next"


def test_the_active_key_comes_first_in_the_jwks() -> None:
    found = [record(n, s, NOW) for n, s in enumerate((KeyState.RETIRED, KeyState.RETIRED, KeyState.ACTIVE), 1)]
    assert [r.number for r in published([*found, record(4, KeyState.NEXT, NOW)])] == [3, 4, 2, 1]


def test_a_ring_needs_a_key_and_shows_no_private_one() -> None:
    with pytest.raises(ConfigurationError, match="no key"):
        KeyRing.of([])
    keys = [SigningKey.generate(), SigningKey.generate()]
    ring = KeyRing.of(keys)
    assert ring.signing is keys[0]
    assert [k["kid"] for k in ring.jwks["keys"]] == [k.kid for k in keys]
    assert not any("d" in k for k in ring.jwks["keys"])
