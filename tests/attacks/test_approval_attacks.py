"""Human approval, attacked: one request that a person has approved, one named mutation a row, the exact refusal.

Each row is checked at the wire (status and RFC error code) and in the audit trail (the check that refused), and after
each row the request that was approved still gets its token: nobody uses up the yes of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.attacks.test_chaining_attacks import World as Domains
from tests.attacks.test_chaining_attacks import bring
from tests.authority import BILLING, CLIENTS, LEDGER, PLANNER, STRANGER, Authority, ask, exchange
from tests.world import World
from trust.errors import (
    ApprovalDenied,
    ApprovalMissing,
    ApprovalNotWaiting,
    ApprovalPending,
    AssertionUsed,
    ClientRefused,
    ConfigurationError,
    GrantNotAllowed,
    GrantRequestMalformed,
    InsufficientScope,
    IssuanceDenied,
    ScopeRefused,
    StepUpUnknown,
    SubjectTokenRefused,
    TargetRefused,
    TooManyApprovals,
    TooManyTokensHeld,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.metadata import APPROVED, JWT_TYPE
from trust.oauth.scopes import Catalogue
from trust.oauth.server.approvals import ApprovalRules
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store import Approval, Issued, Store, allowances, use_approval
from trust.oauth.server.store.approvals import MAX_ON_BEHALF, MAX_WAITING

RULES = ApprovalRules(scopes=("read:ledger.**",))
ELSEWHERE = "https://auth.elsewhere.example"
PLAIN = "agent:execute delegate:billing temporal:20min"

# The planner may ask for more than it has asked for; a twin has the same rights; and billing has all ways out.
PLANNER_CLIENT = replace(CLIENTS[0], resources=(BILLING, LEDGER))
TWIN = Client(agent_id=AgentID.parse(STRANGER), scopes=PLANNER_CLIENT.scopes, resources=PLANNER_CLIENT.resources)
BILLING_CLIENT = replace(CLIENTS[1], resources=(LEDGER, ELSEWHERE), assertion_audiences=(ELSEWHERE,))
REGISTERED = (PLANNER_CLIENT, BILLING_CLIENT, CLIENTS[2], TWIN)


def authority(folder: Path, rules: ApprovalRules | None = RULES, clients: tuple[Client, ...] = REGISTERED) -> Authority:
    return Authority(folder, clients, approvals=rules)


def refused(server: Authority, answer: httpx.Response, expected: type[TrustError]) -> None:
    assert (answer.status_code, answer.json()["error"]) == (expected.status, expected.code), server.trail.last
    assert (server.trail.last["decision"], server.trail.last["check"]) == ("deny", expected.check)
    assert set(answer.json()) <= {"error", *(("approval_id", "interval", "expires_in") * (expected is ApprovalPending))}


def waiting(server: Authority) -> Approval:
    *_, newest = server.store.approvals.waiting(now=server.clock.now)
    return newest


def decide(server: Authority, approve: bool = True) -> None:
    server.store.approvals.decide(waiting(server).approval_id, approve=approve, by="alice", now=server.clock.now)


async def approved(server: Authority, agent: str, form: dict[str, str]) -> None:
    """What a person has said yes to, and was not fetched yet."""
    refused(server, await server.post(agent, form), ApprovalPending)
    decide(server)


def only_planner(server: Authority, **changes: Any) -> None:
    server.clients.replace(ClientRegistry((replace(PLANNER_CLIENT, **changes), *REGISTERED[1:])))


USED_FOR_SOMETHING_ELSE: dict[str, tuple[str | None, dict[str, str | None], type[TrustError]]] = {
    # name: (who connects, the parameters that are changed, the refusal)
    "one scope more": (PLANNER, {"scope": ask()["scope"] + " agent:read"}, ApprovalPending),
    "one scope fewer": (PLANNER, {"scope": "read:ledger.eu delegate:billing temporal:20min"}, ApprovalPending),
    "a wider scope": (PLANNER, {"scope": ask()["scope"].replace("ledger.eu", "ledger.*")}, ApprovalPending),
    "another scope": (PLANNER, {"scope": ask()["scope"].replace("ledger.eu", "ledger.us")}, ApprovalPending),
    "another delegate": (PLANNER, {"scope": ask()["scope"].replace(":billing", ":ledger")}, ApprovalPending),
    "another resource": (PLANNER, {"resource": LEDGER}, ApprovalPending),
    "another message": (PLANNER, {"binding_message": "the books of June"}, ApprovalPending),
    "no message": (PLANNER, {"binding_message": None}, ApprovalPending),
    "a client with the same rights": (STRANGER, {"client_id": STRANGER}, ApprovalPending),
    "another agent in the client's name": (STRANGER, {}, ClientRefused),
    "nobody's certificate": (None, {}, ClientRefused),
    "beyond the registration": (PLANNER, {"scope": "write:ledger.eu temporal:20min"}, ScopeRefused),
    "the ID of the approval as a scope": (PLANNER, {"scope": "approval:yes temporal:20min"}, ScopeRefused),
    "a resource of others": (PLANNER, {"resource": STRANGER}, TargetRefused),
    "an acr that nobody has": (PLANNER, {"acr_values": "urn:gold"}, StepUpUnknown),
    "our acr in other case": (PLANNER, {"acr_values": APPROVED.upper()}, StepUpUnknown),
    "our acr with something after it": (PLANNER, {"acr_values": APPROVED + "2"}, StepUpUnknown),
    "a message of two lines": (PLANNER, {"binding_message": "a\nb"}, GrantRequestMalformed),
    "a message that reads backwards": (PLANNER, {"binding_message": "\u202eyam"}, GrantRequestMalformed),
    "a message that cannot be seen": (PLANNER, {"binding_message": "a\u200bb"}, GrantRequestMalformed),
    "a message without an end": (PLANNER, {"binding_message": "x" * 201}, GrantRequestMalformed),
}


@pytest.mark.parametrize("name", USED_FOR_SOMETHING_ELSE)
def test_a_yes_is_used_for_nothing_else(name: str, tmp_path: Path) -> None:
    who, changes, expected = USED_FOR_SOMETHING_ELSE[name]

    async def work() -> None:
        server = authority(tmp_path)
        form = ask(binding_message="the books of May")
        await approved(server, PLANNER, form)
        refused(server, await server.post(who, ask(**{**form, **changes})), expected)
        claims = server.validate(await server.token(PLANNER, form), audience=BILLING, holder=PLANNER).claims
        assert (claims["acr"], claims["scope"]) == (APPROVED, form["scope"])

    asyncio.run(work())


def at_the_end(server: Authority) -> None:
    server.clock.advance(minutes=5)


def disabled(server: Authority) -> None:
    server.store.clients.disable(PLANNER, now=server.clock.now)


CHANGED: dict[str, tuple[Callable[[Authority], object], type[TrustError]]] = {
    # name: (what happens after the yes, the refusal)
    "it has expired": (at_the_end, ApprovalPending),
    "the client was disabled": (disabled, ClientRefused),
    "the client was removed": (lambda s: s.clients.replace(ClientRegistry((TWIN,))), ClientRefused),
    "its scopes were narrowed": (
        lambda s: only_planner(s, scopes=("agent:execute", "delegate:billing", "temporal:20min")),
        ScopeRefused,
    ),
    "it has no scopes of its own any more": (
        lambda s: only_planner(s, scopes=(), exchange_scopes=("read:ledger.*",)),
        GrantNotAllowed,
    ),
    "its resources were narrowed": (lambda s: only_planner(s, resources=(LEDGER,)), TargetRefused),
    "the policy says no": (lambda s: s.serve(approvals=RULES, permit=lambda _: False), IssuanceDenied),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_yes_outlives_nothing(name: str, tmp_path: Path) -> None:
    happens, expected = CHANGED[name]

    async def work() -> None:
        server = authority(tmp_path)
        await approved(server, PLANNER, ask())
        happens(server)
        refused(server, await server.post(PLANNER, ask()), expected)

    asyncio.run(work())


async def exchanged_from_one_that_nobody_approved(server: Authority) -> httpx.Response:
    server.serve()
    token = await server.token(PLANNER, ask())
    server.serve(approvals=RULES)
    return await server.post(BILLING, exchange(token))


async def as_an_assertion(server: Authority) -> httpx.Response:
    server.serve()
    token = await server.token(PLANNER, ask())
    server.serve(approvals=RULES)
    form = exchange(token, resource=ELSEWHERE, requested_token_type=JWT_TYPE)
    return await server.post(BILLING, form)


async def for_another_parent(server: Authority) -> httpx.Response:
    """The same exchange, of another token with the same claims."""
    server.serve()
    one, other = [await server.token(PLANNER, ask()) for _ in range(2)]
    server.serve(approvals=RULES)
    await approved(server, BILLING, exchange(one))
    return await server.post(BILLING, exchange(other))


async def of_a_token_that_was_revoked(server: Authority) -> httpx.Response:
    server.serve()
    token = await server.token(PLANNER, ask())
    server.serve(approvals=RULES)
    await approved(server, BILLING, exchange(token))
    server.store.tokens.revoke_all(now=server.clock.now, client_id=PLANNER)
    return await server.post(BILLING, exchange(token))


async def approved_as_a_token_and_taken_as_an_assertion(server: Authority) -> httpx.Response:
    server.serve()
    token = await server.token(PLANNER, ask())
    server.serve(approvals=RULES)
    form = exchange(token, resource=ELSEWHERE)
    await approved(server, BILLING, form)
    return await server.post(BILLING, {**form, "requested_token_type": JWT_TYPE})


async def in_a_name_that_was_another_agents(server: Authority) -> httpx.Response:
    """The name of the client now belongs to somebody else, who has the same rights."""
    server.clients.replace(ClientRegistry((replace(PLANNER_CLIENT, client_id="books"),)))
    await approved(server, PLANNER, ask(client_id="books"))
    server.clients.replace(ClientRegistry((replace(TWIN, client_id="books"),)))
    return await server.post(STRANGER, ask(client_id="books"))


async def twice(server: Authority) -> httpx.Response:
    await approved(server, PLANNER, ask())
    await server.token(PLANNER, ask())
    return await server.post(PLANNER, ask())


async def after_a_no(server: Authority) -> httpx.Response:
    await server.post(PLANNER, ask())
    decide(server, approve=False)
    return await server.post(PLANNER, ask())


async def after_a_no_to_another_client(server: Authority) -> httpx.Response:
    """What one was told is nothing to the other, who must not even learn of it."""
    await server.post(PLANNER, ask())
    decide(server, approve=False)
    return await server.post(STRANGER, ask(client_id=STRANGER))


async def after_a_no_by_the_resource(server: Authority) -> httpx.Response:
    """What is asked for because a resource wants it is the same request."""
    await server.post(PLANNER, ask())
    decide(server, approve=False)
    return await server.post(PLANNER, ask(acr_values=APPROVED))


def with_rules(rule: str, **changes: str | None) -> Callable[[Authority], Awaitable[httpx.Response]]:
    async def work(server: Authority) -> httpx.Response:
        server.serve(approvals=ApprovalRules(scopes=(rule,)))
        return await server.post(PLANNER, ask(**changes))

    return work


AROUND: dict[str, tuple[Callable[[Authority], Awaitable[httpx.Response]], type[TrustError]]] = {
    "by a wildcard": (with_rules("read:ledger.eu", scope="read:ledger.* temporal:20min"), ApprovalPending),
    "by two wildcards that meet": (with_rules("read:*.eu", scope="read:ledger.* temporal:20min"), ApprovalPending),
    "by the catalogue": (with_rules("agent:read", scope=PLAIN), ApprovalPending),
    "by the catalogue, with a wildcard in the rule": (with_rules("agent:*", scope=PLAIN), ApprovalPending),
    "as the last of many scopes": (with_rules("delegate:**", scope=PLAIN), ApprovalPending),
    "by an acr that says nothing": (with_rules("agent:read", scope=PLAIN, acr_values=" "), ApprovalPending),
    "by exchange": (exchanged_from_one_that_nobody_approved, ApprovalPending),
    "by an assertion for another server": (as_an_assertion, ApprovalPending),
    "by another subject token": (for_another_parent, ApprovalPending),
    "by a subject token that was revoked": (of_a_token_that_was_revoked, SubjectTokenRefused),
    "by another type of token": (approved_as_a_token_and_taken_as_an_assertion, ApprovalPending),
    "by a name that was another agent's": (in_a_name_that_was_another_agents, ApprovalPending),
    "by asking twice": (twice, ApprovalPending),
    "by asking after a no": (after_a_no, ApprovalDenied),
    "by a no to another client": (after_a_no_to_another_client, ApprovalPending),
    "by asking after a no, as a step-up": (after_a_no_by_the_resource, ApprovalDenied),
}


@pytest.mark.parametrize("name", AROUND)
def test_nothing_goes_around_the_person(name: str, tmp_path: Path) -> None:
    attack, expected = AROUND[name]

    async def work() -> None:
        server = authority(tmp_path)
        refused(server, await attack(server), expected)

    asyncio.run(work())


@pytest.fixture
def domains(tmp_path: Path) -> Domains:
    """Two trust domains; at the partner's a person approves what is read of the ledger."""
    domains = Domains(tmp_path)
    domains.away.serve(partners=domains.partners, approvals=RULES)
    return domains


