"""Signing keys that rotate in a running server: the real table, real encrypted keys, a clock that can be moved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.authority import BILLING, ISSUER, PLANNER, Authority, Clock, Trail, ask
from tests.forge import NOW
from trust import private_keys
from trust.errors import ConfigurationError, WrongPassword
from trust.oauth.keys import SigningKey, StaticKeys
from trust.oauth.server import create_app, rotation
from trust.oauth.server.rotation import RotatingKeys, begin_rotation, replace_all_keys
from trust.oauth.server.signing_keys import PREPARED_BEFORE, PUBLISHED_AFTER, PUBLISHED_BEFORE, SIGNS
from trust.oauth.server.store import Store
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState
from trust.oauth.tokens import TokenValidator

PASSWORD = b"correct horse"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "ROUND_SECONDS", 0.01)
    # A key at rest is made slow to guess; here it is opened many times.
    monkeypatch.setattr(private_keys, "SCRYPT_N", 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(f"sqlite:///{tmp_path / 'keys.db'}")) as store:
        yield store


def wait(until: Callable[[], object]) -> None:
    for _ in range(2000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened in 20 s")


def kids(keys: RotatingKeys) -> list[str]:
    return [key["kid"] for key in keys.current().jwks["keys"]]


def test_a_running_server_rotates_by_the_clock_and_every_token_stays_good(store: Store, tmp_path: Path) -> None:
    """Through a whole rotation, a validator that fetched the keys an hour before the change knows the new one."""
    authority = Authority(tmp_path)
    clock, trail = authority.clock, authority.trail
    authority.certificates[PLANNER] = authority.forge.leaf(PLANNER, not_after=NOW + timedelta(days=365))
    with RotatingKeys(store.signing_keys, PASSWORD, audit=trail, clock=clock) as keys:
        authority.app = create_app(
            issuer=ISSUER, clients=authority.clients, store=authority.store, keys=keys, audit=trail, clock=clock
        )
        form = ask(scope="agent:execute temporal:20min")

        def token() -> str:
            return asyncio.run(authority.token(PLANNER, form))

        def validated(token: str, jwks: object) -> None:
            assert isinstance(jwks, dict)
            validator = TokenValidator(issuer=ISSUER, audience=BILLING, keys=StaticKeys(jwks))
            validator.validate(token, peer=authority.peer(PLANNER), now=clock.now)

        first = keys.current()
        clock.now = NOW + SIGNS - PREPARED_BEFORE
        wait(lambda: len(kids(keys)) == 2)
        published = keys.current()
        assert published.signing is first.signing
        clock.now = NOW + SIGNS
        old = token()
        wait(lambda: keys.current().signing is not published.signing)
        new = token()
        for seen in (published.jwks, keys.current().jwks):  # what validators have kept, and what they get now
            validated(old, seen)
            validated(new, seen)
        clock.now += PUBLISHED_AFTER
        wait(lambda: len(kids(keys)) == 1)
        assert kids(keys)[0] != first.signing.kid
    assert [(r["state"], r["target"]) for r in trail.records if r["event"] == "signing key"] == [
        ("active", first.signing.kid),
        ("next", kids(keys)[0]),
        *sorted([("retired", first.signing.kid), ("active", kids(keys)[0])], key=lambda fact: fact[1]),
        ("erased", first.signing.kid),
    ]


def test_processes_over_one_database_have_the_same_keys(store: Store, tmp_path: Path) -> None:
    clock, trail = Clock(), Trail()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(Store(f"sqlite:///{tmp_path / 'keys.db'}")))
        rings = [
            stack.enter_context(RotatingKeys(s.signing_keys, PASSWORD, audit=trail, clock=clock))
            for s in (store, other)
        ]
        assert rings[0].current().signing.kid == rings[1].current().signing.kid
        clock.now = NOW + SIGNS - PREPARED_BEFORE
        wait(lambda: all(len(kids(ring)) == 2 for ring in rings))
        clock.now = NOW + SIGNS
        wait(lambda: kids(rings[0]) == kids(rings[1]) and rings[0].current().signing.kid != trail.records[0]["target"])
        assert len(store.signing_keys.all()) == 2  # each was made by one of the two
    assert len(trail.records) == 8  # and recorded by both


def test_the_ring_is_the_same_object_until_it_changes(store: Store) -> None:
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock()) as keys:
        ring = keys.current()
        looked = keys._table.all
        seen: list[object] = []

        def counted() -> tuple[KeyRecord, ...]:
            seen.append(None)
            return looked()

        keys._table.all = counted  # type: ignore[method-assign]
        wait(lambda: len(seen) > 2)
        assert keys.current() is ring


def test_a_clock_that_is_set_back_makes_no_retired_key_sign(store: Store) -> None:
    clock = Clock()
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=clock) as keys:
        first = keys.current().signing
        begin_rotation(store.signing_keys, PASSWORD, now=clock.now)
        clock.now = NOW + PUBLISHED_BEFORE
        wait(lambda: keys.current().signing.kid != first.kid)
        second = keys.current().signing
        clock.now = NOW - timedelta(days=100)
        wait(lambda: all(r.since <= clock.now for r in store.signing_keys.all()))
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=clock) as keys:
        assert keys.current().signing.kid == second.kid


def test_another_password_is_one_line_and_nothing_is_written(store: Store) -> None:
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock()):
        before = store.signing_keys.all()
    late = Clock(NOW + 5 * SIGNS)
    for given in (b"wrong", b""):
        with pytest.raises(WrongPassword, match="cannot be opened") as caught:
            RotatingKeys(store.signing_keys, given, audit=Trail(), clock=late)
        assert "\n" not in str(caught.value)
        with pytest.raises(WrongPassword):
            begin_rotation(store.signing_keys, given, now=late.now)
        with pytest.raises(WrongPassword):
            replace_all_keys(store.signing_keys, given, now=late.now)
    assert store.signing_keys.all() == before


@pytest.mark.parametrize("form", ["other password", "in the clear", "no key"])
def test_a_key_that_somebody_else_wrote_into_the_database_is_not_published(
    store: Store, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to the database, but does not know the password, signs nothing."""
    theirs = SigningKey.generate()
    pem = {
        "other password": theirs.to_pem(b"theirs"),
        "in the clear": private_keys.write(theirs.private_key, b"x") and _clear(theirs),
        "no key": b"nothing",
    }[form]
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock()) as keys:
        ring = keys.current()
        record = KeyRecord(number=2, kid=theirs.kid, alg="ES256", state=KeyState.NEXT, since=NOW, pem=pem)
        assert store.signing_keys.add(record)
        wait(lambda: keys.problem is not None)
        assert keys.current() is ring
        assert store.signing_keys.activate(2, now=NOW) and store.signing_keys.activate(1, now=NOW) is False
        time.sleep(0.1)
        assert keys.current() is ring
    assert "the last good ones stay in use" in caplog.text
    assert len([r for r in caplog.records if "last good" in r.message]) == 1
    with pytest.raises(ConfigurationError):
        RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock())


