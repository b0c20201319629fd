"""Refresh tokens, of servers that give them: used where there is one, and never needed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.authority import BILLING, LEDGER, PLANNER, Clock
from tests.forge import Forge
from tests.trust.oauth.client.servers import CREDENTIALS, SCOPES, Fake, answers, run, settled
from trust.errors import AuthorizationServerUnavailable
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.sources import Live


class Refreshing(Fake):
    """Numbers its tokens; a refresh token is good once, and `rotates` says whether there is a new one."""

    def __init__(self, *, rotates: bool = True) -> None:
        super().__init__()
        self.rotates, self.given, self.good = rotates, 0, set[str]()
        self.token_answer = self._answer

    def _answer(self) -> httpx.Response:
        form = self.forms("/token")[-1]
        self.given += 1
        members: dict[str, Any] = {**self.token, "access_token": f"token-{self.given}"}
        if form["grant_type"] != "refresh_token":
            members["issued_token_type"] = ACCESS_TOKEN_TYPE
        elif form["refresh_token"] not in self.good:
            return httpx.Response(400, json={"error": "invalid_grant"})
        elif not self.rotates:
            return httpx.Response(200, json=members)
        else:
            self.good.remove(form["refresh_token"])
        self.good.add(f"refresh-{self.given}")
        return httpx.Response(200, json={**members, "refresh_token": f"refresh-{self.given}"})

    @property
    def grants(self) -> list[str]:
        return [form.get("refresh_token", form["grant_type"].rpartition(":")[2]) for form in self.forms("/token")]


def test_a_refresh_token_is_used_once_and_replaced_by_the_new_one() -> None:
    server, clock = Refreshing(), Clock()

    async def work() -> None:
        source = server.source(clock=clock)
        token = await source.token()
        assert "refresh-1" not in repr(token) + repr(vars(source._cache))
        for _ in range(3):
            clock.advance(minutes=9, seconds=30)  # before its end, in the background
            await source.token()
            await settled(source)
            clock.advance(minutes=10)  # and after it
            await source.token()

    run(work())
    assert server.grants == ["client_credentials", *(f"refresh-{n}" for n in range(1, 7))]
    assert server.forms("/token")[1] == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-1",
        "client_id": PLANNER,
        "resource": BILLING,
        "scope": " ".join(SCOPES),
    }


def test_one_that_is_not_replaced_is_used_again() -> None:
    server, clock = Refreshing(rotates=False), Clock()

    async def work() -> None:
        source = server.source(clock=clock)
        for _ in range(3):
            await source.token()
            clock.advance(minutes=10)

    run(work())
    assert server.grants == ["client_credentials", "refresh-1", "refresh-1"]


@pytest.mark.parametrize("how", ["refused", "narrower", "broken"])
def test_without_a_good_one_we_ask_as_before(how: str) -> None:
    server, clock = Refreshing(), Clock()
    good = server.token_answer

    def answer() -> httpx.Response:
        if server.forms("/token")[-1]["grant_type"] != "refresh_token":
            assert good is not None
            return good()
        if how == "narrower":
            return httpx.Response(200, json={**server.token, "scope": "agent:execute"})
        return httpx.Response(400, json={"error": "invalid_grant"} if how == "refused" else {})

    server.token_answer = answer

    async def work() -> None:
        source = server.source(clock=clock)
        await source.token()
        clock.advance(minutes=10)
        assert (await source.token()).value == "token-2"

    run(work())
    assert server.grants == ["client_credentials", "refresh-1", "client_credentials"]


def test_a_server_that_is_down_is_not_asked_twice() -> None:
    server, clock = Refreshing(), Clock()

    async def work() -> None:
        source = server.source(clock=clock)
        await source.token()
        clock.advance(minutes=10)
        server.token_answer = answers(503)
        with pytest.raises(AuthorizationServerUnavailable):
            await source.token()

    run(work())
    assert server.grants == ["client_credentials", "refresh-1"]


def test_another_certificate_or_a_refused_token_starts_anew() -> None:
    server, clock, live = Refreshing(), Clock(), Live(CREDENTIALS)

    async def work() -> None:
        source = server.source(clock=clock, source=live)
        token = await source.token()
        live.replace(Forge().leaf("/planner"))
        token = await source.token()
        clock.advance(minutes=1)
        assert source._cache.drop(source._ask, token)
        await source.token()

    run(work())
    assert server.grants == ["client_credentials"] * 3


def test_an_exchanged_token_is_refreshed_as_such() -> None:
    server, clock = Refreshing(), Clock()
    server.token["scope"] = "read:x"

    async def work() -> None:
        source = server.source(clock=clock)
        for _ in range(2):
            await source.exchange("subject", resource=LEDGER, scopes=["read:x"])
            clock.advance(minutes=10)

    run(work())
    assert server.grants == ["token-exchange", "refresh-1"]