def test_what_was_approved_in_another_domain_is_not_approved_here(domains: Domains) -> None:
    async def work() -> None:
        assertion = await domains.assertion()
        claimed = assertion.signed(acr=APPROVED, auth_time=assertion.now)
        refused(domains.away, await domains.away.post(BILLING, bring(claimed)), ApprovalPending)
        decide(domains.away)
        # Each assertion is a new one; who vouches, for whom and through whom is what was approved.
        fresh = (await domains.assertion()).text
        assert (await domains.granted(fresh))["access_token"]
        refused(domains.away, await domains.away.post(BILLING, bring(fresh)), ApprovalPending)

    asyncio.run(work())


def test_a_yes_to_one_chain_of_agents_is_none_to_another(domains: Domains) -> None:
    async def work() -> None:
        assertion = await domains.assertion()
        refused(domains.away, await domains.away.post(BILLING, bring(assertion.text)), ApprovalPending)
        decide(domains.away)
        through_another = assertion.signed(act={"sub": BILLING, "act": {"sub": LEDGER}})
        refused(domains.away, await domains.away.post(BILLING, bring(through_another)), ApprovalPending)
        assert waiting(domains.away).asked.actors == (LEDGER,)
        assert (await domains.granted(assertion.text))["access_token"]

    asyncio.run(work())


