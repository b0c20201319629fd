"""The signing keys of a running server: rotated by the clock, in its database, by whichever process looks first."""

from __future__ import annotations

import logging
from datetime import datetime
from types import TracebackType

from trust import private_keys
from trust.audit import AuditSink
from trust.clock import Clock, wall_clock
from trust.errors import ConfigurationError, WrongPassword
from trust.oauth.keys import SigningKey
from trust.oauth.server.rounds import Rounds
from trust.oauth.server.signing_keys import KINDS, KeyAction, KeyRing, KeyStep, following, plan, published
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState, SigningKeyTable

ROUND_SECONDS = 3.0  # between two looks: how soon what another process did is seen
MAX_STEPS = 16  # of one round: a ring has a handful of keys, and two steps bring each of them on

logger = logging.getLogger("a2a_trust.oauth")


class RotatingKeys:
    """A `Source` of the keys in a database, which it rotates by the clock. Use it in a `with` block, or `close` it."""

    def __init__(self, table: SigningKeyTable, password: bytes, *, audit: AuditSink, clock: Clock = wall_clock) -> None:
        """Read the keys, and make the first one where there is none.

        Args:
            password: opens every key; one that it does not open is none of ours, whoever wrote it into the database.
            audit: where every change of a key is recorded, also one that another process has made.
            clock: the time, aware.

        Raises:
            WrongPassword: the keys are encrypted with another one. Nothing was written.
            ConfigurationError: they cannot be read.
        """
        self._table, self._password, self._audit, self._clock = table, password, audit, clock
        self._opened: dict[bytes, SigningKey] = {}  # by what is at rest: opening one is made slow
        self._states: dict[str, KeyState] = {}  # by key ID, as they are recorded
        self._ring = self._round()
        self._rounds = Rounds(
            self._look,
            seconds=ROUND_SECONDS,
            name="a2a-trust-keys",
            failing="signing keys cannot be read, the last good ones stay in use",
            again="signing keys are readable again",
        )
        self._rounds.start()

    def current(self) -> KeyRing:
        return self._ring

    @property
    def problem(self) -> str | None:
        """Why the last round failed, in one line; None where it did not. The last good keys stay in use."""
        return self._rounds.problem

    def close(self) -> None:
        """Wait for the look that is under way."""
        self._rounds.close()

    def __enter__(self) -> RotatingKeys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self) -> None:
        self._ring = self._round()

    def _round(self) -> KeyRing:
        now = self._clock()
        records = self._table.all()
        for record in records:
            self._open(record)  # before anything is written
        for _ in range(MAX_STEPS):
            due = [step for step in plan(records, now) if step.at <= now]
            if not due:
                break
            take_step(due[0], self._table, self._password, records=records, now=now)
            records = self._table.all()
        keys = [self._open(record) for record in published(records)]
        self._opened = {record.pem: self._opened[record.pem] for record in records}
        states = {record.kid: record.state for record in records}
        if states == self._states:
            return self._ring
        for kid in sorted(states.keys() | self._states.keys()):
            if states.get(kid) is not self._states.get(kid):
                self._record(kid, str(states.get(kid, "erased")))
        self._states = states
        return KeyRing.of(keys)

    def _record(self, kid: str, state: str) -> None:
        self._audit.record(event="signing key", decision="allow", check="all", target=kid, state=state)

    def _open(self, record: KeyRecord) -> SigningKey:
        if record.pem not in self._opened:
            self._opened[record.pem] = _opened(record, self._password)
        return self._opened[record.pem]


def take_step(
    step: KeyStep,
    table: SigningKeyTable,
    password: bytes,
    *,
    records: tuple[KeyRecord, ...],
    now: datetime,
    alg: str = "",
) -> None:
    """Do one step; nothing where another process has done it meanwhile.

    Args:
        alg: of a key that is made; that of the newest key, or ES256, where it is left out.
    """
    record = step.record
    if record is None:
        first = not any(r.state is KeyState.ACTIVE for r in records)
        record = new_key(records, password, state=KeyState.ACTIVE if first else KeyState.NEXT, now=now, alg=alg)
        done = table.add(record)
    elif step.action is KeyAction.ACTIVATE:
        done = table.activate(record.number, now=now)
    elif step.action is KeyAction.REDATE:
        done = table.redate(record, now=now)
    else:
        done = table.erase(record.number)
    if done:
        logger.warning("rotation: %s", step.says if step.record else f"{step.says}: {record.kid[:16]}")


def new_key(
    records: tuple[KeyRecord, ...], password: bytes, *, state: KeyState, now: datetime, alg: str = ""
) -> KeyRecord:
    """A key to follow these.

    Raises:
        ConfigurationError: tokens are not signed with this algorithm.
    """
    alg = alg or (records[-1].alg if records else "ES256")
    if alg not in KINDS:
        raise ConfigurationError("algorithm of the signing key", got=alg, expected=" or ".join(KINDS))
    return at_rest(SigningKey.of(private_keys.generate(KINDS[alg])), password, records, state=state, now=now)


def at_rest(
    key: SigningKey, password: bytes, records: tuple[KeyRecord, ...], *, state: KeyState, now: datetime
) -> KeyRecord:
    """A key as it is stored behind these."""
    return KeyRecord(
        number=following(records),
        kid=key.kid,
        alg=key.alg,
        state=state,
        since=now.replace(microsecond=0),
        pem=key.to_pem(password),
    )


def begin_rotation(table: SigningKeyTable, password: bytes, *, now: datetime, alg: str = "") -> tuple[KeyStep, ...]:
    """Begin with a rotation now: make the next key where there is none, and say what follows. RotatingKeys goes on.

    Args:
        alg: the algorithm of the key, ES256, ES384 or Ed25519; that of the newest key where it is left out.

    Raises:
        WrongPassword: as `RotatingKeys`.
        ConfigurationError: no such algorithm; or a key of another one is prepared already.
    """
    records = table.all()
    opened(records, password)
    coming = next((record for record in records if record.state is KeyState.NEXT), None)
    if coming is None:
        make = KeyStep(at=now, action=KeyAction.MAKE, record=None, says="the next key is made and published")
        take_step(make, table, password, records=records, now=now, alg=alg)
    elif alg not in ("", coming.alg):
        raise ConfigurationError("next signing key", got=coming.alg, expected=alg, do="rotate again once it signs")
    return plan(table.all(), now)


def replace_all_keys(table: SigningKeyTable, password: bytes, *, now: datetime, alg: str = "") -> KeyRecord:
    """Give up every key, because somebody else may have one, and sign with a new one at once.

    Every token that is in use is refused as soon as its receiver has fetched the keys anew, which takes it five minutes
    (an hour where this server cannot be reached).

    Raises: as `begin_rotation`; and ConfigurationError where another process has changed the keys at this moment.
    """
    records = table.all()
    opened(records, password)
    record = new_key(records, password, state=KeyState.ACTIVE, now=now, alg=alg)
    if not table.replace_all(record):
        raise ConfigurationError("signing keys were changed at this moment", do="try again")
    return record


def opened(records: tuple[KeyRecord, ...], password: bytes) -> list[SigningKey]:
    """The keys of these records; Raises: WrongPassword."""
    return [_opened(record, password) for record in records]


def _opened(record: KeyRecord, password: bytes) -> SigningKey:
    try:
        return SigningKey.from_pem(record.pem, password)
    except WrongPassword:
        raise WrongPassword(
            f"signing key {record.kid[:16]} cannot be opened", expected="the password that it was made with"
        ) from None
