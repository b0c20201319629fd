"""Which key signs tokens, which are published, and when that changes. Pure: records and the time in, steps out.

- NEXT: published and signs nothing, so that every validator knows it before the first token that it signs.
- ACTIVE: signs; there is one.
- RETIRED: published until the last token that it signed has ended; then it is erased.

A key signs for 30 days, and its successor is published for the last of them. A next key that was made before that is
wanted now (`a2a-trust authority rotate`, or an operator who lost trust in the old one): it signs as soon as every
validator can know it, whichever process goes on with it.

All goes by the wall clock, which may be wrong now and then. No step leads back, so a clock that is set back never makes
a retired key sign again. What is dated later than now came from a clock that was ahead: it counts from now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trust.errors import ConfigurationError
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.keys.remote import FRESH, USABLE
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState
from trust.oauth.tokens import MAX_LIFETIME

SIGNS = timedelta(days=30)
JWKS_CACHED = timedelta(minutes=5)  # by caches on the way, as the answer's Cache-Control allows
# Validators ask again after five minutes, and go on for an hour with what they have where they get no answer.
PUBLISHED_BEFORE = USABLE + FRESH + JWKS_CACHED
PREPARED_BEFORE = timedelta(days=1)  # on the schedule; longer than it needs, for validators that others wrote
# Beyond a token's longest life: clocks that differ, and a process that has not seen yet that the key is retired.
PUBLISHED_AFTER = MAX_LIFETIME + timedelta(minutes=5)
CLOCKS_DIFFER = timedelta(minutes=5)  # between the machines that share a database; more is a clock that is wrong

KINDS: Mapping[str, str] = {"ES256": "P-256", "ES384": "P-384", "Ed25519": "Ed25519"}  # of keys, by algorithm


class KeyAction(StrEnum):
    MAKE = "make"
    ACTIVATE = "activate"
    REDATE = "redate"
    ERASE = "erase"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStep:
    """Something that is to be done to one key."""

    at: datetime  # from then on; what is before now is due
    action: KeyAction
    record: KeyRecord | None  # None: the key that will be made
    says: str  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """The key that signs, and what is published. Also a `Source` of itself, for keys that never change."""

    signing: SigningKey
    jwks: Mapping[str, Any]
    verifying: StaticKeys

    @classmethod
    def of(cls, keys: Sequence[SigningKey]) -> KeyRing:
        """The first one signs; all are published.

        Raises:
            ConfigurationError: there is none.
        """
        if not keys:
            raise ConfigurationError("authorization server has no key", expected="at least one signing key")
        jwks = public_jwks(keys)
        return cls(signing=keys[0], jwks=jwks, verifying=StaticKeys(jwks))

    def current(self) -> KeyRing:
        return self


def plan(records: Iterable[KeyRecord], now: datetime) -> tuple[KeyStep, ...]:
    """What happens to these keys and when, as far as it can be told now: earliest first, what is due included."""
    found = sorted(records, key=lambda record: record.number)
    ahead = [record for record in found if record.since > now + CLOCKS_DIFFER]
    if ahead:  # nothing else can be told from such times
        says = "was dated by a clock that was ahead"
        return tuple(_step(now, KeyAction.REDATE, record, says) for record in ahead)
    active, coming = _newest(found, KeyState.ACTIVE), _newest(found, KeyState.NEXT)
    steps = [
        _step(record.since + PUBLISHED_AFTER, KeyAction.ERASE, record, "is erased: no token of it is valid any more")
        for record in found
        if record.state is KeyState.RETIRED
    ]
    if coming is not None:
        at = coming.since + PUBLISHED_BEFORE
        if active is None:
            at = now  # nothing can be signed, so there is nothing to break
        elif coming.since >= _prepare_at(active):
            at = max(at, active.since + SIGNS)
        steps.append(_step(at, KeyAction.ACTIVATE, coming, "signs, and the active one is retired"))
    else:
        at = now if active is None else _prepare_at(active)
        says = "the first key is made, and signs" if active is None else "the next key is made and published"
        steps.append(KeyStep(at=at, action=KeyAction.MAKE, record=None, says=says))
    return tuple(sorted(steps, key=lambda step: step.at))


def published(records: Iterable[KeyRecord]) -> list[KeyRecord]:
    """In the order of a JWKS: the active one, the next one, then retired ones, newest first."""
    order = (KeyState.ACTIVE, KeyState.NEXT, KeyState.RETIRED)
    return sorted(records, key=lambda record: (order.index(record.state), -record.number))


def following(records: Iterable[KeyRecord]) -> int:
    """The number of the key that is made next."""
    return max((record.number for record in records), default=0) + 1


def _prepare_at(active: KeyRecord) -> datetime:
    return active.since + SIGNS - PREPARED_BEFORE


def _newest(records: Iterable[KeyRecord], state: KeyState) -> KeyRecord | None:
    return max((r for r in records if r.state is state), key=lambda record: record.number, default=None)


def _step(at: datetime, action: KeyAction, record: KeyRecord, says: str) -> KeyStep:
    return KeyStep(at=at, action=action, record=record, says=f"key {record.kid[:16]} {says}")