def test_a_person_who_says_no_is_not_asked_for_ever(tmp_path: Path) -> None:
    """The same request in other words is another one; but there is an end to them, whatever was said to each."""

    async def work() -> None:
        server = authority(tmp_path)
        for n in range(MAX_WAITING):
            await server.post(PLANNER, ask(binding_message=str(n)))
            decide(server, approve=n % 4 == 0)
        refused(server, await server.post(PLANNER, ask(binding_message="please")), TooManyApprovals)
        refused(server, await server.post(STRANGER, ask(client_id=STRANGER)), ApprovalPending)  # nobody else's loss
        server.clock.advance(minutes=15)
        refused(server, await server.post(PLANNER, ask(binding_message="please")), ApprovalPending)

    asyncio.run(work())


def test_one_caller_does_not_use_up_what_an_agent_may_ask_for_all(tmp_path: Path) -> None:
    async def work() -> None:
        server = authority(tmp_path, None)
        tokens = [await server.token(PLANNER, ask()) for _ in range(MAX_ON_BEHALF + 1)]
        others = await server.token(STRANGER, ask(client_id=STRANGER))
        server.serve(approvals=RULES)
        for token in tokens[:-1]:
            refused(server, await server.post(BILLING, exchange(token)), ApprovalPending)
        refused(server, await server.post(BILLING, exchange(tokens[-1])), TooManyApprovals)
        refused(server, await server.post(BILLING, exchange(others)), ApprovalPending)
        assert waiting(server).asked.subject == STRANGER

    asyncio.run(work())


