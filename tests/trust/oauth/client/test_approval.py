"""The client's side of human approval: what it waits for, for how long, and what it does with the token."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import ISSUER, PLANNER, Authority
from tests.trust.oauth.client.servers import AGENT, counted, run, source_of
from trust.errors import ApprovalRequired, TokenRequestRefused
from trust.oauth.client.authority import APPROVAL_INTERVAL, refusal
from trust.oauth.server import approvals as approvals_module
from trust.oauth.server.approvals import ApprovalRules

CHALLENGE = 'Bearer error="insufficient_user_authentication", acr_values="urn:a2a-trust:acr:approved"'


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setattr(approvals_module, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr("trust.oauth.client.authority.APPROVAL_INTERVAL", 0.02)  # what a fraction counts as
    return Authority(tmp_path, approvals=ApprovalRules(scopes=("approve:x",)))


def decide(authority: Authority, *, approve: bool = True) -> str:
    (waiting,) = authority.store.approvals.waiting(now=authority.clock.now)
    authority.store.approvals.decide(waiting.approval_id, approve=approve, by="alice", now=authority.clock.now)
    return waiting.asked.message


async def pending_of(auth: Any) -> ApprovalRequired:
    with pytest.raises(ApprovalRequired) as caught:
        await auth.token()
    return caught.value


def test_the_person_is_told_and_the_token_is_kept_to_its_end(authority: Authority) -> None:
    async def main() -> None:
        auth = source_of(authority, authority.http(PLANNER)).needing_approval("the books of May")
        pending = await pending_of(auth)
        assert pending.expires_in == 900 and pending.error == "authorization_pending"
        waiting = asyncio.create_task(auth.approved(pending))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert decide(authority) == "the books of May"
        token = await waiting
        assert await auth.token() is token
        # Not renewed ahead of its time: a person would be asked for nothing.
        authority.clock.now = token.expires_at - timedelta(seconds=1)
        assert await auth.token() is token
        await asyncio.sleep(0.1)
        assert authority.store.approvals.waiting(now=authority.clock.now) == []
        authority.clock.now = token.expires_at
        assert (await pending_of(auth)).approval_id != pending.approval_id

    run(main())


def test_a_no_ends_the_waiting(authority: Authority) -> None:
    async def main() -> None:
        auth = source_of(authority, authority.http(PLANNER)).needing_approval("")
        pending = await pending_of(auth)
        decide(authority, approve=False)
        with pytest.raises(TokenRequestRefused) as refused:
            await auth.approved(pending)
        assert type(refused.value) is TokenRequestRefused
        assert refused.value.error == "access_denied"
        assert str(refused.value) == f"a person has said no: got approval {pending.approval_id}"

    run(main())


def test_a_no_is_told_to_whoever_asks_once_more(authority: Authority) -> None:
    async def main() -> None:
        auth = source_of(authority, authority.http(PLANNER)).needing_approval("")
        await pending_of(auth)
        decide(authority, approve=False)
        with pytest.raises(TokenRequestRefused, match="got access_denied: a person or a policy has said no"):
            await auth.token()

    run(main())


def test_a_wait_is_one_line_in_the_log(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> ApprovalRequired:
        http, seen = counted(authority)
        auth = source_of(authority, http).needing_approval("")
        pending = await pending_of(auth)
        waiting = asyncio.create_task(auth.approved(pending))
        async with asyncio.timeout(20):
            while seen.tokens < 5:
                await asyncio.sleep(0.01)
            decide(authority)
            await waiting
        return pending

    pending = run(main())
    assert pending.approval_id and f"got {pending.approval_id};" in str(pending)
    lines = [record.getMessage() for record in caplog.records if record.name == "a2a_trust.oauth"]
    assert [line for line in lines if "ApprovalRequired" in line] == [
        f"no new token from {ISSUER}: ApprovalRequired: {pending}"
    ]


def test_nobody_waits_for_ever(authority: Authority) -> None:
    async def main() -> None:
        auth = source_of(authority, authority.http(PLANNER)).needing_approval("")
        pending = await pending_of(auth)
        pending.expires_in = 1
        started = time.monotonic()
        with pytest.raises(ApprovalRequired) as caught:
            await auth.approved(pending)
        assert caught.value is pending
        assert time.monotonic() - started >= 1

    run(main())


def test_a_resource_that_wants_an_approval_gets_one_and_nobody_else_is_asked(authority: Authority) -> None:
    """The first request raises, the one after the approval goes through, and so do all until the token ends."""
    seen: list[str] = []

    async def resource(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        approved = len(set(seen)) > 1
        return httpx.Response(200) if approved else httpx.Response(401, headers={"www-authenticate": CHALLENGE})

    async def main() -> None:
        source = source_of(authority, authority.http(PLANNER))
        async with httpx.AsyncClient(transport=httpx.MockTransport(resource), auth=source) as http:
            with pytest.raises(ApprovalRequired) as caught:
                await http.post(AGENT, content=b"x")
            decide(authority)
            await source.approved(caught.value)
            assert [(await http.post(AGENT, content=b"x")).status_code for _ in range(3)] == [200] * 3
        assert len(set(seen)) == 2
        assert authority.store.approvals.waiting(now=authority.clock.now) == []

    run(main())


def test_what_an_approved_token_is_refused_for_is_not_sent_again(authority: Authority) -> None:
    """A resource that always wants an approval: the same token once more would be the same request, executed twice."""
    seen: list[str] = []

    async def resource(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, headers={"www-authenticate": CHALLENGE})

    async def main() -> None:
        source = source_of(authority, authority.http(PLANNER))
        async with httpx.AsyncClient(transport=httpx.MockTransport(resource), auth=source) as http:
            with pytest.raises(ApprovalRequired) as caught:
                await http.post(AGENT, content=b"x")
            decide(authority)
            await source.approved(caught.value)
            seen.clear()
            assert (await http.post(AGENT, content=b"x")).status_code == 401
        assert len(seen) == 1

    run(main())


def test_a_restart_in_the_middle_asks_nobody_ahead_of_time(authority: Authority) -> None:
    """The new process has not seen the server's "pending", and gets the approved token at once."""

    async def main() -> None:
        await pending_of(source_of(authority, authority.http(PLANNER)).needing_approval(""))
        decide(authority)
        auth = source_of(authority, authority.http(PLANNER)).needing_approval("")
        token = await auth.token()
        authority.clock.now = token.expires_at - timedelta(seconds=1)
        assert await auth.token() is token
        await asyncio.sleep(0.1)
        assert authority.store.approvals.waiting(now=authority.clock.now) == []

    run(main())


