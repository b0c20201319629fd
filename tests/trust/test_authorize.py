"""Who may be on the other end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.forge import Forge
from tests.world import World
from trust.agent import agent_client
from trust.authorize import Authorizer, all_of, any_of, exactly, members_of, unsafe_allow_any_peer
from trust.errors import ConfigurationError, IdentityError, PeerNotAllowed, TrustError
from trust.identity import AgentID
from trust.tls import client_context, server_context

FORGE = Forge()
WORLD = World()

BILLING = AgentID.parse("spiffe://fleet.example/billing")
PLANNER = AgentID.parse("spiffe://fleet.example/planner")
STRANGER = AgentID.parse("spiffe://other.example/billing")
SUBDOMAIN = AgentID.parse("spiffe://a.fleet.example/billing")
LONGER = AgentID.parse("spiffe://fleet.example/billing/sub")
EVERYBODY = [BILLING, PLANNER, STRANGER, SUBDOMAIN, LONGER]

RULES: list[tuple[Authorizer, list[AgentID]]] = [
    (exactly("spiffe://fleet.example/billing"), [BILLING]),
    (exactly(BILLING, "spiffe://other.example/billing"), [BILLING, STRANGER]),
    (members_of("fleet.example"), [BILLING, PLANNER, LONGER]),
    (members_of("fleet.example", "other.example"), [BILLING, PLANNER, STRANGER, LONGER]),
    (any_of(exactly(PLANNER), members_of("other.example")), [PLANNER, STRANGER]),
    (all_of(members_of("fleet.example"), exactly(BILLING, STRANGER)), [BILLING]),
    (all_of(members_of("fleet.example"), members_of("other.example")), []),
    (any_of(all_of(exactly(BILLING)), exactly(STRANGER)), [BILLING, STRANGER]),
    (unsafe_allow_any_peer(), EVERYBODY),
]


@pytest.mark.parametrize(("rule", "allowed"), RULES, ids=lambda v: str(v) if not isinstance(v, list) else "")
def test_a_rule_allows_whom_it_names_and_nobody_else(rule: Authorizer, allowed: list[AgentID]) -> None:
    for agent in EVERYBODY:
        if agent in allowed:
            rule.check(agent)
        else:
            with pytest.raises(PeerNotAllowed) as caught:
                rule.check(agent)
            assert str(agent) in str(caught.value)
            assert str(rule) in str(caught.value)


@pytest.mark.parametrize("make", [exactly, members_of, any_of, all_of])
def test_an_empty_list_is_refused(make: object) -> None:
    with pytest.raises(ConfigurationError, match="empty allow-list"):
        make()  # type: ignore[operator]


NO_RULES: list[Any] = [None, str(BILLING), BILLING, [BILLING], lambda _: True, exactly, type(exactly(BILLING))]
MAKERS: dict[str, Callable[[Any], object]] = {
    "any_of": any_of,
    "all_of": all_of,
    "agent_client": lambda rule: agent_client(source=None, bundles=FORGE.bundles, authorize=rule),
    "destinations": lambda rule: agent_client(
        source=None, bundles=FORGE.bundles, authorize={"https://a.example": exactly(BILLING), "https://b.example": rule}
    ),
    "client_context": lambda rule: client_context(None, FORGE.bundles, rule),
    "server_context": lambda rule: server_context(FORGE.leaf("/billing"), FORGE.bundles, rule),
    "proxies": lambda rule: server_context(FORGE.leaf("/billing"), FORGE.bundles, exactly(BILLING), proxies=rule),
    "reload": lambda rule: client_context(None, FORGE.bundles, exactly(BILLING)).reload(authorize=rule),
    "gate": lambda rule: WORLD.policy(authorize=rule),
    "relays": lambda rule: WORLD.policy(relays={BILLING: rule}),
}


@pytest.mark.parametrize("given", NO_RULES, ids=["None", "str", "ID", "list", "function", "maker", "class"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_no_rule_is_told_where_it_is_given(make: Callable[[Any], object], given: Any) -> None:
    if given is None and make in (MAKERS["proxies"], MAKERS["reload"]):  # nobody, and the one of before
        return
    with pytest.raises(TrustError, match=r"authorize: got .*expected a rule; use trust\.exactly\(") as caught:
        make(given)
    assert type(caught.value) is ConfigurationError


@pytest.mark.parametrize("text", ["fleet.example", "spiffe://fleet.example", "spiffe://fleet.example/*"])
def test_no_patterns(text: str) -> None:
    with pytest.raises(IdentityError):
        exactly(text)


@pytest.mark.parametrize("text", ["*", "*.example", "spiffe://fleet.example", "Fleet.example", ""])
def test_no_patterns_of_domains(text: str) -> None:
    with pytest.raises(IdentityError):
        members_of(text)


def test_rules_describe_themselves() -> None:
    rule = any_of(exactly(BILLING), all_of(members_of("b.example", "a.example"), unsafe_allow_any_peer()))
    assert repr(rule) == (
        "any of (spiffe://fleet.example/billing, all of (a member of a.example or b.example, any verified peer))"
    )


def test_a_rule_that_breaks_lets_nobody_in() -> None:
    class Broken:
        def check(self, agent_id: AgentID) -> None:
            raise RuntimeError("database is gone")

    for rule in (any_of(Broken(), unsafe_allow_any_peer()), all_of(Broken(), unsafe_allow_any_peer())):
        with pytest.raises(RuntimeError):
            rule.check(BILLING)


def test_a_rule_of_somebody_elses_counts_as_ours_do() -> None:
    class Own:
        def check(self, agent_id: AgentID) -> None:
            exactly(BILLING).check(agent_id)

    for rule in (any_of(Own()), all_of(Own())):
        rule.check(BILLING)
        with pytest.raises(PeerNotAllowed):
            rule.check(AgentID.parse("spiffe://fleet.example/other"))