HELD = 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "MAX_HELD", HELD)
    monkeypatch.setattr(allowances, "COUNTED_FOR", 1)


def fill(server: Authority, client: str) -> None:
    """The client holds as many tokens as it may, for half a minute."""
    now = server.clock.now
    for n in range(HELD):
        token = Issued(
            token_id=f"x{n}",
            parent_id=None,
            root_id=f"x{n}",
            root_issued_at=now,
            client_id=client,
            agent_id=client,
            subject=client,
            issued_at=now,
            expires_at=now + timedelta(seconds=30),
        )
        server.store.tokens.add(token, now=now)


@pytest.mark.usefixtures("small")
def test_a_token_that_is_refused_for_now_does_not_use_up_the_yes(tmp_path: Path) -> None:
    async def work() -> None:
        server = authority(tmp_path)
        await approved(server, PLANNER, ask())
        fill(server, PLANNER)
        answer = await server.post(PLANNER, ask())
        assert (answer.status_code, server.trail.last["check"]) == (429, TooManyTokensHeld.check)
        server.clock.advance(seconds=30)
        assert (await server.post(PLANNER, ask())).status_code == 200
        assert server.trail.last["approved_by"] == "alice"
        refused(server, await server.post(PLANNER, ask()), ApprovalPending)

    asyncio.run(work())


