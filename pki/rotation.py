"""When which CA is prepared, activated, withdrawn and pruned. Pure: the issuers and the time in, steps out.

The timing is SPIRE's. With half of its life left, or 30 days, the next CA is prepared; with a sixth left, or 7 days, it
takes over: no certificate that it signs, of 7 days at most, is cut short by its end. For the same reason a root hands
over one intermediate's life earlier than that, because what it signs lives for 90 days.

The four states:

- PREPARED: a root is in the bundle already and signs nothing, so that every verifier knows it before the first chain
  ends in it; at least five refresh hints long. An intermediate's certificate travels in chains, but its revocation
  lists do not, and whoever goes by lists refuses a certificate without one: they are published from the moment it is
  prepared, and it signs agents one refresh hint later, when every agent has asked again.
- ACTIVE: it signs, one of each kind.
- RETIRING: it signs revocation lists only, until nothing of it is valid any more. A root is in the bundle until then.
- REVOKED: an intermediate is in its root's revocation list, and whatever it signed is renewed at the next poll; a root
  is out of the bundle, be it that nothing needs it any more or that its key is in other hands.

A CA that is prepared before its time is wanted now: it takes over as soon as it may, and not on the day of the
schedule. That is how a forced rotation, and one after a compromise, goes on through restarts, on any instance. Where no
CA can sign now, because the active one is revoked, has ended or is not valid yet, the next one does not wait for lists.

Everything here goes by the wall clock, and clocks are wrong now and then. Three rules keep one wrong look from breaking
a CA, and none of them needs to know which look was the wrong one:

- A service that sees the clock jump does nothing here until the clock has gone on evenly for ten minutes
  (`pki.service.upkeep`).
- A CA that is not valid yet was made under a clock that was ahead. It counts as if it were not there: it does not take
  over, and where it has, it is replaced below a root that is valid, a retiring one if need be.
- A root leaves the bundle no sooner than a leaf's longest life, and a day, after it has retired. Both times are read
  from the clock, so whatever is retired under a clock that is years ahead stays for years.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pki.profiles import CRL_RETENTION, INTERMEDIATE_LIFETIME, MAX_LEAF_VALIDITY
from pki.records import IssuerRecord, State
from trust.bundles import REFRESH_HINT_SECONDS

PREPARE_LEFT = timedelta(days=30)
ACTIVATE_LEFT = timedelta(days=7)
# SPIFFE Trust Domain and Bundle, section 4.1: consumers of the bundle ask again after the hint that stands in it; with
# five of them, they have five chances to hear of a new root.
REFRESH_HINT = timedelta(seconds=REFRESH_HINT_SECONDS)
OVERLAP = 5 * REFRESH_HINT
# One poll of every agent, and a minute for polls that are late and answers that are cached.
LISTED = REFRESH_HINT + timedelta(minutes=1)
MARGIN = timedelta(days=1)  # beyond the last end: for clocks that are behind, and one more revocation list

CEREMONY = "`a2a-pki ceremony request`, `sign`, `accept`"  # what a person does with an offline root


class Action(StrEnum):
    """What a step does."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    CEREMONY = "ceremony"  # what a person does, because the root key is offline
    WITHDRAW = "withdraw"  # a root leaves the bundle
    PRUNE = "prune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that is done, or to be done, to one CA."""

    at: datetime  # from then on; what is before `now` is due
    action: Action
    kind: str  # "root" or "intermediate"
    key_id: str | None  # None: of the CA that will be made
    says: str  # for people


def plan(issuers: Sequence[IssuerRecord], now: datetime, *, online_root: bool) -> tuple[Step, ...]:
    """What happens to these CAs and when, as far as it can be told now: earliest first, what is due included.

    Args:
        issuers: all CAs of one trust domain, oldest first.
        online_root: the key of the root that signs is at hand; where it is not, a person has to act.
    """
    issuers = begun(issuers, now)
    steps = [*_roots(issuers, now, online_root), *_intermediates(issuers, now, online_root), *_ends(issuers)]
    return tuple(sorted(steps, key=lambda step: step.at))


