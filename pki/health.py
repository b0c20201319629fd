"""Is the CA well? Each answer is one line that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from cryptography import x509

from pki.errors import PasswordChanged, PKIError, UnknownName, WrongPassword
from pki.list_names import crl_name
from pki.profiles import BACKDATE, RevokedSerial
from pki.records import IssuerRecord, State
from pki.revocation import Revocations
from pki.rotation import Action, Step, newest, to_replace
from pki.store import Store
from trust.clock import shown

# What is due is done by a service within minutes; a person, who holds a ceremony, has more time.
STEP_GRACE = timedelta(hours=1)
CEREMONY_GRACE = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """One question, and its answer in words."""

    name: str  # "clock", "store", "intermediate", "root", "revocation lists" or "ledger"
    ok: bool
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedList:
    """A revocation list, in a few words."""

    file_name: str  # the last part of its URL
    issuer: str  # key id of the CA that signed it
    this_update: datetime
    next_update: datetime  # verifiers refuse it from then on
    revoked: int  # how many certificates it names

    @classmethod
    def of(cls, crl: x509.CertificateRevocationList) -> PublishedList:
        key = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        return cls(
            file_name=crl_name(crl),
            issuer=(key or b"").hex(),
            this_update=crl.last_update_utc,
            next_update=crl.next_update_utc or crl.last_update_utc,
            revoked=len(crl),
        )


def checks(
    store: Store, revocations: Revocations, plan: Callable[[], Sequence[Step]], now: datetime
) -> tuple[HealthCheck, ...]:
    """Ask everything. Whoever is asked and fails is the answer, and not an error."""
    return (
        _asked("clock", lambda: _clock(store, now)),
        _asked("store", lambda: _store(store)),
        _asked("intermediate", lambda: _ca("intermediate", plan(), store.issuers(), now)),
        _asked("root", lambda: _ca("root", plan(), store.issuers(), now)),
        _asked("revocation lists", lambda: _lists(store, revocations, now)),
        _asked("ledger", lambda: _ledger(store)),
    )


def published_lists(store: Store, now: datetime) -> tuple[PublishedList, ...]:
    """The revocation lists as they are stored; one that has to be made is left out."""
    found = []
    for issuer in store.issuers():
        for shard in store.shards(issuer.key_id, now):
            with suppress(UnknownName):
                crl = store.crl(issuer.key_id, shard, now=now, fresh=lambda _: True, make=_not_made)
                found.append(PublishedList.of(crl))
    return tuple(found)


def _not_made(_number: int, _revoked: list[RevokedSerial]) -> NoReturn:
    raise UnknownName("revocation list", got="none that is up to date", expected="one")


def _asked(name: str, question: Callable[[], HealthCheck]) -> HealthCheck:
    try:
        return question()
    except PKIError as error:
        return HealthCheck(name=name, ok=False, says=str(error))


def _clock(store: Store, now: datetime) -> HealthCheck:
    """A clock that is behind what this CA has written before is wrong, or was."""
    head = store.head()
    latest = now if head is None else head.time
    if latest - now > BACKDATE:
        return HealthCheck(
            name="clock",
            ok=False,
            says=f"it is {shown(now)}, but this CA has written something at {shown(latest)}; set the clock",
        )
    return HealthCheck(name="clock", ok=True, says=f"it is {shown(now)}")


def _store(store: Store) -> HealthCheck:
    store.check()
    return HealthCheck(name="store", ok=True, says="writes reach the disk and are read back")


def _ca(kind: str, plan: Sequence[Step], issuers: Sequence[IssuerRecord], now: datetime) -> HealthCheck:
    active = newest(issuers, kind, State.ACTIVE)
    if active is None:
        do = to_replace(issuers) if kind == "intermediate" else "run `a2a-pki rotate`"
        return HealthCheck(name=kind, ok=False, says=f"no {kind} is active; {do}")
    if not active.not_before <= now < active.not_after:
        says = f"valid from {shown(active.not_before)} to {shown(active.not_after)}, and it is {shown(now)}"
        return HealthCheck(name=kind, ok=False, says=says)
    for step in plan:
        grace = CEREMONY_GRACE if step.action is Action.CEREMONY else STEP_GRACE
        if step.kind == kind and step.action is not Action.PRUNE and step.at + grace < now:
            return HealthCheck(name=kind, ok=False, says=f"overdue since {shown(step.at)}: {step.says}")
    return HealthCheck(name=kind, ok=True, says=f"active until {shown(active.not_after)}")


def _lists(store: Store, revocations: Revocations, now: datetime) -> HealthCheck:
    """Whether every certificate has a list that its verifiers accept now. With open keys, what is due is made first.

    A CA that has made none yet is well without, for as long as nobody would miss one.

    It costs a look at the store for each list; the content of one is read and verified once after each change.
    """
    missing: Sequence[str] = ()
    try:
        revocations.lists(now)
    except PasswordChanged:
        raise  # what opens no key makes no list either, and a start of this program with the new one mends both
    except WrongPassword:  # nothing can be made here; what was made may still be good
        missing = revocations.missing(now)
    if missing and not published_lists(store, now) and not _would_be_missed(store, now):
        says = "none yet, and nobody misses one: `a2a-pki crl` or `a2a-pki serve` makes them"
        return HealthCheck(name="revocation lists", ok=True, says=says)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        says = f"no current revocation list {missing[0]}{more}: `a2a-pki crl` or `a2a-pki serve` makes one"
        return HealthCheck(name="revocation lists", ok=False, says=says)
    return HealthCheck(name="revocation lists", ok=True, says=f"{len(revocations.names(now))} current")


def _would_be_missed(store: Store, now: datetime) -> bool:
    """Something is revoked, or there are certificates of agents that say where their lists are."""
    counts, settings = store.counts(now), store.settings()
    says_where = settings.crl_base_url is not None or settings.public_url is not None
    return counts["revoked"] > 0 or (says_where and counts["total"] > len(store.issuers()))


def _ledger(store: Store) -> HealthCheck:
    head = store.sealed_head()
    if head is None or head.jws is None:
        size = 0 if head is None else head.size
        return HealthCheck(name="ledger", ok=False, says=f"the head of its {size} entries is not signed")
    return HealthCheck(name="ledger", ok=True, says=f"{head.size} entries, signed at {shown(head.time)}")
