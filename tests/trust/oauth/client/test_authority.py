"""What is asked of an authorization server, and how its answers are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, CLIENTS, EXCHANGE, ISSUER, LEDGER, PLANNER, Authority, Clock
from tests.forge import NOW
from tests.trust.oauth.client.servers import (
    JSON,
    SCOPES,
    Fake,
    answers,
    counted,
    refused,
    run,
    settled,
    source_of,
)
from trust.errors import (
    AuthorizationServerUnavailable,
    MetadataRefused,
    TokenRequestRefused,
    TokenResponseRefused,
)
from trust.oauth.client import talk
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.oauth.server.clients import ClientRegistry


def test_a_token_by_discovery_that_the_resource_accepts(authority: Authority) -> None:
    async def work() -> str:
        http, seen = counted(authority)
        token = await source_of(authority, http).token()
        assert seen.paths == ["/.well-known/oauth-authorization-server", "/token"]
        assert token.scopes == SCOPES
        assert token.expires_at == NOW + timedelta(minutes=10)
        assert token.value not in repr(token)
        return token.value

    access = authority.validate(run(work()), audience=BILLING, holder=PLANNER)
    assert (access.subject, access.scopes) == (PLANNER, SCOPES)


def test_the_request_is_by_the_rfcs_and_carries_nothing_else() -> None:
    server = Fake()
    token = run(server.source().token())
    assert (token.value, token.scopes) == ("abc.def", SCOPES)
    request = server.requests[1]
    assert dict(httpx.QueryParams(request.content.decode())) == {
        "grant_type": "client_credentials",
        "client_id": PLANNER,
        "resource": BILLING,
        "scope": "agent:execute temporal:20min",
    }
    assert request.headers["accept-encoding"] == "identity"
    assert all("authorization" not in r.headers for r in server.requests)

    async def exchanged() -> None:
        server.token["issued_token_type"] = ACCESS_TOKEN_TYPE
        await server.source().exchange("subject", resource=LEDGER, scopes="read:x read:y")

    run(exchanged())
    assert dict(httpx.QueryParams(server.requests[-1].content.decode())) == {
        "grant_type": EXCHANGE,
        "client_id": PLANNER,
        "subject_token": "subject",
        "subject_token_type": ACCESS_TOKEN_TYPE,
        "requested_token_type": ACCESS_TOKEN_TYPE,
        "resource": LEDGER,
        "scope": "read:x read:y",
    }


def test_an_exchange_that_returns_another_kind_of_token() -> None:
    async def work() -> None:
        source = Fake().source()
        with pytest.raises(TokenResponseRefused, match="issued_token_type"):
            await source.exchange("subject", resource=LEDGER, scopes=["read:x"])

    run(work())


@pytest.mark.parametrize("extra", ["openid", "agent:admin"])
def test_more_than_was_asked_for_is_the_servers_business(extra: str) -> None:
    server = Fake()
    server.token["scope"] = f"{extra} {' '.join(SCOPES)}"
    assert run(server.source().token()).scopes == (extra, *SCOPES)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_the_servers_no_carries_its_code(status: int) -> None:
    server = Fake(token_answer=answers(status, json={"error": "invalid_target", "error_description": "abc"}))
    error = run(refused(server.source(), TokenRequestRefused))
    assert isinstance(error, TokenRequestRefused) and error.error == "invalid_target"
    assert str(error).endswith("got invalid_target; the authorization server's audit trail says why")


@pytest.mark.parametrize("members", [{}, {"error": 1}, {"error": "x" * 65}])
def test_a_no_without_a_code_is_no_answer(members: dict[str, Any]) -> None:
    run(refused(Fake(token_answer=answers(400, json=members)).source(), TokenResponseRefused))


@pytest.mark.parametrize("status", [404, 204])
def test_no_metadata(status: int) -> None:
    run(refused(Fake(metadata_answer=answers(status, json={})).source(), MetadataRefused))


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_one_that_is_down(status: int) -> None:
    run(refused(Fake(metadata_answer=answers(status)).source(), AuthorizationServerUnavailable))
    run(refused(Fake(token_answer=answers(status)).source(), AuthorizationServerUnavailable))


def test_a_server_that_is_not_there_or_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    http = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    run(refused(Fake().source(http=http), AuthorizationServerUnavailable))
    monkeypatch.setattr(talk, "FETCH_SECONDS", 0.05)
    run(refused(Fake(delay=5).source(), AuthorizationServerUnavailable))


def test_why_a_server_cannot_be_reached() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS\r\n" * 10)
        await reader.read()  # to its end: a reset could overtake what was said
        writer.close()

    async def work() -> str:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server, httpx.AsyncClient() as http:
            issuer = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return str(await refused(Fake().source(http=http, issuer=issuer), AuthorizationServerUnavailable))

    assert "got ConnectError: [SSL" in run(work())

    # What is said of a request that has begun may be of what is in it.
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("Illegal header value b'Basic abc'")

    http = httpx.AsyncClient(transport=httpx.MockTransport(fail))
    error = run(refused(Fake().source(http=http), AuthorizationServerUnavailable))
    assert "got LocalProtocolError; look at" in str(error)


def test_a_body_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "FETCH_SECONDS", 0.1)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async def work() -> None:
        server = Fake(token_answer=lambda: httpx.Response(200, headers=JSON, content=drip()))
        await refused(server.source(), AuthorizationServerUnavailable)

    run(work())


def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    sent = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1024
            await asyncio.sleep(0)

    async def work() -> None:
        server = Fake(token_answer=lambda: httpx.Response(200, headers=JSON, content=flood()))
        await refused(server.source(), TokenResponseRefused)

    run(work())
    assert sent == 65


def test_the_lifetime_counts_from_before_the_question() -> None:
    server, clock = Fake(), Clock()

    def late() -> httpx.Response:
        clock.advance(seconds=7)
        return httpx.Response(200, json=server.token)

    server.token_answer = late
    assert run(server.source(clock=clock).token()).expires_at == NOW + timedelta(minutes=10)


def test_the_mtls_alias_is_preferred() -> None:
    server = Fake()
    server.metadata["mtls_endpoint_aliases"] = {"token_endpoint": f"{ISSUER}/mtls/token"}
    run(server.source().token())
    assert server.requests[-1].url.path == "/mtls/token"


def test_a_configured_token_endpoint_needs_no_metadata() -> None:
    server = Fake()
    run(server.source(token_endpoint="https://mtls.fleet.example/token").token())
    assert [str(r.url) for r in server.requests] == ["https://mtls.fleet.example/token"]


def test_metadata_is_kept_for_an_hour() -> None:
    server, clock = Fake(), Clock()

    async def work() -> None:
        source = server.source(clock=clock)
        for minutes in (0, 30, 31):
            clock.advance(minutes=minutes)
            await source.token()
            await settled(source)

    run(work())
    assert [r.url.path for r in server.requests if r.method == "GET"] == ["/.well-known/oauth-authorization-server"] * 2


def test_what_the_real_server_refuses_is_told_apart(authority: Authority) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        cases: list[tuple[dict[str, Any], str]] = [
            ({"scopes": ["agent:admin"]}, "invalid_scope"),
            ({"resource": LEDGER}, "invalid_target"),
            ({"client_id": BILLING}, "invalid_client"),
        ]
        for changes, code in cases:
            with pytest.raises(TokenRequestRefused) as caught:
                await source_of(authority, http, **changes).token()
            assert caught.value.error == code
        source = source_of(authority, http)
        await source.token()
        authority.clients.replace(ClientRegistry(CLIENTS[1:]))
        authority.clock.advance(minutes=10)
        with pytest.raises(TokenRequestRefused):
            await source.token()

    run(work())
