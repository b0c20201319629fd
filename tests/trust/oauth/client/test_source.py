"""The client's side against the real server, and against servers that lie, stall or are not there."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, CLIENTS, EXCHANGE, ISSUER, LEDGER, PLANNER, Authority, Clock, WithPeer, ask
from tests.forge import NOW, Forge
from trust.errors import (
    AuthorizationServerUnavailable,
    ConfigurationError,
    MetadataRefused,
    OriginRefused,
    ScopeNotGranted,
    TokenRequestRefused,
    TokenResponseRefused,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.client import TokenSource, talk
from trust.oauth.client.authority import CACHE_SIZE, REFRESH_REST
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.oauth.server.clients import ClientRegistry
from trust.sources import Live

AGENT = "https://billing.fleet.example"
SCOPES = ("agent:execute", "temporal:20min")
CREDENTIALS = Forge().leaf("/planner")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def source_of(authority: Authority, http: httpx.AsyncClient, agent: str = PLANNER, **changes: Any) -> TokenSource:
    return TokenSource(
        **{
            "issuer": ISSUER,
            "resource": BILLING,
            "scopes": SCOPES,
            "origins": [AGENT],
            "http": http,
            "source": authority.credentials(agent),
            "clock": authority.clock,
            **changes,
        }
    )


class Counting(httpx.AsyncBaseTransport):
    """Counts the requests by path, and can be switched off."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner, self.paths, self.down = inner, list[str](), False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        if self.down:
            raise httpx.ConnectError("connection refused")
        return await self.inner.handle_async_request(request)

    @property
    def tokens(self) -> int:
        return self.paths.count("/token")


def counted(authority: Authority, agent: str = PLANNER) -> tuple[httpx.AsyncClient, Counting]:
    transport = Counting(httpx.ASGITransport(WithPeer(authority.app, authority.peer(agent))))
    return httpx.AsyncClient(transport=transport), transport


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