def test_a_challenge_of_another_kind_asks_nobody(authority: Authority) -> None:
    async def main() -> None:
        source = source_of(authority, authority.http(PLANNER))
        for challenge in (
            CHALLENGE.replace("urn:a2a-trust:acr:approved", "urn:gold"),
            'Bearer error="invalid_request"',
        ):
            answer = httpx.Response(401, headers={"www-authenticate": challenge})
            transport = httpx.MockTransport(lambda _, answer=answer: answer)
            async with httpx.AsyncClient(transport=transport, auth=source) as http:
                assert (await http.post(AGENT, content=b"x")).status_code == 401
        assert authority.store.approvals.waiting(now=authority.clock.now) == []

    run(main())


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"approval_id": "AB-CD", "interval": 7, "expires_in": 60}, ("AB-CD", 7, 60)),
        ({}, ("", APPROVAL_INTERVAL, 0)),
        ({"approval_id": "\x1b[2J", "interval": 0, "expires_in": -1}, ("", APPROVAL_INTERVAL, 0)),
        ({"approval_id": 7, "interval": True, "expires_in": "60"}, ("", APPROVAL_INTERVAL, 0)),
        ({"approval_id": "x" * 65, "interval": 1e9, "expires_in": 10**9}, ("", APPROVAL_INTERVAL, 0)),
    ],
)
def test_what_the_server_says_of_it_is_bounded(members: dict[str, Any], expected: tuple[str, int, int]) -> None:
    error = refusal("refused", 400, {"error": "authorization_pending", **members})
    assert isinstance(error, ApprovalRequired)
    assert (error.approval_id, error.interval, error.expires_in) == expected
