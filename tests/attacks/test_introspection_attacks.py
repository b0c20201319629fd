"""Introspection and revocation, attacked: as an oracle, by strangers, with what are no access tokens.

Whoever may not know learns nothing from the answer, and the store is not asked, so that no time tells it either.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest

from tests.authority import BILLING, ISSUER, LEDGER, PLANNER, STRANGER, Authority, ask, exchange
from tests.forge import NOW
from trust.errors import (
    ClientRefused,
    GrantRequestMalformed,
    RequestTooLarge,
    RevocationRefused,
    TokenNotRevocable,
    TrustError,
)
from trust.oauth.claims import sign_access_token
from trust.oauth.denylist.document import LIST_SECONDS, RevokedTokens, sign_list
from trust.oauth.keys import SigningKey
from trust.oauth.server.introspection import sign_introspection
from trust.oauth.server.store import Issued
from trust.signing import jws

Forged = Callable[[Authority, str], str]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def post(authority: Authority, path: str, agent: str | None, **form: str) -> httpx.Response:
    async with authority.http(agent) as http:
        return await http.post(path, data={"client_id": agent or PLANNER, **form})


def claims_of(token: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(jws.decode(token.split(".")[1]))
    return found


def list_of(authority: Authority) -> str:
    seconds = int(NOW.timestamp())
    times = {"issued_at": seconds, "expires_at": seconds + LIST_SECONDS}
    return sign_list(RevokedTokens(issuer=ISSUER, sequence=1, **times, tokens={}), authority.key)


def answer_of(authority: Authority, token: str) -> str:
    """An introspection answer about the token: signed by the server, and full of its claims."""
    told = {"active": True, **claims_of(token)}
    return sign_introspection(told, issuer=ISSUER, audience=PLANNER, now=NOW, key=authority.key)


def with_claims(authority: Authority, token: str, **changes: object) -> str:
    """Signed by the server, with other claims; None leaves one out."""
    claims = {**claims_of(token), **changes}
    return sign_access_token({name: value for name, value in claims.items() if value is not None}, authority.key)


def with_typ(authority: Authority, token: str, typ: str) -> str:
    key = authority.key
    header = {"alg": key.alg, "typ": typ, "kid": key.kid}
    return jws.sign_compact(json.dumps(claims_of(token)).encode(), key=key.private_key, header=header)


NOT_OURS: dict[str, Forged] = {
    "signed by another key": lambda _, token: sign_access_token(claims_of(token), SigningKey.generate()),
    "signed by a key that takes our kid": lambda here, token: sign_access_token(
        claims_of(token), SigningKey(kid=here.key.kid, alg="ES256", private_key=SigningKey.generate().private_key)
    ),
    "of another issuer": lambda here, token: with_claims(here, token, iss="https://x.example"),
    "never issued": lambda here, token: with_claims(here, token, jti="made-up"),
    "not yet valid": lambda here, token: with_claims(here, token, nbf=NOW.timestamp() + 60),
    "expired": lambda here, token: with_claims(here, token, iat=0, exp=1),
    "unbound": lambda here, token: with_claims(here, token, cnf=None),
    "of a namesake": lambda here, token: with_claims(here, token, client_id=PLANNER + "/", aud=PLANNER + "/"),
    "unsigned": lambda _, token: f"{token.rpartition('.')[0]}.",
    "one byte changed": lambda _, token: token[:-20] + ("A" if token[-20] != "A" else "B") + token[-19:],
    "a second spelling": lambda _, token: token + "=",
    "with white space": lambda _, token: f" {token}",
    "an ID token": lambda here, token: with_typ(here, token, "JWT"),
    "an introspection answer": answer_of,
    "a list of revoked tokens": lambda here, _: list_of(here),
    "nothing like a token": lambda _here, _: "..",
    "as long as a form may be": lambda _here, _: "x" * 15_000,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_a_token_of_ours_is_inactive_and_nothing_else(authority: Authority, name: str) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        assert (await post(authority, "/introspect", PLANNER, token=token)).json()["active"] is True
        answer = await post(authority, "/introspect", PLANNER, token=NOT_OURS[name](authority, token))
        assert (answer.status_code, answer.json()) == (200, {"active": False})

    asyncio.run(work())


def test_a_stranger_to_a_token_learns_nothing_not_even_by_the_time_it_takes(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        revoked = await authority.token(PLANNER, ask())
        authority.store.tokens.revoke(str(claims_of(revoked)["jti"]))
        asked: list[str] = []
        find = authority.store.tokens.find

        def found(token_id: str) -> Issued | None:
            asked.append(token_id)
            return find(token_id)

        monkeypatch.setattr(authority.store.tokens, "find", found)
        for presented in (token, revoked, "unknown"):
            answer = await post(authority, "/introspect", LEDGER, token=presented)
            assert (answer.status_code, answer.json()) == (200, {"active": False})
        assert asked == []
        await post(authority, "/introspect", BILLING, token=token)
        assert asked == [claims_of(token)["jti"]]

    asyncio.run(work())


STRANGERS: dict[str, tuple[str | None, dict[str, str], type[TrustError]]] = {
    # name: (who connects, parameters, the refusal)
    "no certificate": (None, {}, ClientRefused),
    "not registered": (STRANGER, {"client_id": STRANGER}, ClientRefused),
    "as the holder": (STRANGER, {"client_id": PLANNER}, ClientRefused),
    "as the receiver": (LEDGER, {"client_id": BILLING}, ClientRefused),
    "no token": (PLANNER, {"token": ""}, GrantRequestMalformed),
    "too large": (PLANNER, {"token": "x" * 17_000}, RequestTooLarge),
}


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
@pytest.mark.parametrize("name", STRANGERS)
def test_who_is_not_authenticated_is_refused_before_the_token_is_looked_at(
    authority: Authority, path: str, name: str
) -> None:
    agent, form, expected = STRANGERS[name]

    async def work() -> None:
        token, before = await authority.token(PLANNER, ask()), authority.store.tokens.revocations()
        answer = await post(authority, path, agent, **{"token": token, **form})
        assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code})
        assert (authority.trail.last["decision"], authority.trail.last["check"]) == ("deny", expected.check)
        assert authority.store.tokens.revocations() == before

    asyncio.run(work())


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
def test_a_token_in_the_url_or_by_get_is_refused(authority: Authority, path: str) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        answer = await post(authority, f"{path}?token={token}", PLANNER, token=token)
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})
        async with authority.http(PLANNER) as http:
            assert (await http.get(path)).status_code == 405

    asyncio.run(work())


REVOKED_BY: dict[str, tuple[str, Forged, type[TrustError] | None]] = {
    # name: (who asks, for what, the refusal; None for 200, because there is nothing that is valid)
    "receiver": (BILLING, lambda _, token: token, RevocationRefused),
    "another client": (LEDGER, lambda _, token: token, RevocationRefused),
    "another, an expired one": (LEDGER, NOT_OURS["expired"], RevocationRefused),
    "holder, an introspection answer": (PLANNER, answer_of, TokenNotRevocable),
    "holder, the list of revoked tokens": (PLANNER, lambda here, _: list_of(here), TokenNotRevocable),
    "holder, an ID token": (PLANNER, lambda here, token: with_typ(here, token, "JWT"), TokenNotRevocable),
    "holder, a forged one with a real jti": (PLANNER, NOT_OURS["signed by another key"], None),
    "holder, unsigned": (PLANNER, NOT_OURS["unsigned"], None),
    "holder, of another issuer": (PLANNER, NOT_OURS["of another issuer"], None),
    "holder, never issued": (PLANNER, NOT_OURS["never issued"], None),
    "holder, the jti alone": (PLANNER, lambda _, token: str(claims_of(token)["jti"]), None),
}  # fmt: skip


@pytest.mark.parametrize("name", REVOKED_BY)
def test_nobody_ends_a_token_that_is_not_theirs(authority: Authority, name: str) -> None:
    agent, presented, expected = REVOKED_BY[name]

    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        child, before = await authority.token(BILLING, exchange(token)), authority.store.tokens.revocations()
        answer = await post(authority, "/revoke", agent, token=presented(authority, token))
        if expected is None:
            assert (answer.status_code, authority.trail.last["revoked"]) == (200, "0")
        else:
            assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code})
            assert authority.trail.last["check"] == expected.check
        assert authority.store.tokens.revocations() == before
        assert (await post(authority, "/introspect", LEDGER, token=child)).json()["active"] is True

    asyncio.run(work())


def test_the_trail_has_no_token(authority: Authority) -> None:
    async def work() -> None:
        token = await authority.token(PLANNER, ask())
        for path in ("/introspect", "/revoke"):
            for agent in (PLANNER, LEDGER, STRANGER):
                await post(authority, path, agent, token=token)
        assert token.split(".")[2] not in repr(authority.trail.records)

    asyncio.run(work())