def _clear(key: SigningKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_database_that_is_away_leaves_the_keys_in_use(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock()) as keys:
        ring = keys.current()
        with sqlite3.connect(tmp_path / "keys.db") as database:
            database.execute("ALTER TABLE oauth_signing_keys RENAME TO away")
        wait(lambda: keys.problem == "OperationalError")
        assert keys.current() is ring
        database.execute("ALTER TABLE away RENAME TO oauth_signing_keys")
        database.close()
        wait(lambda: keys.problem is None)
    assert "readable again" in caplog.text


def test_an_operator_begins_a_rotation_and_chooses_the_algorithm(store: Store) -> None:
    clock, trail = Clock(), Trail()
    with RotatingKeys(store.signing_keys, PASSWORD, audit=trail, clock=clock) as keys:
        steps = begin_rotation(store.signing_keys, PASSWORD, now=NOW, alg="Ed25519")
        assert [(s.action.value, s.at) for s in steps] == [("activate", NOW + PUBLISHED_BEFORE)]
        assert begin_rotation(store.signing_keys, PASSWORD, now=NOW) == steps  # once
        with pytest.raises(ConfigurationError, match="expected ES384"):
            begin_rotation(store.signing_keys, PASSWORD, now=NOW, alg="ES384")
        clock.now = NOW + PUBLISHED_BEFORE
        wait(lambda: keys.current().signing.alg == "Ed25519")
        with pytest.raises(ConfigurationError, match="got HS256"):
            begin_rotation(store.signing_keys, PASSWORD, now=clock.now, alg="HS256")
        # The successor is of the same kind.
        clock.now += SIGNS - PREPARED_BEFORE
        wait(lambda: [r.alg for r in store.signing_keys.all()][-1:] == ["Ed25519"] and len(kids(keys)) == 2)


def test_keys_that_others_may_have_are_given_up_at_once(store: Store) -> None:
    trail = Trail()
    with RotatingKeys(store.signing_keys, PASSWORD, audit=trail, clock=Clock()) as keys:
        begin_rotation(store.signing_keys, PASSWORD, now=NOW)
        wait(lambda: len(kids(keys)) == 2)
        gone = kids(keys)
        new = replace_all_keys(store.signing_keys, PASSWORD, now=NOW, alg="ES384")
        wait(lambda: kids(keys) == [new.kid])
        assert keys.current().signing.alg == "ES384"
    assert [r["target"] for r in trail.records if r["state"] == "erased"] == sorted(gone)


def test_a_replacement_that_comes_second_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with RotatingKeys(store.signing_keys, PASSWORD, audit=Trail(), clock=Clock()):
        pass
    stale = store.signing_keys.all()
    begin_rotation(store.signing_keys, PASSWORD, now=NOW)
    before = store.signing_keys.all()
    monkeypatch.setattr(store.signing_keys, "all", lambda: stale)
    with pytest.raises(ConfigurationError, match="try again"):
        replace_all_keys(store.signing_keys, PASSWORD, now=NOW)
    monkeypatch.undo()
    assert store.signing_keys.all() == before


def test_no_key_and_no_password_in_trail_or_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    trail = Trail()
    with RotatingKeys(store.signing_keys, PASSWORD, audit=trail, clock=Clock()) as keys:
        begin_rotation(store.signing_keys, PASSWORD, now=NOW)
        wait(lambda: len(kids(keys)) == 2)
        told = f"{trail.records} {caplog.text} {keys!r} {keys.current()!r} {store.signing_keys.all()!r}"
    assert "PRIVATE" not in told
    assert PASSWORD.decode() not in told
    assert len(trail.records) == 2
