"""A policy for what scopes cannot say: it takes away and never gives, and everything but a clear yes is a no."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.authority import BILLING, LEDGER, Authority, ask, exchange
from tests.forge import NOW
from tests.world import World
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    CredentialsError,
    InsufficientScope,
    PolicyDenied,
    TokenMissing,
)
from trust.gate import judge
from trust.identity import AgentID
from trust.oauth.operations import OPERATIONS, SkillScopes
from trust.oauth.policy import EXCHANGE, ISSUE, MAX_POLICY_BYTES, REQUEST, CedarPolicy, Question

W = World()
EVERYTHING = CedarPolicy("permit (principal, action, resource);")
NOTHING = CedarPolicy("forbid (principal, action, resource);")

QUESTION = Question(
    agent=AgentID.parse("spiffe://fleet.example/eu/billing"),
    action="SendMessage",
    resource="spiffe://fleet.example/ledger",
    scopes=("agent:execute", "read:ledger.eu"),
    subject="spiffe://fleet.example/planner",
    client="spiffe://fleet.example/eu/billing",
    actors=("spiffe://fleet.example/eu/billing",),
    now=datetime(2026, 11, 22, 12, 30, tzinfo=UTC),
    skill="pay",
    path="/a2a/jsonrpc",
)


def permits(condition: str) -> str:
    return f"permit (principal, action, resource) when {{ {condition} }};"


ANSWERS: dict[str, tuple[str, bool]] = {
    "everything": ("permit (principal, action, resource);", True),
    "the agent": ('permit (principal == Agent::"spiffe://fleet.example/eu/billing", action, resource);', True),
    "another agent": ('permit (principal == Agent::"spiffe://fleet.example/billing", action, resource);', False),
    "its domain": ('permit (principal in Domain::"fleet.example", action, resource);', True),
    "another domain": ('permit (principal in Domain::"example", action, resource);', False),
    "its path": (permits('principal.path like "/eu/*"'), True),
    "the operation": ('permit (principal, action == Action::"SendMessage", resource);', True),
    "another operation": ('permit (principal, action == Action::"GetTask", resource);', False),
    "the receiver": ('permit (principal, action, resource == Resource::"spiffe://fleet.example/ledger");', True),
    "another receiver": ('permit (principal, action, resource == Resource::"spiffe://fleet.example/l");', False),
    "a scope": (permits('context.scopes.contains("read:ledger.eu")'), True),
    "another scope": (permits('context.scopes.contains("read:ledger")'), False),
    "the subject": (permits('context.subject == "spiffe://fleet.example/planner"'), True),
    "the client": (permits('context.client == "spiffe://fleet.example/eu/billing"'), True),
    "an actor": (permits('context.actors.contains("spiffe://fleet.example/eu/billing")'), True),
    "nobody between": (permits("context.actors.isEmpty()"), False),
    "the skill": (permits('context has skill && context.skill == "pay"'), True),
    "the path": (permits('context has path && context.path == "/a2a/jsonrpc"'), True),
    "before noon": (permits('context.now.toTime() < duration("12h")'), False),
    "before one": (permits('context.now.toTime() < duration("13h")'), True),
    "this year": (permits('context.now < datetime("2027-01-01")'), True),
    "forbidden among others": ("permit (principal, action, resource); forbid (principal, action, resource);", False),
    "forbidden for another": (
        'permit (principal, action, resource); forbid (principal, action == Action::"GetTask", resource);',
        True,
    ),
    "nothing permits": ("forbid (principal, action, resource);", False),
    # 2^63: Cedar leaves a policy out that fails, and would allow this.
    "a forbid that fails": (
        "permit (principal, action, resource);"
        " forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };",
        False,
    ),
    "a permit that fails": (permits("9223372036854775807 + 1 == 0"), False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_policy_answers(name: str) -> None:
    text, allowed = ANSWERS[name]
    policy = CedarPolicy(text)
    if allowed:
        policy.check(QUESTION)
    else:
        with pytest.raises(PolicyDenied) as caught:
            policy.check(QUESTION)
        assert type(caught.value) is PolicyDenied and "\n" not in str(caught.value)


def test_the_refusal_names_the_policy() -> None:
    text = '@id("no payments on Sundays") forbid (principal, action, resource);'
    with pytest.raises(PolicyDenied, match="no payments on Sundays"):
        CedarPolicy(text).check(QUESTION)


@pytest.mark.parametrize("subject", ['"', "\\", 'x" || true || "', "a\nb", "\x00", "\u2028", "ü", "*"], ids=ascii)
def test_what_a_caller_is_called_cannot_be_read_as_a_policy(subject: str) -> None:
    policy = CedarPolicy(permits('context.subject == "planner"'))
    policy.check(dataclasses.replace(QUESTION, subject="planner"))
    with pytest.raises(PolicyDenied):
        policy.check(dataclasses.replace(QUESTION, subject=subject, skill=subject, path=subject, resource=subject))


@pytest.mark.parametrize("action", [ISSUE, EXCHANGE, REQUEST, *sorted(OPERATIONS)])
def test_every_action_can_be_asked_about(action: str) -> None:
    only = CedarPolicy(f'permit (principal, action == Action::"{action}", resource);')
    only.check(dataclasses.replace(QUESTION, action=action, skill=None, path=None))
    with pytest.raises(PolicyDenied):
        only.check(dataclasses.replace(QUESTION, action=REQUEST if action != REQUEST else ISSUE))


MISTAKES: dict[str, Any] = {
    "not a policy": "permit (",
    "nothing": "",
    "a comment alone": "// permit (principal, action, resource);",
    "a template alone": "permit (principal == ?principal, action, resource);",
    "a template among them": permits("true") + "forbid (principal == ?principal, action, resource);",
    "an action that does not exist": 'permit (principal, action == Action::"Send", resource);',
    "a member that does not exist": permits('context.scope == "a:b"'),
    "another type": permits("context.subject == 1"),
    "a member that need not be there": permits('context.skill == "pay"'),
    "another kind of principal": 'permit (principal == User::"x", action, resource);',
    "too large": "permit (principal, action, resource);" + " " * MAX_POLICY_BYTES,
    "bytes": b"permit (principal, action, resource);",
    "a path": Path("agent.cedar"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_policy_is_told_in_one_line_when_it_is_read(mistake: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CedarPolicy(MISTAKES[mistake])
    assert type(caught.value) is ConfigurationError
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_of_policies(tmp_path: Path) -> None:
    path = tmp_path / "policies.cedar"
    path.write_text("permit (principal, action, resource);")
    CedarPolicy.load(path).check(QUESTION)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        CedarPolicy.load(path)
    with pytest.raises(CredentialsError, match="cannot read"):
        CedarPolicy.load(tmp_path / "none.cedar")
    path.write_text(" " * (MAX_POLICY_BYTES + 1))
    with pytest.raises(CredentialsError, match="too large"):
        CedarPolicy.load(path)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "cedarpy":
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'a2a-trust\[cedar\]'"):
        CedarPolicy("permit (principal, action, resource);")


# At the gate


class Recorder:
    """A policy that remembers what it was asked, and then does as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[Question] = []
        self._error = error

    def check(self, question: Question) -> None:
        self.asked.append(question)
        if self._error:
            raise self._error


