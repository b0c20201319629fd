"""Introspection: who is told what. RFC 7662, RFC 9701."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, ISSUER, LEDGER, PLANNER, Authority, ask, exchange
from tests.forge import NOW
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey
from trust.oauth.server.introspection import JWT_MEDIA_TYPE, TYPE
from trust.signing import jws

JWT = {"accept": JWT_MEDIA_TYPE}
INACTIVE = {"active": False}


async def introspect(authority: Authority, agent: str | None, token: str, **headers: str) -> httpx.Response:
    async with authority.http(agent) as http:
        return await http.post("/introspect", data={"client_id": agent or "", "token": token}, headers=headers)


def told(answer: httpx.Response) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    found: dict[str, Any] = answer.json()
    return found


def test_holder_and_receiver_are_told_what_the_token_says(authority: Authority) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        access = authority.validate(token, audience=BILLING, holder=PLANNER)
        expected = {
            "active": True,
            "scope": "agent:execute read:ledger.eu delegate:billing temporal:20min",
            "client_id": PLANNER,
            "sub": PLANNER,
            "aud": BILLING,
            "iss": ISSUER,
            "iat": int(NOW.timestamp()),
            "exp": int(access.expires_at.timestamp()),
            "jti": access.token_id,
            "token_type": "Bearer",
            "cnf": {"x5t#S256": authority.peer(PLANNER).thumbprint},
        }
        for agent in (PLANNER, BILLING):
            assert told(await introspect(authority, agent, token)) == expected
            last = authority.trail.last
            assert (last["event"], last["decision"], last["active"], last["found"], last["jti"]) == (
                "introspection", "allow", "yes", "", access.token_id
            )  # fmt: skip

    asyncio.run(work())


def test_of_an_exchanged_token_it_is_told_who_acts(authority: Authority) -> None:
    async def work() -> None:
        first = await authority.token(PLANNER, ask())
        second = await authority.token(BILLING, exchange(first))
        found = told(await introspect(authority, LEDGER, second))
        assert (found["sub"], found["act"], found["client_id"]) == (PLANNER, {"sub": BILLING}, BILLING)
        # Whose token it came from has nothing to do with it any more.
        assert told(await introspect(authority, PLANNER, second)) == INACTIVE

    asyncio.run(work())


def test_what_is_not_valid_is_not_active(authority: Authority) -> None:
    async def work() -> None:
        first = await authority.token(PLANNER, ask())
        second = await authority.token(BILLING, exchange(first))
        authority.store.tokens.revoke(authority.validate(first, audience=BILLING, holder=PLANNER).token_id)
        for token in (first, second):
            assert told(await introspect(authority, BILLING, token)) == INACTIVE
        assert authority.trail.last["active"] == "no"
        token = await authority.token(PLANNER, ask())
        assert told(await introspect(authority, BILLING, token))["active"]
        authority.clock.advance(minutes=10)
        assert told(await introspect(authority, BILLING, token)) == INACTIVE

    asyncio.run(work())


async def _revoked(authority: Authority, token: str) -> str:
    authority.store.tokens.revoke(authority.validate(token, audience=BILLING, holder=PLANNER).token_id)
    return token


async def _expired(authority: Authority, token: str) -> str:
    authority.clock.advance(minutes=10)
    return token


async def _again(authority: Authority, token: str, key: SigningKey | None = None, **changes: str) -> str:
    claims = dict(authority.validate(token, audience=BILLING, holder=PLANNER).claims)
    return sign_access_token({**claims, **changes}, key or authority.key)


async def _forged(authority: Authority, token: str) -> str:
    head, payload, _ = token.split(".")
    *_, signature = (await authority.token(PLANNER, ask())).split(".")
    return f"{head}.{payload}.{signature}"


INACTIVE_FOR: dict[str, tuple[str, str, Callable[[Authority, str], Awaitable[str]]]] = {
    "no JWT": (BILLING, "token.malformed", lambda a, token: asyncio.sleep(0, "unknown")),
    "forged": (BILLING, "token.signature", _forged),
    "of another server": (BILLING, "token.key", lambda a, token: _again(a, token, SigningKey.generate())),
    "another client's": (LEDGER, "introspection.client", lambda a, token: asyncio.sleep(0, token)),
    "expired": (BILLING, "introspection.time", _expired),
    "revoked": (BILLING, "introspection.revoked", _revoked),
    "not in the store": (BILLING, "introspection.revoked", lambda a, token: _again(a, token, jti="another")),
}


@pytest.mark.parametrize("name", INACTIVE_FOR)
def test_the_trail_says_why_a_token_is_not_active_and_the_answer_does_not(name: str, authority: Authority) -> None:
    agent, found, present = INACTIVE_FOR[name]

    async def work() -> None:
        token = await present(authority, await authority.token(PLANNER, ask()))
        assert told(await introspect(authority, agent, token)) == INACTIVE

    asyncio.run(work())
    last = authority.trail.last
    assert (last["decision"], last["active"], last["found"]) == ("allow", "no", found)
    assert bool(last["jti"]) is found.startswith("introspection.")  # of a token that is ours, it is known which one


def test_the_signed_answer_is_for_the_one_who_asked(authority: Authority) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        for presented in (token, "unknown"):
            plain = told(await introspect(authority, BILLING, presented))
            answer = await introspect(authority, BILLING, presented, accept=f"text/html, {JWT_MEDIA_TYPE.upper()};q=1")
            assert (answer.status_code, answer.headers["content-type"]) == (200, JWT_MEDIA_TYPE)
            assert answer.headers["cache-control"] == "no-store"
            parsed = jws.parse_compact(answer.text, algorithms=["ES256"], typ=TYPE)
            assert parsed.header["kid"] == authority.key.kid
            claims = json.loads(parsed.verify(authority.key.private_key.public_key()))
            assert claims == {
                "iss": ISSUER,
                "aud": BILLING,
                "iat": int(NOW.timestamp()),
                "token_introspection": plain,
            }

    asyncio.run(work())


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/json", "application/*", "", ",", f"{JWT_MEDIA_TYPE};q=0", f"{JWT_MEDIA_TYPE}; Q=0.000"],
)
def test_without_being_asked_for_it_is_not_signed(authority: Authority, accept: str) -> None:
    answer = asyncio.run(introspect(authority, BILLING, "unknown", accept=accept))
    assert (answer.headers["content-type"], told(answer)) == ("application/json", INACTIVE)
