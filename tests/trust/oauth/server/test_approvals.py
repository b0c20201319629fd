"""What a person has to approve: asked once, shown as it is, good for one token of exactly that request."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from tests.authority import BILLING, CLIENTS, LEDGER, PLANNER, Authority, ask, exchange
from tests.forge import NOW
from trust.errors import ApprovalNotWaiting, ConfigurationError
from trust.oauth.metadata import APPROVED
from trust.oauth.scopes import Catalogue
from trust.oauth.server.approvals import ApprovalRules, Decision
from trust.oauth.server.store import Approval
from trust.oauth.server.store.approvals import MAX_WAITING

P = ParamSpec("P")

RULES = ApprovalRules(scopes=("read:ledger.**",))
UNMARKED = {"scope": "agent:execute delegate:billing temporal:20min"}


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def authority(folder: Path, rules: ApprovalRules | None = RULES) -> Authority:
    return Authority(folder, approvals=rules)


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


def only(authority: Authority) -> Approval:
    (approval,) = authority.store.approvals.waiting(now=authority.clock.now)
    return approval


def decide(authority: Authority, *, approve: bool = True) -> None:
    authority.store.approvals.decide(only(authority).approval_id, approve=approve, by="alice", now=authority.clock.now)


@in_a_loop
async def test_a_token_comes_when_a_person_has_said_yes_and_says_so(tmp_path: Path) -> None:
    server = authority(tmp_path)
    first = await server.post(PLANNER, ask(binding_message="the books of May"))
    assert refusal(first) == (400, "authorization_pending")
    shown = only(server)
    assert first.json() == {
        "error": "authorization_pending",
        "approval_id": shown.approval_id,
        "interval": 5,
        "expires_in": 900,
    }
    assert (shown.asked.agent_id, shown.asked.subject, shown.asked.resource) == (PLANNER, PLANNER, BILLING)
    assert set(shown.asked.scope.split()) == set(ask()["scope"].split())
    assert shown.asked.message == "the books of May"
    # Asked again, in whatever order of the scopes: the same request, and nobody is asked twice.
    again = " ".join(reversed(ask()["scope"].split()))
    assert (await server.post(PLANNER, ask(scope=again, binding_message="the books of May"))).json() == first.json()
    server.clock.advance(seconds=30)
    decide(server)
    token = await server.token(PLANNER, ask(binding_message="the books of May"))
    assert server.trail.last["approval"] == shown.approval_id
    assert server.trail.last["approved_by"] == "alice"
    claims = server.validate(token, audience=BILLING, holder=PLANNER).claims
    assert (claims["acr"], claims["auth_time"]) == (APPROVED, int(NOW.timestamp()) + 30)
    # Good for one token: the next one is asked for anew.
    assert refusal(await server.post(PLANNER, ask(binding_message="the books of May"))) == (
        400,
        "authorization_pending",
    )


@in_a_loop
async def test_what_needs_nobody_goes_through(tmp_path: Path) -> None:
    server = authority(tmp_path)
    token = await server.token(PLANNER, ask(**UNMARKED))
    assert "acr" not in server.validate(token, audience=BILLING, holder=PLANNER).claims


@pytest.mark.parametrize(
    ("rule", "scope", "needed"),
    [
        ("read:ledger.**", "read:ledger.eu", True),
        ("read:ledger.eu", "read:ledger.*", True),  # it could do what needs a person
        ("read:*.eu", "read:ledger.*", True),  # so could this: the two meet in read:ledger.eu
        ("read:ledger.us", "read:ledger.eu", False),
        ("read:ledger", "read:ledger.eu", False),
        ("agent:read", "agent:execute", True),  # by the catalogue
        ("agent:execute", "agent:read", False),
        ("temporal:20min2", "temporal:20min", False),
    ],
)
def test_need(rule: str, scope: str, needed: bool) -> None:
    if rule.startswith("temporal:"):
        with pytest.raises(ConfigurationError):
            ApprovalRules(scopes=(rule,))
        return
    catalogue = Catalogue({"agent:execute": ["agent:read"]})
    assert ApprovalRules(scopes=(rule,)).need(scope + " temporal:5min", catalogue) is needed


@in_a_loop
async def test_a_no_is_the_answer_until_the_request_would_have_expired(tmp_path: Path) -> None:
    server = authority(tmp_path)
    await server.post(PLANNER, ask())
    decide(server, approve=False)
    assert refusal(await server.post(PLANNER, ask())) == (400, "access_denied")
    assert "alice" in server.trail.last["reason"]
    server.clock.advance(minutes=15)
    assert refusal(await server.post(PLANNER, ask())) == (400, "authorization_pending")


@in_a_loop
async def test_neither_a_request_nor_a_yes_lives_for_ever(tmp_path: Path) -> None:
    server = authority(tmp_path)
    await server.post(PLANNER, ask())
    waiting = only(server).approval_id
    server.clock.advance(minutes=15)
    assert server.store.approvals.waiting(now=server.clock.now) == []
    with pytest.raises(ApprovalNotWaiting):
        server.store.approvals.decide(waiting, approve=True, by="alice", now=server.clock.now)
    await server.post(PLANNER, ask())
    decide(server)
    server.clock.advance(minutes=5)
    assert refusal(await server.post(PLANNER, ask())) == (400, "authorization_pending")


@in_a_loop
async def test_a_yes_is_for_that_request_alone(tmp_path: Path) -> None:
    server = authority(tmp_path, RULES)
    await server.post(PLANNER, ask())
    decide(server)
    for other in (
        {"scope": ask()["scope"] + " agent:read"},
        {"scope": "read:ledger.us temporal:20min"},
        {"binding_message": "something else"},
    ):
        assert refusal(await server.post(PLANNER, ask(**other))) == (400, "authorization_pending"), other
    assert await server.token(PLANNER, ask())


@in_a_loop
async def test_another_client_does_not_get_it(tmp_path: Path) -> None:
    """The same resource, the same scopes: what differs is who asks."""
    twin = replace(CLIENTS[0], agent_id=CLIENTS[2].agent_id, client_id="", audiences=(), exchange_scopes=())
    server = Authority(tmp_path, (CLIENTS[0], twin), approvals=RULES)
    await server.post(PLANNER, ask())
    decide(server)
    assert refusal(await server.post(LEDGER, ask(client_id=LEDGER))) == (400, "authorization_pending")
    assert await server.token(PLANNER, ask())


@in_a_loop
async def test_of_many_that_come_at_once_one_gets_the_token(tmp_path: Path) -> None:
    server = authority(tmp_path)
    first = await asyncio.gather(*(server.post(PLANNER, ask()) for _ in range(8)))
    assert {refusal(a) for a in first} == {(400, "authorization_pending")}
    decide(server)  # one request, however many asked
    answers = await asyncio.gather(*(server.post(PLANNER, ask()) for _ in range(8)))
    assert sorted(a.status_code for a in answers) == [200] + [400] * 7


@in_a_loop
async def test_a_client_cannot_flood_the_person(tmp_path: Path) -> None:
    server = authority(tmp_path)
    for n in range(MAX_WAITING):
        assert refusal(await server.post(PLANNER, ask(binding_message=str(n)))) == (400, "authorization_pending")
    assert refusal(await server.post(PLANNER, ask(binding_message="more"))) == (400, "slow_down")
    assert server.trail.last["check"] == "grant.approvals"


@pytest.mark.parametrize("message", ["x" * 201, "two\nlines", "\x1b[2J"])
@in_a_loop
async def test_a_message_to_the_person_is_short_and_printable(tmp_path: Path, message: str) -> None:
    server = authority(tmp_path)
    assert refusal(await server.post(PLANNER, ask(binding_message=message))) == (400, "invalid_request")
    assert server.store.approvals.waiting(now=NOW) == []


@in_a_loop
async def test_what_was_refused_anyway_is_shown_to_nobody(tmp_path: Path) -> None:
    server = authority(tmp_path)
    assert refusal(await server.post(PLANNER, ask(scope="read:ledger.eu.secret temporal:20min")))[1] == "invalid_scope"
    assert server.store.approvals.waiting(now=NOW) == []


@in_a_loop
async def test_what_is_exchanged_from_an_approved_token_is_approved(tmp_path: Path) -> None:
    server = authority(tmp_path)
    scope = ask()["scope"] + " delegate:ledger"
    await server.post(PLANNER, ask(scope=scope))
    decide(server)
    token = await server.token(PLANNER, ask(scope=scope))
    child = await server.token(BILLING, exchange(token))
    claims = server.validate(child, audience=LEDGER, holder=BILLING).claims
    assert (claims["acr"], claims["auth_time"]) == (APPROVED, int(NOW.timestamp()))


@in_a_loop
async def test_what_is_exchanged_from_another_token_needs_a_person(tmp_path: Path) -> None:
    server = authority(tmp_path, None)
    token = await server.token(PLANNER, ask())  # of before there were rules
    server.serve(approvals=RULES)
    assert refusal(await server.post(BILLING, exchange(token))) == (400, "authorization_pending")
    shown = only(server).asked
    assert (shown.agent_id, shown.subject, shown.actors, shown.resource) == (BILLING, PLANNER, (), LEDGER)
    decide(server)
    assert await server.token(BILLING, exchange(token))


@pytest.mark.parametrize(
    ("rules", "acr", "code"),
    [
        (RULES, APPROVED, "authorization_pending"),
        (RULES, f"urn:other {APPROVED}", "authorization_pending"),
        (RULES, "urn:other", "unmet_authentication_requirements"),
        (None, APPROVED, "unmet_authentication_requirements"),
    ],
)
@in_a_loop
async def test_a_resource_may_want_more_than_the_server(
    tmp_path: Path, rules: ApprovalRules | None, acr: str, code: str
) -> None:
    server = authority(tmp_path, rules)
    assert refusal(await server.post(PLANNER, ask(**UNMARKED, acr_values=acr))) == (400, code)
    if code == "authorization_pending":
        decide(server)
        token = await server.token(PLANNER, ask(**UNMARKED, acr_values=acr))
        assert server.validate(token, audience=BILLING, holder=PLANNER).claims["acr"] == APPROVED


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Decision(approve=True, by="bob"), None),
        (Decision(approve=False, by="bob"), "access_denied"),
        (Decision(approve=1, by="bob"), "access_denied"),  # type: ignore[arg-type]  # only True is a yes
        (None, "authorization_pending"),
        (ValueError("the chat is down"), "authorization_pending"),
    ],
)
@in_a_loop
async def test_a_callback_asks_the_person(
    tmp_path: Path, answer: Decision | Exception | None, code: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[Approval] = []

    async def callback(approval: Approval) -> Decision | None:
        shown.append(approval)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = authority(tmp_path, replace(RULES, ask=callback))
    assert refusal(await server.post(PLANNER, ask())) == (400, "authorization_pending")
    for _ in range(100):  # until what it said has been written
        await asyncio.sleep(0.02)
        if not server.store.approvals.waiting(now=NOW) or answer is None or caplog.records:
            break
    answered = await server.post(PLANNER, ask())
    assert len(shown) == 1
    if code is None:
        assert answered.status_code == 200
        assert server.trail.last["approved_by"] == "bob"
    else:
        assert refusal(answered) == (400, code)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ()},
        {"scopes": ("no scope",)},
        {"scopes": ("a:b",), "lifetime": timedelta(0)},
        {"scopes": ("a:b",), "lifetime": timedelta(days=2)},
    ],
)
def test_rules_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ApprovalRules(**wrong)