def test_the_gate_asks_about_what_it_has_verified() -> None:
    recorder = Recorder()
    scopes = SkillScopes(default="agent:execute", jsonrpc="/a2a/jsonrpc")
    token = W.token(sub="spiffe://fleet.example/user", act={"sub": str(W.planner.agent_id)})
    admission = W.admit(W.request(token=token), scope=scopes, permit=recorder)
    assert recorder.asked == [
        Question(
            agent=W.planner.agent_id,
            action="SendMessage",
            resource=str(W.billing.agent_id),
            scopes=admission.caller.scopes,
            subject="spiffe://fleet.example/user",
            client=str(W.planner.agent_id),
            actors=(str(W.planner.agent_id),),
            now=NOW,
            path="/a2a/jsonrpc",
        )
    ]
    W.admit(W.request(), permit=recorder)  # with one scope for all, no operation is known
    assert recorder.asked[1].action == REQUEST


def test_a_policy_never_gives() -> None:
    """It is not even asked about what the checks before it refuse."""
    recorder = Recorder()
    for facts, error in (
        (W.request(token=W.token(scope="agent:read")), InsufficientScope),
        (W.request(token=None), TokenMissing),
        (W.request(method="PUT"), BindingMismatch),
    ):
        refusal = judge(facts, W.policy(permit=recorder))
        assert type(getattr(refusal, "error", None)) is error
    assert recorder.asked == []


@pytest.mark.parametrize(
    "permit", [NOTHING, Recorder(PolicyDenied("no")), Recorder(KeyError("secret"))], ids=["cedar", "denies", "fails"]
)
def test_a_policy_that_denies_or_fails_refuses_the_request_for_good(permit: Any) -> None:
    facts, policy = W.request(), W.policy(permit=permit)
    refusal = judge(facts, policy)
    error = getattr(refusal, "error", None)
    assert type(error) is PolicyDenied and (error.status, error.code) == (403, "access_denied")
    assert "secret" not in str(error)
    assert getattr(refusal, "message", None) is not None  # remembered, so that the refusal may be signed
    W.admit(W.request(), permit=EVERYTHING)


# At the authorization server


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens.cedar"
    file.write_text("permit (principal, action, resou")
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(str(file))}: Cedar policies: got Policy parse error"):
        CedarPolicy.load(file)


def test_the_server_asks_before_it_issues(tmp_path: Path) -> None:
    recorder = Recorder()
    authority = Authority(tmp_path, permit=recorder)

    async def go() -> None:
        token = await authority.token("/planner", ask())
        await authority.token("/billing", exchange(token))

    asyncio.run(go())
    issue, exchanged = recorder.asked
    assert (issue.action, issue.resource, issue.subject, issue.actors) == (ISSUE, BILLING, str(issue.agent), ())
    assert set(issue.scopes) == {"agent:execute", "read:ledger.eu", "delegate:billing", "temporal:20min"}
    assert (exchanged.action, exchanged.resource, exchanged.agent) == (EXCHANGE, LEDGER, AgentID.parse(BILLING))
    assert (exchanged.subject, exchanged.actors) == (issue.subject, (BILLING,))


def test_a_policy_that_denies_or_fails_issues_nothing(tmp_path: Path) -> None:
    async def go(authority: Authority) -> None:
        answer = await authority.post("/planner", ask())
        assert (answer.status_code, answer.json()) == (400, {"error": "access_denied"})
        assert authority.trail.last["check"] == "grant.policy"
        refused = await authority.post("/planner", ask(scope="admin:everything"))
        assert refused.json() == {"error": "invalid_scope"}  # by the registration, whatever a policy would say

    for permit in (NOTHING, Recorder(RuntimeError("secret"))):
        authority = Authority(tmp_path, permit=permit)
        asyncio.run(go(authority))
        authority.serve(permit=EVERYTHING)
        assert asyncio.run(authority.token("/planner", ask()))
