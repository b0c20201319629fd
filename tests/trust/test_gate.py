"""What the gate lets through, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import time, timedelta
from typing import Any

import pytest

from tests.forge import NOW
from tests.world import World
from trust import errors
from trust.authorize import exactly
from trust.errors import ConfigurationError, Replayed, SignatureMissing
from trust.gate import Refusal, judge
from trust.gate_policy import RequestFacts
from trust.oauth.calendars import Calendar
from trust.oauth.scopes import Catalogue
from trust.replay import MemoryReplayGuard

WORLD = World()


def test_a_valid_request_becomes_one_caller() -> None:
    admission = WORLD.admit(WORLD.request())
    caller = admission.caller
    assert caller.agent_id == WORLD.planner.agent_id
    assert caller.peer.thumbprint == WORLD.planner.thumbprint
    assert caller.signer == WORLD.planner.agent_id
    assert caller.subject == caller.client_id == caller.display_name == caller.user_name == str(WORLD.planner.agent_id)
    assert caller.identity == caller.subject
    assert caller.is_authenticated
    assert caller.scopes == ("agent:execute",)
    assert caller.actors == ()
    assert admission.message is not None
    assert caller.message_id == admission.message.message_id


def test_the_callers_token_is_at_hand_but_not_in_its_repr() -> None:
    token = WORLD.token()
    caller = WORLD.admit(WORLD.request(token=token)).caller
    assert caller.access_token == token
    assert token not in repr(caller)


def test_unsigned_passes_only_where_signatures_are_optional() -> None:
    facts = WORLD.request(signature=None)
    admission = WORLD.admit(facts, signatures="optional")
    assert admission.message is None
    assert admission.caller.signer is None
    with pytest.raises(SignatureMissing):
        WORLD.admit(facts)


def test_the_same_request_is_accepted_once() -> None:
    policy = WORLD.policy()
    facts = WORLD.request()
    from trust.gate import admit

    admit(facts, policy)
    with pytest.raises(Replayed):
        admit(facts, policy)


def test_a_request_that_fails_an_earlier_check_does_not_burn_its_message() -> None:
    guard = MemoryReplayGuard(started_at=NOW - timedelta(minutes=1))
    signature = WORLD.signature(chain=True)
    other = WORLD.forge.leaf("/auditor")
    stolen = WORLD.request(peer=other, token=WORLD.token(other), signature=signature)
    with pytest.raises(Exception, match="signed by another agent"):
        WORLD.admit(stolen, authorize=exactly(WORLD.planner.agent_id, other.agent_id), replay=guard)
    assert WORLD.admit(WORLD.request(signature=signature), replay=guard).caller.signer == WORLD.planner.agent_id


def test_a_configured_relay_may_bring_the_messages_of_others() -> None:
    relay = WORLD.forge.leaf("/relay")
    facts = WORLD.request(peer=relay, token=WORLD.token(relay), signature=WORLD.signature(WORLD.planner, chain=True))
    rule = exactly(WORLD.planner.agent_id)
    caller = WORLD.admit(facts, authorize=exactly(relay.agent_id), relays={relay.agent_id: rule}).caller
    assert (caller.agent_id, caller.signer) == (relay.agent_id, WORLD.planner.agent_id)
    own = WORLD.request(peer=relay, token=WORLD.token(relay), signature=WORLD.signature(relay))
    caller = WORLD.admit(own, authorize=exactly(relay.agent_id), relays={relay.agent_id: rule}).caller
    assert caller.signer == relay.agent_id


def test_a_relay_that_could_never_match_is_refused() -> None:
    """A policy with it would refuse the relay for ever, and nobody would know why."""
    peer = str(WORLD.planner.agent_id)
    with pytest.raises(ConfigurationError, match="AgentID"):
        WORLD.policy(relays={peer: exactly(peer)})


def test_the_required_scope_may_depend_on_the_request_and_on_a_catalogue() -> None:
    catalogue = Catalogue({"agent:admin": ["agent:execute"]})
    facts = WORLD.request(token=WORLD.token(scope="agent:admin"))
    assert WORLD.admit(
        facts, scope=lambda f: "agent:execute" if f.method == "POST" else "agent:read", catalogue=catalogue
    )


# A day of the week that it is not now, at whatever hour the tests are run.
HOURS = Calendar(zone="UTC", days=[(NOW + timedelta(days=2)).isoweekday()], opens=time(9), closes=time(17))


@pytest.mark.parametrize(
    ("scope", "calendars", "told"),
    [
        ("agent:execute temporal:office", {}, "this gate has no calendar office; declare what it means: Gate(cal"),
        ("agent:execute temporal:office", {"office": HOURS}, "hours of the token are over: got temporal:office;"),
        (
            "agent:read temporal:office",
            {"office": HOURS},
            "token does not grant what the request needs: got agent:read",
        ),
    ],
)
def test_a_time_scope_that_refuses_says_so(scope: str, calendars: dict[str, Calendar], told: str) -> None:
    found = judge(WORLD.request(token=WORLD.token(scope=scope)), WORLD.policy(calendars=calendars))
    assert isinstance(found, Refusal) and type(found.error) is errors.InsufficientScope
    assert str(found.error).startswith(told) and found.error.required == "agent:execute"


def test_a_delegated_token_names_every_actor() -> None:
    act = {"sub": str(WORLD.planner.agent_id), "act": {"sub": "spiffe://fleet.example/first"}}
    caller = WORLD.admit(WORLD.request(token=WORLD.token(sub="spiffe://fleet.example/root", act=act))).caller
    assert caller.subject == "spiffe://fleet.example/root"
    assert caller.actors == (str(WORLD.planner.agent_id), "spiffe://fleet.example/first")


# What is refused, by which error, and whether the refusal may be signed: only for what can never be executed any more.
SIGNED: dict[str, tuple[Callable[[], RequestFacts], dict[str, Any], type[errors.TrustError], bool]] = {
    "token": (lambda: WORLD.request(token="x"), {}, errors.TokenMalformed, True),
    "token of another certificate": (
        lambda: WORLD.request(token=WORLD.token(WORLD.billing)),
        {},
        errors.TokenBoundElsewhere,
        True,
    ),
    "scope": (WORLD.request, {"scope": "agent:admin"}, errors.InsufficientScope, True),
    "peer": (WORLD.request, {"authorize": exactly(WORLD.billing.agent_id)}, errors.PeerNotAllowed, False),
    "signature": (lambda: WORLD.request(body=b"{}"), {}, errors.SignatureWrong, False),
    "token and signature": (lambda: WORLD.request(token="x", body=b"{}"), {}, errors.TokenMalformed, False),
    "token and signer": (
        lambda: WORLD.request(token="x", signature=WORLD.signature(WORLD.billing, chain=True)),
        {},
        errors.TokenMalformed,
        False,
    ),
    "token, unsigned": (
        lambda: WORLD.request(token="x", signature=None),
        {"signatures": "optional"},
        errors.TokenMalformed,
        False,
    ),
}


@pytest.mark.parametrize("row", SIGNED)
def test_a_refusal_is_signed_only_for_what_is_remembered(row: str) -> None:
    make, changes, expected, signed = SIGNED[row]
    facts, policy = make(), WORLD.policy(**changes)
    first, again = judge(facts, policy), judge(facts, policy)
    assert isinstance(first, Refusal) and isinstance(again, Refusal)
    assert type(first.error) is expected
    assert (first.message is not None, again.message) == (signed, None)


@pytest.mark.parametrize("executed", [False, True], ids=["refused first", "executed first"])
def test_a_request_is_executed_or_refused_under_a_signature_and_never_both(executed: bool) -> None:
    signature, policy = WORLD.signature(), WORLD.policy()
    good, bad = WORLD.request(signature=signature), WORLD.request(signature=signature, token="x")
    first, second = (judge(facts, policy) for facts in ((good, bad) if executed else (bad, good)))
    assert first.message is not None
    assert isinstance(second, Refusal) and second.message is None
    assert type(second.error) is (errors.TokenMalformed if executed else errors.Replayed)
