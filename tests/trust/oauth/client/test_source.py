"""The auth of requests: which get a token, what a refusal does, and on whose behalf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, ISSUER, LEDGER, PLANNER, Authority, ask
from tests.trust.oauth.client.servers import (
    AGENT,
    Fake,
    counted,
    run,
    source_of,
)
from trust.errors import (
    ConfigurationError,
    OriginRefused,
    TokenRequestRefused,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.client import TokenSource
from trust.oauth.client.cache import REFRESH_REST


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
            while arrived < 50 or (late and source._cache._tokens.get(key, first).value == old):
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


def test_what_another_host_says_of_a_token_after_a_redirect_means_nothing(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source, asked = source_of(authority, http), list[str]()
        token = await aged(source, authority)

        def redirect(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.host)
            if request.url.host == "evil.example":
                return httpx.Response(401, headers={"www-authenticate": 'Bearer error="invalid_token"'})
            return httpx.Response(307, headers={"location": "https://evil.example/"})

        transport = httpx.MockTransport(redirect)
        async with httpx.AsyncClient(transport=transport, auth=source, follow_redirects=True) as client:
            assert (await client.post(AGENT, content=b"x")).status_code == 401
        assert asked == ["billing.fleet.example", "evil.example"]
        assert (seen.tokens, (await source.token()).value) == (1, token)

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
        assert subject not in repr(auth) + repr(own) + repr(vars(auth)) + repr(vars(own._cache))
        with pytest.raises(TokenRequestRefused) as caught:
            await own.exchange(subject, resource=LEDGER, scopes=["write:ledger.eu", "temporal:20min"])
        assert caught.value.error == "invalid_scope"

    run(work())


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": "creds/planner"}, "source: got a value of type str, expected Credentials; use Credentials.load"),
        ({"authentication": "s3cret"}, "authentication: got a value of type str, expected TLSCertificate, PrivateKey"),
        ({"proof_key": True}, "proof_key: got a value of type bool, expected a SigningKey; use SigningKey.generate"),
        ({"http": "https://x"}, "http: got a value of type str, expected an httpx.AsyncClient; use agent_client"),
        ({"resource": BILLING + "/"}, "resource is no agent's: SPIFFE ID path segment: got ''"),
    ],
    ids=lambda changes: str(*changes) if isinstance(changes, dict) else "",
)
def test_a_mistake_is_told_where_it_is_made(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(TrustError) as caught:
        Fake().source(**changes)
    assert type(caught.value) is ConfigurationError and str(caught.value).startswith(expected)
    assert "s3cret" not in str(caught.value)


def test_a_synchronous_client_is_told_where_it_is_given() -> None:
    with httpx.Client() as http, pytest.raises(ConfigurationError, match=r"expected an httpx\.AsyncClient"):
        Fake().source(http=http)


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