@pytest.mark.usefixtures("small")
def test_nor_the_assertion_and_a_used_assertion_does_not_use_up_the_yes(domains: Domains) -> None:
    async def work() -> None:
        away, first, second = domains.away, *[(await domains.assertion()).text for _ in range(2)]
        await approved(away, BILLING, bring(first))
        fill(away, BILLING)
        answer = await away.post(BILLING, bring(first))
        assert (answer.status_code, away.trail.last["check"]) == (429, TooManyTokensHeld.check)
        away.clock.advance(seconds=30)
        assert (await away.post(BILLING, bring(first))).status_code == 200
        assert (away.trail.last["approved_by"], "assertion" in away.trail.last) == ("alice", True)
        await approved(away, BILLING, bring(second))
        refused(away, await away.post(BILLING, bring(first)), AssertionUsed)
        assert (await away.post(BILLING, bring(second))).status_code == 200

    asyncio.run(work())


def use(store: Store, approval: Approval, now: datetime) -> bool:
    with store._engine.begin() as connection:
        return use_approval(connection, approval, now=now)


def test_a_request_is_decided_once(tmp_path: Path) -> None:
    server = authority(tmp_path)
    table, now = server.store.approvals, server.clock.now
    for first in (True, False):
        asyncio.run(server.post(PLANNER, ask(binding_message=str(first))))
        shown = waiting(server)
        assert use(server.store, shown, now) is False  # whatever the one who asks believes
        table.decide(shown.approval_id, approve=first, by="alice", now=now)
        for again in (True, False):
            with pytest.raises(ApprovalNotWaiting):
                table.decide(shown.approval_id, approve=again, by="mallory", now=now)
        assert use(server.store, shown, now) is first
    with pytest.raises(ApprovalNotWaiting):
        table.decide("%", approve=True, by="mallory", now=now)