def begun(issuers: Iterable[IssuerRecord], now: datetime) -> list[IssuerRecord]:
    """The CAs without those that would sign but are not valid yet: they were made under a clock that was ahead."""
    over = (State.RETIRING, State.REVOKED)
    return [issuer for issuer in issuers if issuer.state in over or issuer.not_before <= now]


def newest(issuers: Iterable[IssuerRecord], kind: str, state: State) -> IssuerRecord | None:
    """The one that was made last, of a kind and a state."""
    found = [issuer for issuer in issuers if issuer.kind == kind and issuer.state is state]
    return found[-1] if found else None


def signing_root(issuers: Sequence[IssuerRecord]) -> IssuerRecord | None:
    """The root that signs intermediates now.

    While the successor of a tainted root is not known to every verifier yet, that is still the tainted one: chains of
    the new one would be refused, and a forger has its key in any case.
    """
    return newest(issuers, "root", State.ACTIVE) or newest(issuers, "root", State.RETIRING)


def to_replace(issuers: Sequence[IssuerRecord]) -> str:
    """What a person does where no intermediate is active."""
    root, prepared = signing_root(issuers), newest(issuers, "intermediate", State.PREPARED)
    if root is None or root.online or (prepared is not None and prepared.parent == root.key_id):
        return "run `a2a-pki rotate`"
    return f"have the offline root sign the next one: {CEREMONY}"


def prepare_at(issuer: IssuerRecord) -> datetime:
    """When the successor of an active CA is to be made."""
    return _before_end(issuer, min(_life(issuer) / 2, PREPARE_LEFT + _child_life(issuer)))


def activate_at(issuer: IssuerRecord) -> datetime:
    """When the successor of an active CA is to take over."""
    return _before_end(issuer, min(_life(issuer) / 6, ACTIVATE_LEFT + _child_life(issuer)))


def may_activate_at(prepared: IssuerRecord) -> datetime:
    """From when on every verifier can be expected to know a prepared root, or the lists of a prepared intermediate."""
    return prepared.since + (OVERLAP if prepared.kind == "root" else LISTED)


def can_sign(active: IssuerRecord | None, now: datetime) -> bool:
    """Whether anybody accepts what an active CA signs now."""
    return active is not None and active.not_before <= now < active.not_after


def _roots(issuers: Sequence[IssuerRecord], now: datetime, online: bool) -> list[Step]:
    active, prepared = newest(issuers, "root", State.ACTIVE), newest(issuers, "root", State.PREPARED)
    if prepared is not None:
        return [_activation(active, prepared)]
    at = now if active is None else prepare_at(active)
    following = max(at + OVERLAP, at if active is None else activate_at(active))
    if not online:
        says = f"make the next root with `a2a-pki rotate --kind root`, and export its key; before {_day(following)}"
        return [Step(at=at, action=Action.CEREMONY, kind="root", key_id=None, says=says)]
    return [
        Step(at=at, action=Action.PREPARE, kind="root", key_id=None, says="prepare the next root: both in the bundle"),
        Step(at=following, action=Action.ACTIVATE, kind="root", key_id=None, says="the next root becomes active"),
    ]


