"""Tokens of one task: its own, and revoked however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, LEDGER, PLANNER, Authority, Clock, ask
from tests.trust.oauth.client.servers import AGENT, Fake, answers, counted, run, settled, source_of
from trust.errors import (
    AuthorizationServerUnavailable,
    MetadataRefused,
    TokenRequestRefused,
    TokenResponseRefused,
    TokenTaskEnded,
    TrustError,
)
from trust.oauth.client import TokenSource, task
from trust.oauth.metadata import ACCESS_TOKEN_TYPE

PATIENCE = 20


class Numbered(Fake):
    """Each token is another one."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.token["issued_token_type"] = ACCESS_TOKEN_TYPE
        self.token_answer = self._next
        self.given = 0

    def _next(self) -> httpx.Response:
        self.given += 1
        return httpx.Response(200, json={**self.token, "access_token": f"token-{self.given}"})

    @property
    def revoked(self) -> list[str]:
        return [form["token"] for form in self.forms("/revoke")]


def revoked(authority: Authority, token_id: str) -> bool:
    found = authority.store.tokens.find(token_id)
    assert found is not None
    return found.revoked


def test_a_task_has_tokens_of_its_own_which_are_revoked_when_it_ends(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        shared = await source.token()
        async with source.for_task() as auth:
            own = await auth.token()
            assert own.value != shared.value
            assert (await auth.token()).value == own.value
            token_id = authority.validate(own.value, audience=BILLING, holder=PLANNER).token_id
            assert not revoked(authority, token_id)
        assert revoked(authority, token_id)
        kept = authority.validate(shared.value, audience=BILLING, holder=PLANNER).token_id
        assert not revoked(authority, kept)
        assert seen.paths.count("/revoke") == 1
        with pytest.raises(TokenTaskEnded):
            await auth.token()
        assert await source.token() == shared

    run(work())


def test_what_a_task_exchanges_is_the_tasks_too() -> None:
    server = Numbered()

    async def work() -> None:
        source = server.source()
        async with source.for_task() as tokens:
            await tokens.token()
            server.token["scope"] = "read:x"
            await tokens.exchange("subject", resource=LEDGER, scopes=["read:x"])
            auth = tokens.on_behalf_of("another", resource=LEDGER, scopes=["read:x"], origins=[AGENT])
            await auth.token()
            async with auth.for_task() as inner:
                await inner.token()
            assert server.revoked == ["token-4"]
        assert server.revoked == ["token-4", "token-1", "token-2", "token-3"]
        assert [form["token_type_hint"] for form in server.forms("/revoke")] == ["access_token"] * 4

    run(work())


def test_what_was_renewed_meanwhile_is_revoked_too_and_what_has_expired_is_not() -> None:
    server, clock = Numbered(), Clock()

    async def work() -> None:
        async with server.source(clock=clock).for_task() as auth:
            await auth.token()
            clock.advance(minutes=9, seconds=30)
            await auth.token()
            await settled(auth)
            clock.advance(seconds=29)
            assert (await auth.token()).value == "token-2"
        assert server.revoked == ["token-1", "token-2"]
        async with server.source(clock=clock).for_task() as auth:
            await auth.token()
            clock.advance(minutes=10)
            await auth.token()
        assert server.revoked[2:] == ["token-4"]

    run(work())


def test_a_task_that_fails_keeps_its_error(caplog: pytest.LogCaptureFixture) -> None:
    server = Numbered()

    async def work() -> None:
        for answer in (None, answers(503)):
            server.revoke_answer = answer
            with pytest.raises(KeyError, match="its own"):
                async with server.source().for_task() as auth:
                    await auth.token()
                    raise KeyError("its own")
        assert server.revoked == ["token-1", "token-2"]

    run(work())
    assert caplog.text.count("did not revoke a token of a task") == 1
    assert "AuthorizationServerUnavailable" in caplog.text and "token-2" not in caplog.text


def test_a_task_that_is_cancelled_revokes_first_and_being_cancelled_again_does_not_stop_it() -> None:
    server = Numbered()

    async def work() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()
        going, ended = asyncio.Event(), asyncio.Event()

        async def held(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/revoke":
                asked.set()
                await answer.wait()
            try:
                return await server(request)
            finally:
                if request.url.path == "/revoke":
                    ended.set()

        async def worker() -> None:
            http = httpx.AsyncClient(transport=httpx.MockTransport(held))
            async with server.source(http=http).for_task() as auth:
                await auth.token()
                going.set()
                await asyncio.sleep(PATIENCE)

        async with asyncio.timeout(PATIENCE):
            for again in (False, True):
                for event in (asked, answer, going, ended):
                    event.clear()
                working = asyncio.create_task(worker())
                await going.wait()
                working.cancel()
                await asked.wait()
                if again:
                    working.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await working
                answer.set()
                with pytest.raises(asyncio.CancelledError):
                    await working
                await ended.wait()
        assert server.revoked == ["token-1", "token-2"]

    run(work())


def test_a_token_that_was_under_way_is_revoked_when_it_comes() -> None:
    server = Numbered()

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with server.source().for_task() as auth:
                server.delay = 0.1
                async with asyncio.timeout(0.01):
                    await auth.token()
        assert server.revoked == ["token-1"]

    run(work())


def test_a_server_that_hangs_does_not_hold_a_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task, "REVOKE_SECONDS", 0.1)
    server = Numbered()

    async def work() -> None:
        async with server.source().for_task() as auth:
            await auth.token()
            server.delay = 60

    run(work())
    assert "did not revoke 1 tokens of a task in time" in caplog.text


def test_a_client_that_was_closed_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    server = Numbered()

    async def work() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(server))
        async with server.source(http=http).for_task() as auth:
            await auth.token()
            await http.aclose()

    run(work())
    assert "did not revoke a token of a task: RuntimeError" in caplog.text