def test_of_two_people_and_two_servers_at_once_one_is_first(tmp_path: Path) -> None:
    """Each with connections of its own, as processes have."""
    server = authority(tmp_path)
    asyncio.run(server.post(PLANNER, ask()))
    shown, now = waiting(server), server.clock.now
    with closing(Store(f"sqlite:///{tmp_path / 'oauth.db'}")) as other, ThreadPoolExecutor(8) as threads:
        stores = [server.store, other] * 4

        def decided(n: int) -> Approval | None:
            try:
                return stores[n].approvals.decide(shown.approval_id, approve=True, by=str(n), now=now)
            except ApprovalNotWaiting:
                return None

        (yes,) = [found for found in threads.map(decided, range(8)) if found]
        used = threads.map(lambda store: use(store, yes, now), stores)
        assert sorted(used) == [False] * 7 + [True]


W = World()

AT_THE_GATE: dict[str, tuple[dict[str, Any], dict[str, Any], type[TrustError]]] = {
    # name: (claims of the token, the gate's policy, the refusal)
    "no acr": ({}, {}, ApprovalMissing),
    "another acr": ({"acr": "urn:gold"}, {}, ApprovalMissing),
    "our acr in other case": ({"acr": APPROVED.upper()}, {}, ApprovalMissing),
    "our acr in a list": ({"acr": [APPROVED]}, {}, ApprovalMissing),
    "our acr among others": ({"acr": f"{APPROVED} urn:gold"}, {}, ApprovalMissing),
    "acr that is only true": ({"acr": True}, {}, ApprovalMissing),
    "our acr in another claim": ({"acr_values": APPROVED, "amr": [APPROVED]}, {}, ApprovalMissing),
    "a time of approval and no acr": ({"auth_time": 1}, {}, ApprovalMissing),
    "a token with a wildcard": ({"scope": "agent:*"}, {}, ApprovalMissing),
    "a rule with a wildcard": ({}, {"approvals": ("agent:**",)}, ApprovalMissing),
    "the second of two scopes": (
        {"scope": "agent:execute agent:read"},
        {"approvals": ("agent:read",), "scope": "agent:execute agent:read"},
        ApprovalMissing,
    ),
    "more than what needs a person": (
        {"scope": "agent:admin"},
        {"scope": "agent:admin", "catalogue": Catalogue({"agent:admin": ["agent:execute"]})},
        ApprovalMissing,
    ),
    "too little, and not approved": ({"scope": "agent:read"}, {}, InsufficientScope),
    "approved, and too little": ({"scope": "agent:read", "acr": APPROVED}, {}, InsufficientScope),
    "a time scope, that nobody would ever be asked for": ({}, {"approvals": ("temporal:x",)}, ConfigurationError),
    "what is no scope": ({}, {"approvals": ("pay",)}, ConfigurationError),
}


@pytest.mark.parametrize("name", AT_THE_GATE)
def test_at_the_gate(name: str) -> None:
    claims, policy, expected = AT_THE_GATE[name]
    with pytest.raises(TrustError) as caught:
        W.admit(W.request(token=W.token(**claims)), **{"approvals": ("agent:execute",), **policy})
    assert type(caught.value) is expected


def test_at_the_gate_what_a_person_has_approved_goes_through() -> None:
    catalogue = Catalogue({"agent:admin": ["agent:execute"]})
    assert W.admit(W.request(token=W.token(acr=APPROVED)), approvals=("agent:**",))
    assert W.admit(W.request(token=W.token()), approvals=("agent:admin",), catalogue=catalogue)
    assert W.admit(W.request(token=W.token(acr=APPROVED)), approvals=("agent:execute",), catalogue=catalogue)
