"""When CAs follow one another: the plan, by itself; and what carrying it out does to agents and verifiers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from pki import CertificateAuthority, PKIError, founding, issuers, keys, profiles, rotation
from pki.errors import AuthorityNotValid, IDRefused, NotIssuedHere, ReasonRefused, UnknownName, WrongPassword
from pki.keys import KeyPair
from pki.profiles import Issuer
from pki.records import IssuerRecord, Settings, State
from pki.rotation import LISTED, MARGIN, OVERLAP, Action, Step, plan
from tests.pki.conftest import AGENT, DOMAIN, NOW, PASSWORD, Clock
from tests.pki.judges import request
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, UntrustedChain
from trust.peers import verify_peer

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SETTINGS = Settings(trust_domain=DOMAIN)


# The plan, by itself.


@dataclass
class Generations:
    """CAs made at chosen times, in chosen states."""

    records: list[IssuerRecord] = field(default_factory=list)

    def root(self, state: State, *, at: datetime = NOW, since: datetime | None = None) -> IssuerRecord:
        key = KeyPair(signer=keys.generate(), pem=b"pem")
        record, _ = founding.made_root(SETTINGS, key, state=state, serial=len(self.records) + 1, now=at)
        self._keys[record.key_id] = key
        return self._add(record, since)

    def below(
        self, root: IssuerRecord, state: State, *, at: datetime = NOW, since: datetime | None = None
    ) -> IssuerRecord:
        record, _ = founding.made_intermediate(
            SETTINGS,
            KeyPair(signer=keys.generate(), pem=b"pem"),
            parent=Issuer.of(root.certificate),
            parent_key=self._keys[root.key_id].signer,
            state=state,
            serial=len(self.records) + 1,
            now=at,
        )
        return self._add(record, since)

    def plan(self, now: datetime, *, online_root: bool = True) -> list[tuple[datetime, Action, str, str | None]]:
        steps = plan(self.records, now, online_root=online_root)
        assert list(steps) == sorted(steps, key=lambda step: step.at)
        return [(step.at, step.action, step.kind, step.key_id) for step in steps]

    def of(self, kind: str, now: datetime, *, online_root: bool = True) -> list[tuple[datetime, Action, str | None]]:
        steps = self.plan(now, online_root=online_root)
        return [(at, action, key_id) for at, action, of_kind, key_id in steps if of_kind == kind]

    def __post_init__(self) -> None:
        self._keys: dict[str, KeyPair] = {}

    def _add(self, record: IssuerRecord, since: datetime | None) -> IssuerRecord:
        record = replace(record, since=since or record.since)
        self.records.append(record)
        return record


@pytest.fixture
def made() -> Generations:
    return Generations()


def test_a_new_ca_has_spires_timing(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    below = made.below(root, State.ACTIVE)
    end = below.not_after
    assert made.of("intermediate", NOW) == [
        (end - 30 * DAY, Action.PREPARE, None),
        (end - 7 * DAY, Action.ACTIVATE, None),
    ]
    # A root hands over one intermediate's life earlier, or its last one would be cut short.
    assert made.of("root", NOW) == [
        (root.not_after - 120 * DAY, Action.PREPARE, None),
        (root.not_after - 97 * DAY, Action.ACTIVATE, None),
    ]


@pytest.mark.parametrize(
    ("life", "prepare_left", "activate_left"),
    [
        (90 * DAY, 30 * DAY, 7 * DAY),
        (60 * DAY, 30 * DAY, 7 * DAY),
        (42 * DAY, 21 * DAY, 7 * DAY),
        (6 * DAY, 3 * DAY, 1 * DAY),
        (HOUR, 30 * MINUTE, 10 * MINUTE),
        (7 * SECOND, 4 * SECOND, 2 * SECOND),  # in whole seconds, rather too early than too late
    ],
)
def test_short_lives_have_shares_of_them(life: timedelta, prepare_left: timedelta, activate_left: timedelta) -> None:
    key = keys.generate()
    root = profiles.root(trust_domain=DOMAIN, public_key=key.public_key(), serial=1, now=NOW)
    issuer = Issuer.of(keys.sign(root, key))
    below = profiles.intermediate(
        trust_domain=DOMAIN, public_key=key.public_key(), issuer=issuer, serial=2, now=NOW, lifetime=life
    )
    certificate = keys.sign(below, key)
    record = IssuerRecord(
        key_id=issuer.key_id,
        kind="intermediate",
        parent=issuer.key_id,
        state=State.ACTIVE,
        since=NOW,
        serial=2,
        der=certificate.public_bytes(Encoding.DER),
    )
    assert record.not_after - rotation.prepare_at(record) == prepare_left
    assert record.not_after - rotation.activate_at(record) == activate_left


def test_no_leaf_is_cut_short_by_the_end_of_its_intermediate(made: Generations) -> None:
    below = made.below(made.root(State.ACTIVE), State.ACTIVE)
    assert rotation.activate_at(below) + profiles.MAX_LEAF_VALIDITY <= below.not_after


def test_no_intermediate_is_cut_short_by_the_end_of_its_root(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    last = made.below(root, State.ACTIVE, at=rotation.activate_at(root))
    assert last.not_after - last.not_before == profiles.INTERMEDIATE_LIFETIME


def test_what_was_prepared_on_time_waits_for_its_time(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    old = made.below(root, State.ACTIVE)
    on_time = rotation.prepare_at(old)
    following = made.below(root, State.PREPARED, at=on_time)
    assert made.of("intermediate", on_time) == [(rotation.activate_at(old), Action.ACTIVATE, following.key_id)]


def test_what_was_prepared_before_its_time_is_wanted_now(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    old = made.below(root, State.ACTIVE)
    early = rotation.prepare_at(old) - SECOND
    following = made.below(root, State.PREPARED, at=early)
    assert made.of("intermediate", early) == [(early + LISTED, Action.ACTIVATE, following.key_id)]


def test_a_root_is_in_the_bundle_for_five_refresh_hints_before_it_signs(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    made.below(root, State.ACTIVE)
    following = made.root(State.PREPARED, at=NOW + DAY)
    assert timedelta(seconds=5 * 300) == OVERLAP
    assert made.of("root", NOW + DAY) == [(NOW + DAY + OVERLAP, Action.ACTIVATE, following.key_id)]


def test_a_root_prepared_on_time_waits_for_its_time(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    made.below(root, State.ACTIVE)
    on_time = rotation.prepare_at(root)
    following = made.root(State.PREPARED, at=on_time)
    assert made.of("root", on_time) == [(rotation.activate_at(root), Action.ACTIVATE, following.key_id)]


def test_a_root_prepared_late_still_has_its_time_in_the_bundle(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    late = rotation.activate_at(root) + HOUR
    following = made.root(State.PREPARED, at=late)
    assert (late + OVERLAP, Action.ACTIVATE, following.key_id) in made.of("root", late)


def test_from_the_end_of_a_root_on_there_is_nothing_to_wait_for(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    following = made.root(State.PREPARED, at=root.not_after - MINUTE)
    assert made.of("root", root.not_after) == [(root.not_after, Action.ACTIVATE, following.key_id)]


def test_without_an_active_intermediate_another_is_due_now(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    made.below(root, State.REVOKED)
    assert made.of("intermediate", NOW)[:2] == [(NOW, Action.PREPARE, None), (NOW, Action.ACTIVATE, None)]


def test_an_intermediate_below_a_former_root_is_replaced(made: Generations) -> None:
    old = made.root(State.RETIRING, since=NOW + DAY)
    below = made.below(old, State.ACTIVE)
    root = made.root(State.ACTIVE, since=NOW + DAY)
    assert made.of("intermediate", NOW + DAY)[0] == (NOW + DAY, Action.PREPARE, None)
    assert below.parent != root.key_id
    # One that is prepared, but below the former root as well, does not help.
    made.below(old, State.PREPARED)
    assert made.of("intermediate", NOW + DAY)[0] == (NOW + DAY, Action.PREPARE, None)
    # One below the new root takes over as soon as its lists are known.
    following = made.below(root, State.PREPARED, at=rotation.prepare_at(below) + SECOND)
    at, action, key_id = made.of("intermediate", following.since)[0]
    assert (at, action, key_id) == (following.since + LISTED, Action.ACTIVATE, following.key_id)


def test_an_offline_root_makes_it_a_ceremony(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    below = made.below(root, State.ACTIVE)
    steps = {step.kind: step for step in plan(made.records, NOW, online_root=False)}
    assert {step.action for step in steps.values()} == {Action.CEREMONY}
    assert steps["intermediate"].at == rotation.prepare_at(below)
    assert rotation.activate_at(below).strftime("%Y-%m-%d") in steps["intermediate"].says, "by when"
    assert steps["root"].at == rotation.prepare_at(root)


def test_a_retired_root_stays_until_its_last_leaf_has_ended(made: Generations) -> None:
    handover = NOW + 10 * DAY
    old = made.root(State.RETIRING, since=handover)
    made.below(old, State.RETIRING, since=NOW + DAY)
    made.below(old, State.RETIRING, since=handover)
    root = made.root(State.ACTIVE, at=NOW + 9 * DAY, since=handover)
    made.below(root, State.ACTIVE, at=handover)
    last_leaf = handover + profiles.MAX_LEAF_VALIDITY
    assert made.of("root", handover)[0] == (last_leaf + MARGIN, Action.WITHDRAW, old.key_id)


def test_a_retired_root_stays_while_something_below_it_may_still_issue(made: Generations) -> None:
    old = made.root(State.RETIRING)
    made.below(old, State.ACTIVE)
    assert Action.WITHDRAW not in [action for _, action, _ in made.of("root", NOW)]
    made.root(State.ACTIVE)
    assert Action.WITHDRAW not in [action for _, action, _ in made.of("root", NOW)]


def test_a_retired_root_without_anything_below_it(made: Generations) -> None:
    old = made.root(State.RETIRING)
    made.root(State.ACTIVE)
    at = NOW + profiles.MAX_LEAF_VALIDITY + MARGIN
    assert (at, Action.WITHDRAW, old.key_id) in made.of("root", NOW)


def test_where_none_can_sign_the_next_one_waits_for_nothing(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    made.below(root, State.REVOKED)
    following = made.below(root, State.PREPARED)
    assert made.of("intermediate", NOW)[0] == (NOW, Action.ACTIVATE, following.key_id)


def test_what_is_not_valid_yet_counts_as_if_it_were_not_there(made: Generations) -> None:
    """Made under a clock that was ahead, and then came back."""
    old = made.root(State.RETIRING, since=NOW + 100 * DAY)
    made.below(old, State.RETIRING, since=NOW + 100 * DAY)
    ahead = made.root(State.ACTIVE, at=NOW + 100 * DAY)
    made.below(ahead, State.ACTIVE, at=NOW + 100 * DAY)
    made.below(ahead, State.PREPARED, at=NOW + 100 * DAY)
    now = NOW + MINUTE
    assert made.of("intermediate", now)[:2] == [(now, Action.PREPARE, None), (now, Action.ACTIVATE, None)]
    assert made.of("root", now)[:2] == [(now, Action.PREPARE, None), (now + OVERLAP, Action.ACTIVATE, None)]
    assert rotation.signing_root(rotation.begun(made.records, now)) == old


def test_a_root_that_retired_under_a_clock_that_was_ahead_stays_in_the_bundle(made: Generations) -> None:
    wrong = NOW + 3700 * DAY
    old = made.root(State.RETIRING, since=wrong)
    made.below(old, State.RETIRING, since=wrong)
    made.below(made.root(State.ACTIVE, at=wrong), State.ACTIVE, at=wrong)
    assert Action.WITHDRAW not in [action for at, action, _ in made.of("root", wrong) if at <= wrong]


def test_what_is_over_can_be_pruned_when_no_list_would_name_its_certificates(made: Generations) -> None:
    root = made.root(State.ACTIVE)
    retired, revoked = made.below(root, State.RETIRING), made.below(root, State.REVOKED)
    made.below(root, State.ACTIVE)
    pruned = [(at, key_id) for at, action, key_id in made.of("intermediate", NOW) if action is Action.PRUNE]
    assert pruned == [(one.not_after + profiles.CRL_RETENTION, one.key_id) for one in (retired, revoked)]


def test_which_root_signs(made: Generations) -> None:
    assert rotation.signing_root([]) is None
    old = made.root(State.RETIRING)
    made.root(State.PREPARED)
    assert rotation.signing_root(made.records) == old, "a tainted one, while its successor is not known yet"
    root = made.root(State.ACTIVE)
    assert rotation.signing_root(made.records) == root


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.integers(1, 40 * 86400), min_size=1, max_size=40))
def test_whatever_the_clock_does_one_of_each_kind_is_active_and_known(steps: list[int]) -> None:
    """A simulation: the plan is looked at at any times, and done; nobody ever meets a CA that he cannot know."""
    made = Generations()
    made.below(made.root(State.ACTIVE), State.ACTIVE)
    now = NOW
    for step in steps:
        now += timedelta(seconds=step)
        for _ in range(8):
            due = [s for s in plan(made.records, now, online_root=True) if s.at <= now and s.action is not Action.PRUNE]
            if not due:
                break
            _simulate(made, due[0], now)
        else:
            pytest.fail("the plan never ends")
        root = rotation.newest(made.records, "root", State.ACTIVE)
        below = rotation.newest(made.records, "intermediate", State.ACTIVE)
        assert root is not None
        assert below is not None
        assert below.not_before <= now < below.not_after
        assert [r.state for r in made.records if r.kind == "root"].count(State.ACTIVE) == 1


def _simulate(made: Generations, step: Step, now: datetime) -> None:
    if step.action is Action.PREPARE and step.kind == "root":
        made.root(State.PREPARED, at=now)
        return
    if step.action is Action.PREPARE:
        root = rotation.signing_root(made.records)
        assert root is not None
        made.below(root, State.PREPARED, at=now)
        return
    if step.action is Action.ACTIVATE and step.kind == "root":
        prepared = next(one for one in made.records if one.key_id == step.key_id)
        active = rotation.newest(made.records, "root", State.ACTIVE)
        assert active is not None
        assert now >= prepared.since + OVERLAP or now >= active.not_after
    changed = []
    for one in made.records:
        if one.key_id == step.key_id:
            state = State.ACTIVE if step.action is Action.ACTIVATE else State.REVOKED
            one = replace(one, state=state, since=now)
        elif step.action is Action.ACTIVATE and one.kind == step.kind and one.state in (State.ACTIVE, State.PREPARED):
            one = replace(one, state=State.RETIRING, since=now)
        changed.append(one)
    made.records[:] = changed


# Carried out.


def verified(credentials: Credentials, bundle: TrustBundle, now: datetime, lists: RevocationLists) -> None:
    verify_peer(credentials.chain_der, bundles=TrustBundles.of(bundle), now=now, crls=lists.crls, usage="client")


def states(ca: CertificateAuthority, kind: str) -> list[State]:
    return [record.state for record in ca.issuers() if record.kind == kind]


def told(steps: tuple[Step, ...]) -> list[tuple[Action, str]]:
    return [(step.action, step.kind) for step in steps]


def active(ca: CertificateAuthority, kind: str) -> str:
    return next(r.key_id for r in ca.issuers() if r.kind == kind and r.state is State.ACTIVE)


def test_nothing_is_done_before_its_time(ca: CertificateAuthority) -> None:
    before = ca.issuers()
    assert ca.rotate() == ()
    assert ca.issuers() == before


def replaced(ca: CertificateAuthority, clock: Clock) -> list[tuple[Action, str]]:
    """A forced rotation of the intermediate, to its end."""
    first = ca.rotate(kind="intermediate", force=True)
    clock.forward(LISTED)
    return told((*first, *ca.rotate(kind="intermediate")))


def test_a_forced_intermediate_issues_soon_and_nobody_notices(ca: CertificateAuthority, clock: Clock) -> None:
    old_bundle, before = ca.bundle(), ca.issue_credentials(AGENT)
    old = ca.intermediate
    (step,) = ca.rotate(kind="intermediate", force=True)
    assert (step.action, step.kind) == (Action.PREPARE, "intermediate")
    assert (clock() + LISTED).strftime("%Y-%m-%d %H:%M:%S UTC") in step.says, "when it becomes active"
    polled = ca.crl()
    clock.forward(LISTED - SECOND)
    assert ca.rotate() == ca.rotate(kind="intermediate", force=True) == ()
    clock.forward(SECOND)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "intermediate")]
    after = ca.issue_credentials(AGENT)
    assert after.chain[1] == ca.intermediate != old
    assert states(ca, "intermediate") == [State.RETIRING, State.ACTIVE]
    for credentials in (before, after):
        verified(credentials, old_bundle, clock(), polled)
        verified(credentials, old_bundle, clock(), ca.crl())
    assert ca.bundle() == old_bundle
    assert ca.renewal_info(before.chain_der[0]).urgent is False
    # A certificate of the former one can still be revoked, on the former one's list.
    ca.revoke(before.certificate.serial_number)
    with pytest.raises(CertificateRevoked):
        verified(before, old_bundle, clock(), ca.crl())
    verified(after, old_bundle, clock(), ca.crl())


def test_an_intermediate_that_is_prepared_is_the_one_that_a_forced_rotation_activates(
    ca: CertificateAuthority, clock: Clock
) -> None:
    clock.now = rotation.prepare_at(ca.issuers()[1])
    assert told(ca.rotate()) == [(Action.PREPARE, "intermediate")]
    assert ca.rotate() == ca.rotate(kind="intermediate", force=True) == (), "its lists are not known yet"
    clock.forward(LISTED)
    assert ca.rotate() == ()
    assert told(ca.rotate(kind="intermediate", force=True)) == [(Action.ACTIVATE, "intermediate")]
    assert states(ca, "intermediate") == [State.RETIRING, State.ACTIVE]


def test_a_forced_root_has_its_time_in_the_bundle(ca: CertificateAuthority, clock: Clock) -> None:
    old_bundle, before = ca.bundle(), ca.issue_credentials(AGENT, lifetime=7 * DAY)
    (step,) = ca.rotate(kind="root", force=True)
    assert (step.action, step.kind) == (Action.PREPARE, "root")
    assert (clock() + OVERLAP).strftime("%Y-%m-%d %H:%M:%S UTC") in step.says, "when it may become active"
    both = ca.bundle()
    assert len(both.roots) == 2
    assert both.sequence > old_bundle.sequence
    assert set(ca.ca_certificates()[:2]) == set(both.roots)

    # Until then everything is as before, for those who have the old bundle, too; force does not change that.
    clock.forward(OVERLAP - SECOND)
    assert ca.rotate() == ca.rotate(kind="root", force=True) == ()
    during = ca.issue_credentials(AGENT)
    verified(during, old_bundle, clock(), ca.crl())

    # Then it takes over, and prepares an intermediate of its own, which takes over when its lists are known.
    clock.forward(SECOND)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "root"), (Action.PREPARE, "intermediate")]
    assert states(ca, "root") == [State.RETIRING, State.ACTIVE]
    verified(ca.issue_credentials(AGENT), old_bundle, clock(), ca.crl())
    clock.forward(LISTED)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "intermediate")]
    assert states(ca, "intermediate") == [State.RETIRING, State.ACTIVE]
    assert ca.bundle() == both
    after = ca.issue_credentials(AGENT, lifetime=7 * DAY)
    assert ca.root == both.roots[1]
    for credentials in (before, during, after):
        verified(credentials, both, clock(), ca.crl())
    with pytest.raises(UntrustedChain):
        verified(after, old_bundle, clock(), RevocationLists())

    # What is below the old root is renewed at the next poll, and the old root leaves when the last leaf has ended.
    assert ca.renewal_info(before.chain_der[0]).urgent
    assert not ca.renewal_info(after.chain_der[0]).urgent
    clock.now = before.certificate.not_valid_after_utc
    assert ca.rotate() == ()
    verified(before, ca.bundle(), clock(), ca.crl())
    clock.forward(profiles.MAX_LEAF_VALIDITY + MARGIN)
    assert told(ca.rotate()) == [(Action.WITHDRAW, "root")]
    assert ca.bundle().roots == both.roots[1:]
    assert ca.bundle().sequence > both.sequence


def test_a_clock_before_the_first_root_makes_no_ca_after_another(ca: CertificateAuthority, clock: Clock) -> None:
    clock.now = ca.issuers()[0].not_before - HOUR
    assert [(step.action, step.kind) for step in ca.rotate()] == [(Action.PREPARE, "root")]
    for _ in range(3):
        assert ca.rotate() == ()
    assert [record.state for record in ca.issuers()] == [State.ACTIVE, State.ACTIVE, State.PREPARED]
    clock.forward(2 * HOUR)
    verified(ca.issue_credentials(AGENT), ca.bundle(), clock(), ca.crl())


def test_by_the_clock_alone_for_ten_months(ca: CertificateAuthority, clock: Clock) -> None:
    """Agents live for a week and renew in time; at no time is any of them refused, or without a list."""
    agent = ca.issue_credentials(AGENT, lifetime=7 * DAY)
    seen = {ca.intermediate}
    for _ in range(75):
        clock.forward(4 * DAY)
        ca.rotate()
        verified(agent, ca.bundle(), clock(), ca.crl())
        key = keys.generate()
        issued = ca.renew(request(key=key), agent.chain_der[0])
        assert issued.not_after - clock() == 7 * DAY - MINUTE, "never cut short"
        agent = issued.credentials(key)
        verified(agent, ca.bundle(), clock(), ca.crl())
        seen.add(ca.intermediate)
    assert len(seen) == 5, "the second after 83 days, then another one every 60"
    assert all(check.ok for check in ca.health()), ca.health()


def test_the_last_years_of_a_root(ca: CertificateAuthority, clock: Clock) -> None:
    old = ca.root
    clock.now = old.not_valid_after_utc - 121 * DAY
    ca.rotate()
    assert len(ca.bundle().roots) == 1
    clock.forward(DAY)
    assert told(ca.rotate()) == [(Action.PREPARE, "root")]
    assert len(ca.bundle().roots) == 2
    clock.forward(23 * DAY)
    done = told(ca.rotate())
    assert done[:1] == [(Action.ACTIVATE, "root")]
    assert ca.root != old
    clock.forward(LISTED)
    ca.rotate()
    issued = ca.issue_credentials(AGENT, lifetime=7 * DAY)
    verified(issued, ca.bundle(), clock(), ca.crl())
    clock.forward(9 * DAY)
    assert (Action.WITHDRAW, "root") in told(ca.rotate())
    assert ca.bundle().roots == (ca.root,)


def test_only_one_kind(ca: CertificateAuthority, clock: Clock) -> None:
    clock.now = ca.root.not_valid_after_utc - 97 * DAY
    assert {step.kind for step in ca.rotate(kind="root")} == {"root"}
    assert {step.kind for step in ca.rotate(kind="intermediate")} == {"intermediate"}


def test_another_instance_follows_within_a_second(
    ca: CertificateAuthority, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        monkeypatch.setattr(issuers, "READ_AGAIN_SECONDS", 3600.0)
        assert other.issue_credentials(AGENT).chain[1] == ca.intermediate
        replaced(ca, clock)
        assert other.issue_credentials(AGENT).chain[1] != ca.intermediate, "not looked yet: still a good one"
        monkeypatch.setattr(issuers, "READ_AGAIN_SECONDS", 0.0)
        assert other.issue_credentials(AGENT).chain[1] == ca.intermediate
        ca.set_policy('[[allow]]\nids = ["/payroll"]')
        with pytest.raises(IDRefused):
            other.issue_credentials(AGENT)


def test_an_instance_that_has_not_heard_of_a_revocation_issues_with_the_next_one(
    ca: CertificateAuthority, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuers, "READ_AGAIN_SECONDS", 3600.0)
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        other.issue_credentials(AGENT)
        ca.taint(active(ca, "intermediate"))
        assert other.issue_credentials(AGENT).chain[1] == ca.intermediate
        ca.revoke(ca.intermediate.serial_number)
        with pytest.raises(AuthorityNotValid):
            other.issue_credentials(AGENT)


@pytest.mark.parametrize("kind", ["intermediate", "root"])
def test_of_many_instances_that_rotate_at_once_one_does_it(kind: str, folder: Path, clock: Clock) -> None:
    instances = [CertificateAuthority.open(folder, password=PASSWORD, clock=clock) for _ in range(6)]
    first = instances[0]
    due = next(r for r in first.issuers() if r.kind == kind)
    clock.now = rotation.activate_at(due)
    barrier = threading.Barrier(len(instances))

    def work(ca: CertificateAuthority) -> list[tuple[Action, str]]:
        barrier.wait()
        return told(ca.rotate(kind=kind))

    with ThreadPoolExecutor(len(instances)) as pool:
        done = [step for steps in pool.map(work, instances) for step in steps]
    assert done == [(Action.PREPARE, kind)]
    assert len([r for r in first.issuers() if r.kind == kind]) == 2
    for ca in instances:
        ca.close()


def test_rotating_under_load(folder: Path, clock: Clock, ca: CertificateAuthority) -> None:
    """Several threads issue while another rotates intermediates: none fails, and every chain is good."""
    stop = threading.Event()
    bundle = ca.bundle()
    data = request()

    def work(_: int) -> set[x509.Certificate]:
        signers = set()
        while not stop.is_set():
            issued = ca.issue(data, AGENT)
            issued.certificate.verify_directly_issued_by(issued.chain[1])
            issued.chain[1].verify_directly_issued_by(bundle.roots[0])
            signers.add(issued.chain[1])
        return signers

    with ThreadPoolExecutor(5) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(3):
                replaced(ca, clock)
        finally:
            stop.set()
        signers = set().union(*(worker.result() for worker in workers))
    assert len(signers) >= 3
    assert ca.audit_ledger().problems == ()


# Compromise.


def test_a_tainted_intermediate(ca: CertificateAuthority, clock: Clock) -> None:
    agent = ca.issue_credentials(AGENT)
    bundle = ca.bundle()
    tainted = active(ca, "intermediate")
    assert told(ca.taint(tainted)) == [(Action.PREPARE, "intermediate"), (Action.ACTIVATE, "intermediate")]
    assert states(ca, "intermediate") == [State.REVOKED, State.ACTIVE]
    with pytest.raises(CertificateRevoked):
        verified(agent, bundle, clock(), ca.crl())
    info = ca.renewal_info(agent.chain_der[0])
    assert info.urgent
    assert "revoked" in info.reason
    # Its holder is not locked out.
    key = keys.generate()
    renewed = ca.renew(request(key=key), agent.chain_der[0]).credentials(key)
    verified(renewed, bundle, clock(), ca.crl())
    assert ca.bundle() == bundle
    # Again: nothing more happens.
    assert ca.taint(tainted) == ()
    assert states(ca, "intermediate") == [State.REVOKED, State.ACTIVE]
    assert ca.find(ca.issuers()[1].serial).reason is x509.ReasonFlags.ca_compromise


def test_a_retired_intermediate_can_be_tainted_too(ca: CertificateAuthority, clock: Clock) -> None:
    agent = ca.issue_credentials(AGENT)
    old = active(ca, "intermediate")
    replaced(ca, clock)
    new = active(ca, "intermediate")
    assert ca.taint(old) == ()
    assert active(ca, "intermediate") == new
    assert ca.renewal_info(agent.chain_der[0]).urgent


def test_what_was_signed_with_a_stolen_key_is_not_renewed(ca: CertificateAuthority, clock: Clock) -> None:
    """The thief's certificate has the intermediate's signature, and the serial number of a genuine one, if he likes."""
    genuine = ca.issue_credentials(AGENT)
    stolen = keys.read(ca.issuers()[1].key_pem or b"", PASSWORD)
    thief = keys.generate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.intermediate.subject)
        .public_key(thief.public_key())
        .serial_number(genuine.certificate.serial_number)
        .not_valid_before(genuine.certificate.not_valid_before_utc)
        .not_valid_after(genuine.certificate.not_valid_after_utc)
    )
    for extension in genuine.certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged = Credentials.of((keys.sign(builder, stolen), ca.intermediate), thief)
    verified(forged, ca.bundle(), clock(), ca.crl())  # nothing else tells it from a genuine one
    for _ in range(2):
        with pytest.raises(PKIError) as caught:
            ca.renew(request(key=thief), forged.chain_der[0])
        assert type(caught.value) is NotIssuedHere
        ca.taint(active(ca, "intermediate"))


def test_a_tainted_root_goes_in_two_steps(ca: CertificateAuthority, clock: Clock) -> None:
    old_bundle = ca.bundle()
    tainted = active(ca, "root")
    before = ca.issue_credentials(AGENT, lifetime=7 * DAY)

    # Tainted: the next one is in the bundle, and nothing breaks for those who have not heard of it.
    assert told(ca.taint(tainted)) == [(Action.PREPARE, "root")]
    assert states(ca, "root") == [State.RETIRING, State.PREPARED]
    both = ca.bundle()
    assert len(both.roots) == 2
    assert both.sequence > old_bundle.sequence
    verified(ca.issue_credentials(AGENT), old_bundle, clock(), ca.crl())
    assert ca.renewal_info(before.chain_der[0]).urgent is False, "there is nothing better to renew to yet"
    assert ca.taint(tainted) == (), "it waits for its successor"

    # An intermediate can still be replaced meanwhile, below the only root that everybody knows.
    ca.taint(active(ca, "intermediate"))
    verified(ca.issue_credentials(AGENT), old_bundle, clock(), ca.crl())

    clock.forward(OVERLAP)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "root"), (Action.PREPARE, "intermediate")]
    assert ca.taint(tainted) == (), "it waits for the intermediate of its successor"
    clock.forward(LISTED)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "intermediate")]
    after = ca.issue_credentials(AGENT)
    assert ca.renewal_info(before.chain_der[0]).urgent
    verified(after, both, clock(), ca.crl())
    assert ca.bundle() == both, "whoever has not renewed is not cut off yet"

    # Revoked: out of the bundle.
    assert told(ca.taint(tainted)) == [(Action.WITHDRAW, "root")]
    last = ca.bundle()
    assert last.roots == (ca.root,) == both.roots[1:]
    assert last.sequence > both.sequence
    verified(after, last, clock(), ca.crl())
    with pytest.raises(UntrustedChain):
        verified(before, last, clock(), ca.crl())
    assert states(ca, "root") == [State.REVOKED, State.ACTIVE]
    assert ca.taint(tainted) == ()
    assert ca.rotate() == ()
    assert ca.audit_ledger().problems == ()


def test_a_root_that_is_tainted_while_its_successor_is_ready(ca: CertificateAuthority, clock: Clock) -> None:
    old = active(ca, "root")
    ca.rotate(kind="root", force=True)
    clock.forward(OVERLAP / 2)
    assert ca.taint(old) == ()
    clock.forward(OVERLAP / 2)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "root"), (Action.PREPARE, "intermediate")]
    clock.forward(LISTED)
    assert told(ca.rotate()) == [(Action.ACTIVATE, "intermediate")]
    assert told(ca.taint(old)) == [(Action.WITHDRAW, "root")]


def test_a_tainted_root_that_was_only_prepared(ca: CertificateAuthority) -> None:
    bundle = ca.bundle()
    (step,) = ca.rotate(kind="root", force=True)
    assert step.key_id is not None
    assert told(ca.taint(step.key_id)) == [(Action.WITHDRAW, "root")]
    assert ca.bundle().roots == bundle.roots
    assert ca.bundle().sequence == bundle.sequence + 2
    assert states(ca, "root") == [State.ACTIVE, State.REVOKED]


def test_an_unknown_ca_cannot_be_tainted(ca: CertificateAuthority) -> None:
    with pytest.raises(PKIError) as caught:
        ca.taint("00" * 20)
    assert type(caught.value) is UnknownName


def test_a_taint_without_the_password_revokes_and_says_that_it_could_do_no_more(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, clock=clock) as ca:
        with pytest.raises(WrongPassword):
            ca.taint(active(ca, "intermediate"))
        assert states(ca, "intermediate") == [State.REVOKED]
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        for action in (lambda: ca.intermediate, lambda: ca.issue_credentials(AGENT)):
            with pytest.raises(AuthorityNotValid):
                action()
        assert told(ca.rotate()) == [(Action.PREPARE, "intermediate"), (Action.ACTIVATE, "intermediate")]
        ca.issue_credentials(AGENT)


def test_roots_are_tainted_and_not_revoked(ca: CertificateAuthority) -> None:
    with pytest.raises(ReasonRefused, match="taint"):
        ca.revoke(ca.root.serial_number)


def test_pruning(ca: CertificateAuthority, clock: Clock) -> None:
    agent = ca.issue_credentials(AGENT)
    replaced(ca, clock)
    assert ca.prune() == 0
    assert any(step.action is Action.PRUNE for step in ca.plan())
    clock.forward(profiles.INTERMEDIATE_LIFETIME + profiles.CRL_RETENTION + DAY)
    ca.rotate()
    before = len(ca.certificates())
    pruned = ca.prune()
    assert pruned == before - len(ca.certificates()) >= 2
    with pytest.raises(NotIssuedHere):
        ca.renew(request(), agent.chain_der[0])
    ca.issue_credentials(AGENT)
    assert ca.audit_ledger().problems == ()


# A clock that is wrong for a while.


@pytest.mark.parametrize("days", [70, 100, 3400, 3700])
def test_one_wrong_look_at_the_clock_is_got_over(ca: CertificateAuthority, clock: Clock, days: int) -> None:
    """Whoever calls `rotate` by hand or by cron is not kept from it; the service is (`pki.service.steady`)."""
    genuine, agent = ca.root, ca.issue_credentials(AGENT)
    right = clock.now
    clock.forward(days * DAY)
    for _ in range(3):
        ca.rotate()
        ca.crl()
        clock.forward(3 * SECOND)
    clock.now = right + MINUTE
    ca.rotate()
    assert genuine in ca.bundle().roots
    issued = ca.issue_credentials(AGENT)
    for credentials in (agent, issued):
        verified(credentials, ca.bundle(), clock(), ca.crl())
    for _ in range(3):
        clock.forward(OVERLAP)
        ca.rotate()
    verified(ca.issue_credentials(AGENT), ca.bundle(), clock(), ca.crl())
    assert genuine in ca.bundle().roots
    assert [check.name for check in ca.health() if not check.ok] in ([], ["clock"]), ca.health()