def test_a_server_that_takes_another_proof_for_revocations_is_refused_before_the_task_begins() -> None:
    server = Numbered()

    async def work() -> None:
        for methods in (["client_secret_basic"], []):
            server.metadata["revocation_endpoint_auth_methods_supported"] = methods
            with pytest.raises(MetadataRefused, match="does not take our authentication"):
                async with server.source().for_task():
                    pytest.fail("the task began")
        server.metadata["revocation_endpoint_auth_methods_supported"] = ["tls_client_auth"]
        async with server.source().for_task():
            pass

    run(work())


def test_a_server_that_revokes_nothing_is_refused_before_the_task_begins() -> None:
    server = Numbered()
    del server.metadata["revocation_endpoint"]

    async def work() -> None:
        with pytest.raises(MetadataRefused, match="revokes no tokens"):
            async with server.source().for_task():
                pytest.fail("the task began")
        async with server.source(revocation_endpoint="https://other.example/revoke").for_task() as auth:
            await auth.token()
        assert server.requests[-1].url == "https://other.example/revoke"

    run(work())


# One token, by hand.

ANSWERS: dict[str, tuple[Callable[[], httpx.Response], type[TrustError] | None]] = {
    "nothing": (answers(200), None),
    "a page": (answers(200, html="<html>"), None),
    "no": (answers(400, json={"error": "unsupported_token_type"}), TokenRequestRefused),
    "no client": (answers(401, json={"error": "invalid_client"}), TokenRequestRefused),
    "no without a code": (answers(400, json={}), TokenResponseRefused),
    "no page": (answers(404, html="<html>"), TokenResponseRefused),
    "redirect": (answers(307, headers={"location": "https://evil.example/"}), TokenResponseRefused),
    "created": (answers(201, json={}), TokenResponseRefused),
    "in trouble": (answers(503), AuthorizationServerUnavailable),
}


@pytest.mark.parametrize("row", ANSWERS)
def test_a_revocation_is_done_or_raises(row: str) -> None:
    answer, expected = ANSWERS[row]
    server = Numbered(revoke_answer=answer)

    async def work() -> None:
        source = server.source()
        token = await source.token()
        if expected is None:
            await source.revoke(token)
        else:
            with pytest.raises(TrustError) as caught:
                await source.revoke(token)
            assert type(caught.value) is expected
            assert "token-1" not in str(caught.value)
        assert (await source.token()).value == "token-2"  # either way it is not used again
        assert {request.url.host for request in server.requests} == {"auth.fleet.example"}

    run(work())


def test_a_token_that_is_not_kept_can_be_revoked_and_its_refresh_token_goes_with_it() -> None:
    server = Numbered()

    async def work() -> None:
        source: TokenSource = server.source()
        await source.revoke("somebody's")
        server.token["refresh_token"] = "again"
        token = await source.token()
        server.revoke_answer = answers(503)
        with pytest.raises(AuthorizationServerUnavailable):
            await source.revoke(token)
        await source.token()
        server.revoke_answer = None
        await source.revoke("token-2")
        await source.revoke(token)
        assert server.revoked == ["somebody's", "again", "token-1", "again", "token-2", "again", "token-1"]
        async with source.for_task() as auth:
            await auth.token()
        assert server.revoked[-2:] == ["again", "token-3"]

    run(work())


def test_at_our_server_the_children_of_a_token_die_with_it(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        billing, _ = counted(authority, BILLING)
        own = source_of(authority, billing, BILLING, resource=LEDGER, scopes=["read:rates"], origins=[AGENT])
        scopes = ask()["scope"].split()
        async with source_of(authority, http, scopes=scopes).for_task() as auth:
            parent = await auth.token()
            child = await own.exchange(parent.value, resource=LEDGER, scopes=["read:ledger.eu", "temporal:20min"])
            token_id = authority.validate(child.value, audience=LEDGER, holder=BILLING).token_id
            assert not revoked(authority, token_id)
        assert revoked(authority, token_id)

    run(work())
