"""Revocation: what a client may end, and what dies with it. RFC 7009. Attacks: tests/attacks."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.authority import BILLING, LEDGER, PLANNER, Authority, ask, exchange


async def revoke(authority: Authority, agent: str, token: str, **form: str) -> httpx.Response:
    async with authority.http(agent) as http:
        return await http.post("/revoke", data={"client_id": agent, "token": token, **form})


def is_revoked(authority: Authority, token: str, audience: str, holder: str) -> bool:
    issued = authority.store.tokens.find(authority.validate(token, audience=audience, holder=holder).token_id)
    assert issued is not None
    return issued.revoked


def test_a_client_ends_its_token_and_all_that_came_from_it(authority: Authority) -> None:
    async def work() -> None:
        first, other = await authority.token(PLANNER, ask()), await authority.token(PLANNER, ask())
        second = await authority.token(BILLING, exchange(first))
        answer = await revoke(authority, PLANNER, first, token_type_hint="refresh_token")
        assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (200, b"", "no-store")
        last = authority.trail.last
        assert (last["event"], last["decision"], last["revoked"], last["subject"]) == (
            "revocation", "allow", "2", PLANNER
        )  # fmt: skip
        assert is_revoked(authority, first, BILLING, PLANNER)
        assert is_revoked(authority, second, LEDGER, BILLING)
        assert not is_revoked(authority, other, BILLING, PLANNER)
        assert (await revoke(authority, PLANNER, first)).status_code == 200
        assert authority.trail.last["revoked"] == "0"

    asyncio.run(work())


def test_the_child_alone_is_its_own_holders_to_end(authority: Authority) -> None:
    async def work() -> None:
        first = await authority.token(PLANNER, ask())
        second = await authority.token(BILLING, exchange(first))
        assert (await revoke(authority, BILLING, second)).status_code == 200
        assert is_revoked(authority, second, LEDGER, BILLING)
        assert not is_revoked(authority, first, BILLING, PLANNER)

    asyncio.run(work())


@pytest.mark.parametrize("token", ["unknown", "a.b.c", "x" * 9000], ids=["opaque", "no JWT", "too long"])
def test_what_is_no_valid_token_needs_no_revoking(authority: Authority, token: str) -> None:
    assert asyncio.run(revoke(authority, PLANNER, token)).status_code == 200
    last = authority.trail.last
    assert (last["decision"], last["found"], last["revoked"]) == ("allow", "token.malformed", "0")


def test_what_has_expired_is_revoked_for_what_came_from_it(authority: Authority) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        issued = authority.validate(token, audience=BILLING, holder=PLANNER).token_id
        authority.clock.advance(minutes=10)
        assert (await revoke(authority, PLANNER, token)).status_code == 200
        row = authority.store.tokens.find(issued)
        assert row is not None and row.revoked
        assert (authority.trail.last["jti"], authority.trail.last["revoked"]) == (issued, "1")

    asyncio.run(work())