def _intermediates(issuers: Sequence[IssuerRecord], now: datetime, online: bool) -> list[Step]:
    root = signing_root(issuers)
    if root is None:
        return []  # by this clock no root is valid yet, so nothing that is signed now is of use: nor is one a round
    active = newest(issuers, "intermediate", State.ACTIVE)
    prepared = newest(issuers, "intermediate", State.PREPARED)
    if prepared is not None and root is not None and prepared.parent == root.key_id:
        return [_activation(active, prepared)]
    if active is None:
        at = following = now
        why = "there is none"
    elif root is not None and root.state is State.ACTIVE and active.parent != root.key_id:
        at = max(root.since, active.since)
        following = at + LISTED
        why = "the active one is below another root"
    else:
        at, following = prepare_at(active), activate_at(active)
        why = f"the active one ends on {_day(active.not_after)}"
    if not online:
        says = f"sign the next intermediate with the offline root, because {why}; before {_day(following)}: {CEREMONY}"
        return [Step(at=at, action=Action.CEREMONY, kind="intermediate", key_id=None, says=says)]
    return [
        Step(
            at=at,
            action=Action.PREPARE,
            kind="intermediate",
            key_id=None,
            says=f"prepare the next intermediate, because {why}",
        ),
        Step(
            at=following,
            action=Action.ACTIVATE,
            kind="intermediate",
            key_id=None,
            says="the next intermediate becomes active",
        ),
    ]


def _activation(active: IssuerRecord | None, prepared: IssuerRecord) -> Step:
    at = may_activate_at(prepared)
    if active is None:
        # Nothing is accepted now, so there is nothing to break; but a root that nobody knows would not help.
        at = prepared.since if prepared.kind == "intermediate" else at
    else:
        below_old_root = prepared.kind == "intermediate" and prepared.parent != active.parent
        if prepared.since >= prepare_at(active) and not below_old_root:
            at = max(at, activate_at(active))
        at = min(at, active.not_after)  # from its end on nobody accepts the active one, so there is nothing to break
    says = f"the prepared {prepared.kind} {prepared.key_id[:16]} becomes active"
    return Step(at=at, action=Action.ACTIVATE, kind=prepared.kind, key_id=prepared.key_id, says=says)


def _ends(issuers: Sequence[IssuerRecord]) -> list[Step]:
    steps = []
    for issuer in issuers:
        if issuer.state in (State.PREPARED, State.ACTIVE):
            continue
        if issuer.kind == "root" and issuer.state is State.RETIRING:
            at = _withdraw_at(issuer, issuers)
            if at is not None:
                says = f"root {issuer.key_id[:16]} leaves the bundle"
                steps.append(Step(at=at, action=Action.WITHDRAW, kind="root", key_id=issuer.key_id, says=says))
        else:
            says = f"{issuer.kind} {issuer.key_id[:16]} can be pruned"
            at = issuer.not_after + CRL_RETENTION
            steps.append(Step(at=at, action=Action.PRUNE, kind=issuer.kind, key_id=issuer.key_id, says=says))
    return steps


def _withdraw_at(root: IssuerRecord, issuers: Sequence[IssuerRecord]) -> datetime | None:
    """When nothing below a retiring root is valid any more; None while that cannot be told."""
    below = _below(root, issuers)
    if newest(issuers, "root", State.ACTIVE) is None or any(i.state in (State.PREPARED, State.ACTIVE) for i in below):
        return None
    # What an intermediate signed before it retired has ended a week later. Not sooner than that after its own
    # retirement either, whatever else the clock says now: it may be ahead, and this cannot be undone.
    ends = [min(issuer.not_after, issuer.since + MAX_LEAF_VALIDITY) for issuer in below]
    return max(min(max(ends, default=root.since), root.not_after), root.since + MAX_LEAF_VALIDITY) + MARGIN


def _below(root: IssuerRecord, issuers: Sequence[IssuerRecord]) -> list[IssuerRecord]:
    return [issuer for issuer in issuers if issuer.kind == "intermediate" and issuer.parent == root.key_id]


def _before_end(issuer: IssuerRecord, left: timedelta) -> datetime:
    """In whole seconds, as the times of states are kept: what was prepared on time must not seem to be early."""
    return (issuer.not_after - left).replace(microsecond=0)


def _life(issuer: IssuerRecord) -> timedelta:
    return issuer.not_after - issuer.not_before


def _child_life(issuer: IssuerRecord) -> timedelta:
    return INTERMEDIATE_LIFETIME if issuer.kind == "root" else timedelta(0)


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