def test_200_callers_cause_one_fetch_and_cancelling_some_hurts_none(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        callers = [asyncio.create_task(source.token()) for _ in range(200)]
        await asyncio.sleep(0)
        callers[0].cancel()  # the one that started the fetch
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert len({t.value for t in results[1:]}) == 1  # type: ignore[union-attr]
        assert seen.tokens == 1
        assert (await source.token()).value == results[1].value  # type: ignore[union-attr]
        assert seen.tokens == 1

    run(work())


def test_renewed_before_it_expires_while_callers_go_on_with_the_old_one(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        first = await source.token()
        authority.clock.advance(minutes=9, seconds=-1)
        assert await source.token() == first and seen.tokens == 1
        authority.clock.advance(seconds=1)
        assert (await source.token()).value == first.value  # nobody waits
        await settled(source)
        second = await source.token()
        assert second.value != first.value and seen.tokens == 2
        assert second.expires_at == authority.clock.now + timedelta(minutes=10)

    run(work())


async def settled(source: TokenSource) -> None:
    """Until no fetch is under way."""
    while flights := list(source._authority._flights.values()):
        await asyncio.wait(flights)
        await asyncio.sleep(0)


def test_a_server_that_is_down_hurts_nobody_until_the_token_ends(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        first = await source.token()
        seen.down = True
        authority.clock.advance(minutes=9)
        for _ in range(10):
            assert (await source.token()).value == first.value
            await settled(source)
        assert seen.tokens == 2  # it rests between attempts
        authority.clock.advance(seconds=5)
        assert (await source.token()).value == first.value
        await settled(source)
        assert seen.tokens == 3
        assert "no new token" in caplog.text and first.value not in caplog.text
        authority.clock.now = first.expires_at - timedelta(milliseconds=1)
        assert (await source.token()).value == first.value
        authority.clock.now = first.expires_at
        with pytest.raises(AuthorizationServerUnavailable):
            await source.token()
        seen.down = False
        assert (await source.token()).expires_at > authority.clock.now

    run(work())


def test_a_renewed_certificate_gets_a_token_of_its_own(authority: Authority) -> None:
    async def work() -> None:
        live = Live(authority.credentials(PLANNER))
        transport = Counting(httpx.ASGITransport(WithPeer(authority.app, authority.peer(PLANNER))))
        source = source_of(authority, httpx.AsyncClient(transport=transport), source=live)
        first = await source.token()
        authority.validate(first.value, audience=BILLING, holder=PLANNER)
        live.replace(authority.forge.leaf(PLANNER))
        authority.certificates[PLANNER] = live.current()
        transport.inner = httpx.ASGITransport(WithPeer(authority.app, authority.peer(PLANNER)))
        second = await source.token()
        assert second.value != first.value
        access = authority.validate(second.value, audience=BILLING, holder=PLANNER)
        assert access.thumbprint == live.current().thumbprint

    run(work())


# The resource's side: what happens to a request.


class Agent:
    """A resource that accepts the tokens it is told to."""

    def __init__(self, *accepted: str, challenge: str = 'Bearer error="invalid_token"') -> None:
        self.accepted, self.challenge = set(accepted), challenge
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.seen.append((token, await request.aread()))
        if self.accepted and token not in self.accepted:
            return httpx.Response(401, headers={"www-authenticate": self.challenge})
        return httpx.Response(200)


async def called(source: httpx.Auth, agent: Agent, url: str = AGENT + "/a2a", **request: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.MockTransport(agent), auth=source) as http:
        return await http.post(url, **(request or {"content": b"work"}))


async def aged(source: TokenSource, authority: Authority) -> str:
    """A token that is old enough for a refusal of it to mean something."""
    value = (await source.token()).value
    authority.clock.now += REFRESH_REST
    return value


def test_a_resource_that_refuses_every_token_does_not_turn_each_call_into_a_token_request(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source, agent = source_of(authority, http), Agent("no such token")
        for _ in range(10):
            assert (await called(source, agent)).status_code == 401
        assert (seen.tokens, len(agent.seen)) == (1, 10)

    run(work())


def test_a_refused_token_is_replaced_and_the_request_sent_again_once(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source, agent = source_of(authority, http), Agent("no such token")
        await aged(source, authority)
        assert (await called(source, agent)).status_code == 401
        assert [body for _, body in agent.seen] == [b"work", b"work"]
        assert len({token for token, _ in agent.seen}) == 2 and seen.tokens == 2
        agent.accepted = {(await source.token()).value}
        assert (await called(source, agent)).status_code == 200
        assert seen.tokens == 2

    run(work())


def test_many_callers_that_are_refused_at_once_share_the_new_token(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        old = await aged(source, authority)
        arrived = 0

        async def revoked(request: httpx.Request) -> httpx.Response:
            nonlocal arrived
            if request.headers["authorization"] != f"Bearer {old}":
                return httpx.Response(200)
            arrived += 1
            late = arrived > 25
            # All are sent with the old token; half of the refusals come when there is a new one, which must stay.
            while arrived < 50 or (late and source._authority._tokens.get(key, first).value == old):
                await asyncio.sleep(0.001)
            return httpx.Response(401, headers={"www-authenticate": "bearer error=invalid_token"})

        first, key = await source.token(), (source._ask, authority.credentials(PLANNER).thumbprint)
        async with httpx.AsyncClient(transport=httpx.MockTransport(revoked), auth=source) as client:
            answers = await asyncio.gather(*(client.post(AGENT, content=b"x") for _ in range(50)))
        assert {a.status_code for a in answers} == {200}
        assert seen.tokens == 2

    run(work())


class Streaming(httpx.AsyncBaseTransport):
    """Refuses every token, and sends bodies as they come, as a real transport does: what is sent is gone."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b"".join([chunk async for chunk in request.stream])
        return httpx.Response(401, headers={"www-authenticate": 'Bearer error="invalid_token"'}, content=body)


def test_a_body_that_cannot_be_sent_again_is_not_but_the_next_request_has_a_new_token(authority: Authority) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        await aged(source, authority)
        async with httpx.AsyncClient(transport=Streaming(), auth=source) as client:
            first = await client.post(AGENT, content=body())
            assert (first.status_code, first.read(), seen.tokens) == (401, b"once", 1)
            second = await client.post(AGENT, content=b"twice")
        assert second.read() == b"twice" and seen.tokens == 2
        assert second.request.headers["authorization"] != first.request.headers["authorization"]

    run(work())


@pytest.mark.parametrize(
    "status, challenge",
    [
        (401, 'Bearer error="invalid_request"'),
        (401, "Bearer"),
        (401, 'Basic realm="error=invalid_token"'),
        (403, 'Bearer error="insufficient_scope"'),
        (403, 'Bearer error="invalid_token"'),
    ],
)
def test_other_refusals_are_the_callers_to_read(authority: Authority, status: int, challenge: str) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        agent = httpx.MockTransport(lambda _: httpx.Response(status, headers={"www-authenticate": challenge}))
        async with httpx.AsyncClient(transport=agent, auth=source) as client:
            assert (await client.get(AGENT)).status_code == status
        await source.token()
        assert seen.tokens == 1

    run(work())


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/a2a",
        "http://billing.fleet.example/a2a",
        "https://billing.fleet.example:8443/a2a",
        "https://billing.fleet.example.evil.example/",
        "https://sub.billing.fleet.example/",
        "https://billing.fleet.example@evil.example/",
    ],
)
def test_a_token_never_leaves_for_another_host(authority: Authority, url: str) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        source, agent = source_of(authority, http), Agent()
        await called(source, agent, "https://BILLING.fleet.example:443/a2a?x#y")
        assert len(agent.seen) == 1 and agent.seen[0][0]
        with pytest.raises(OriginRefused):
            await called(source, agent, url)
        assert len(agent.seen) == 1

    run(work())


def test_a_redirect_to_another_host_goes_without_the_token(authority: Authority) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        seen: list[httpx.Request] = []

        def redirect(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            if request.url.host == "evil.example":
                return httpx.Response(200)
            return httpx.Response(307, headers={"location": "https://evil.example/"})

        transport = httpx.MockTransport(redirect)
        async with httpx.AsyncClient(
            transport=transport, auth=source_of(authority, http), follow_redirects=True
        ) as client:
            await client.post(AGENT, content=b"x")
        assert ["authorization" in r.headers for r in seen] == [True, False]

    run(work())


def test_origins_come_from_the_resource_where_it_is_a_url(authority: Authority) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        source = source_of(authority, http, resource="https://billing.example/a2a", origins=())
        with pytest.raises(OriginRefused, match=r"https://billing\.example"):
            await called(source, Agent(), "https://other.example/")

    run(work())


def test_a_resource_may_be_an_agents_id(authority: Authority) -> None:
    async def work() -> None:
        http, _ = counted(authority)
        own, named = source_of(authority, http, resource=AgentID.parse(BILLING)), source_of(authority, http)
        assert own._ask == named._ask
        authority.validate((await own.token()).value, audience=BILLING, holder=PLANNER)
        acting = [
            named.on_behalf_of("subject", resource=ledger, scopes=["read:x"], origins=["https://ledger.example"])._ask
            for ledger in (LEDGER, AgentID.parse(LEDGER))
        ]
        assert acting[0] == acting[1]

    run(work())


# On behalf of a caller.


def test_exchange_and_the_auth_of_an_exchanged_token(authority: Authority) -> None:
    async def work() -> None:
        subject = await authority.token(PLANNER, ask())
        http, seen = counted(authority, BILLING)
        own = source_of(
            authority, http, BILLING, resource=LEDGER, scopes=["read:rates"], origins=["https://ledger.example"]
        )
        wanted: dict[str, Any] = {"resource": LEDGER, "scopes": ["read:ledger.eu", "temporal:20min"]}
        token = await own.exchange(subject, **wanted)
        access = authority.validate(token.value, audience=LEDGER, holder=BILLING)
        assert (access.subject, access.actors) == (PLANNER, (BILLING,))
        auth, agent = own.on_behalf_of(subject, **wanted, origins=["https://ledger.example"]), Agent()
        await called(auth, agent, "https://ledger.example/")
        assert agent.seen[0][0] == token.value and seen.tokens == 1  # one cache for both
        assert (await own.token()).value != token.value
        # Another caller's token is another entry.
        other = await authority.token(PLANNER, ask())
        assert (await own.exchange(other, **wanted)).value != token.value
        assert subject not in repr(auth) + repr(own) + repr(vars(auth)) + repr(vars(own._authority))
        with pytest.raises(TokenRequestRefused) as caught:
            await own.exchange(subject, resource=LEDGER, scopes=["write:ledger.eu", "temporal:20min"])
        assert caught.value.error == "invalid_scope"

    run(work())


def test_the_cache_is_bounded_and_forgets_the_least_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Fake()

    async def work() -> None:
        source = server.source()
        first = await source.token()
        wanted: dict[str, Any] = {"resource": LEDGER, "scopes": ["read:x"]}
        server.token["issued_token_type"] = ACCESS_TOKEN_TYPE
        server.token["scope"] = "read:x"
        for n in range(CACHE_SIZE + 10):
            await source.exchange(f"token-{n}", **wanted)
            assert await source.token() == first  # used all the time, so kept
        assert len(source._authority._tokens) == CACHE_SIZE
        asked = len(server.requests)
        await source.exchange(f"token-{CACHE_SIZE + 9}", **wanted)
        assert len(server.requests) == asked
        await source.exchange("token-0", **wanted)
        assert len(server.requests) == asked + 1

    run(work())


# Servers that lie, stall, or say no.


@dataclass
class Fake:
    """An authorization server that answers well, until a test changes what it says."""

    metadata: dict[str, Any] = field(
        default_factory=lambda: {
            "issuer": ISSUER,
            "token_endpoint": f"{ISSUER}/token",
            "tls_client_certificate_bound_access_tokens": True,
        }
    )
    token: dict[str, Any] = field(
        default_factory=lambda: {"access_token": "abc.def", "token_type": "bearer", "expires_in": 600}
    )
    metadata_answer: Callable[[], httpx.Response] | None = None
    token_answer: Callable[[], httpx.Response] | None = None
    delay: float = 0
    requests: list[httpx.Request] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        if request.url.path.startswith("/.well-known/"):
            return self.metadata_answer() if self.metadata_answer else httpx.Response(200, json=self.metadata)
        return self.token_answer() if self.token_answer else httpx.Response(200, json=self.token)

    def source(self, **changes: Any) -> TokenSource:
        return TokenSource(
            **{
                "issuer": ISSUER,
                "resource": BILLING,
                "scopes": SCOPES,
                "origins": [AGENT],
                "http": httpx.AsyncClient(
                    transport=httpx.MockTransport(self), auth=("never", "sent"), follow_redirects=True
                ),
                "source": CREDENTIALS,
                "clock": Clock(),
                **changes,
            }
        )


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


def answers(status: int = 200, **options: Any) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, **options)


HUGE = json.dumps({"issuer": ISSUER, "padding": "x" * (64 << 10)}).encode()
JSON = {"content-type": "application/json"}
GOOD = json.dumps(  # as metadata and as a token
    {
        "issuer": ISSUER,
        "token_endpoint": f"{ISSUER}/token",
        "tls_client_certificate_bound_access_tokens": True,
        "access_token": "abc.def",
        "token_type": "Bearer",
        "expires_in": 600,
    }
).encode()
BROKEN: dict[str, Callable[[], httpx.Response]] = {
    "HTML": answers(html="<html>"),
    "no content type": answers(content=b"{}"),
    "JSON by name only": answers(headers=JSON, content=b"<html>"),
    "JSON list": answers(json=[]),
    "duplicate member": answers(headers=JSON, content=b'{"issuer":"https://a","issuer":"https://b"}'),
    "huge": answers(headers=JSON, content=HUGE),
    "compressed": answers(headers=JSON | {"content-encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(GOOD))),
    "redirect": answers(307, headers=JSON | {"location": "https://evil.example/"}),
    "redirect with a JSON body": answers(302, json={"issuer": ISSUER}),
}
METADATA: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://evil.example"},
    "issuer with a slash more": {"issuer": ISSUER + "/"},
    "no issuer": {"issuer": None},
    "tokens not bound": {"tls_client_certificate_bound_access_tokens": False},
    "tokens bound by text": {"tls_client_certificate_bound_access_tokens": "true"},
    "token endpoint elsewhere": {"token_endpoint": "https://evil.example/token"},
    "token endpoint in the clear": {"token_endpoint": "http://auth.fleet.example/token"},
    "token endpoint on another port": {"token_endpoint": ISSUER + ":8443/token"},
    "token endpoint missing": {"token_endpoint": None},
    "token endpoint not a URL": {"token_endpoint": "https://[::1"},
    "mtls alias elsewhere": {"mtls_endpoint_aliases": {"token_endpoint": "https://evil.example/token"}},
    "token endpoint a list": {"token_endpoint": [ISSUER]},
}
TOKENS: dict[str, tuple[dict[str, Any], type[TrustError]]] = {
    "no token": ({"access_token": None}, TokenResponseRefused),
    "empty token": ({"access_token": ""}, TokenResponseRefused),
    "token of two lines": ({"access_token": "abc\r\nX-Injected: 1"}, TokenResponseRefused),
    "token with a space": ({"access_token": "abc def"}, TokenResponseRefused),
    "huge token": ({"access_token": "a" * 8001}, TokenResponseRefused),
    "no type": ({"token_type": None}, TokenResponseRefused),
    "DPoP": ({"token_type": "DPoP"}, TokenResponseRefused),
    "no expires_in": ({"expires_in": None}, TokenResponseRefused),
    "expires_in is text": ({"expires_in": "600"}, TokenResponseRefused),
    "expires_in is true": ({"expires_in": True}, TokenResponseRefused),
    "expires_in is a fraction": ({"expires_in": 600.5}, TokenResponseRefused),
    "expires_in is zero": ({"expires_in": 0}, TokenResponseRefused),
    "expires_in is negative": ({"expires_in": -600}, TokenResponseRefused),
    "expires_in is forever": ({"expires_in": 10**9}, TokenResponseRefused),
    "one scope less": ({"scope": "agent:execute"}, ScopeNotGranted),
    "other scopes": ({"scope": "agent:read temporal:20min"}, ScopeNotGranted),
    "empty scope": ({"scope": ""}, ScopeNotGranted),
    "scope is a list": ({"scope": list(SCOPES)}, ScopeNotGranted),
}


async def refused(source: TokenSource, expected: type[TrustError]) -> TrustError:
    with pytest.raises(TrustError) as caught:
        await source.token()
    assert type(caught.value) is expected
    assert "abc" not in str(caught.value)
    return caught.value


def test_the_good_answer_is_taken_as_it_is() -> None:
    """So that the broken ones below fail for what is broken in them."""
    good = answers(headers=JSON, content=GOOD)
    assert run(Fake(metadata_answer=good, token_answer=good).source().token()).value == "abc.def"


@pytest.mark.parametrize("name", BROKEN)
def test_answers_that_are_no_answers(name: str) -> None:
    async def work() -> None:
        server = Fake(metadata_answer=BROKEN[name])
        await refused(server.source(), MetadataRefused)
        server = Fake(token_answer=BROKEN[name])
        await refused(server.source(), TokenResponseRefused)
        assert all(r.url.host == "auth.fleet.example" for r in server.requests)

    run(work())


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_is_not_the_issuers(name: str) -> None:
    server = Fake()
    server.metadata.update(METADATA[name])
    run(refused(server.source(), MetadataRefused))
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", TOKENS)
def test_token_answers_that_break_the_rfc(name: str) -> None:
    changes, expected = TOKENS[name]
    server = Fake()
    server.token.update(changes)
    run(refused(server.source(), expected))


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


def test_a_failed_fetch_is_not_remembered_and_a_cancelled_one_leaves_no_warning() -> None:
    server = Fake(token_answer=answers(503))

    async def work() -> None:
        source = server.source()
        await refused(source, AuthorizationServerUnavailable)
        server.token_answer = None
        assert (await source.token()).value == "abc.def"
        server.delay = 5
        other = source.on_behalf_of("subject", resource=LEDGER, scopes=["read:x"], origins=[AGENT])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.token(), 0.01)

    run(work())  # the loop closes while the fetch is under way


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://auth.fleet.example"},
        {"issuer": f"{ISSUER}?x"},
        {"issuer": "https://user@auth.fleet.example"},
        {"resource": "billing"},
        {"resource": "https://billing.example/#x"},
        {"scopes": []},
        {"scopes": ""},
        {"origins": []},
        {"origins": ["http://billing.fleet.example"]},
        {"origins": ["billing.fleet.example"]},
        {"token_endpoint": "http://auth.fleet.example/token"},
    ],
    ids=str,
)
def test_a_source_that_could_only_fail_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Fake().source(**changes)


def test_one_origin_may_be_given_by_itself() -> None:
    source = Fake().source(origins=AGENT)
    assert source._origins == {AGENT}


def test_synchronous_clients_are_refused() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with (
        httpx.Client(transport=transport, auth=Fake().source()) as http,
        pytest.raises(ConfigurationError, match="AsyncClient"),
    ):
        http.get(AGENT)


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
