"""Where an authorization server's endpoints are, and when it is asked. The liars are in `tests.attacks`."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.authority import ISSUER, LEDGER, Clock
from tests.trust.oauth.client.servers import AGENT, Fake, answers, run, settled
from trust.errors import AuthorizationServerUnavailable, ConfigurationError, MetadataRefused
from trust.oauth.client import TokenSource
from trust.oauth.client.discovery import Discovery, read_resource, read_server
from trust.oauth.metadata import metadata_endpoint, resource_metadata_url

GOOD = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token", "tls_client_certificate_bound_access_tokens": True}


def test_aliases_come_first_each_for_its_endpoint() -> None:
    found = read_server({**GOOD, "revocation_endpoint": f"{ISSUER}/revoke"}, ISSUER)
    assert (found.token_endpoint, found.revocation_endpoint) == (f"{ISSUER}/token", f"{ISSUER}/revoke")
    aliases = {"revocation_endpoint": f"{ISSUER}/mtls/revoke"}
    found = read_server({**GOOD, "mtls_endpoint_aliases": aliases}, ISSUER)
    assert (found.token_endpoint, found.revocation_endpoint) == (f"{ISSUER}/token", f"{ISSUER}/mtls/revoke")
    assert metadata_endpoint(GOOD, ISSUER, "jwks_uri") is None


def test_metadata_is_fetched_once_for_many_questions_and_again_after_an_hour() -> None:
    server, clock = Fake(), Clock()

    async def ask_all(source: TokenSource) -> None:
        server.token["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        server.token["scope"] = "agent:execute temporal:20min read:x"
        others = (source.exchange(f"subject-{n}", resource=LEDGER, scopes=["read:x"]) for n in range(20))
        await asyncio.gather(source.token(), *others)
        await settled(source)

    async def work() -> None:
        source = server.source(clock=clock)
        for minutes in (0, 59, 10):
            clock.advance(minutes=minutes)
            await ask_all(source)

    run(work())
    assert [r.method for r in server.requests].count("GET") == 2
    assert len(server.forms("/token")) == 3 * 21


def test_whoever_waits_for_metadata_shares_the_failure() -> None:
    """One after the other would wait ten seconds each for a server that hangs."""
    asked = asyncio.Event()

    async def hang(_: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.sleep(0.2)
        raise httpx.ReadTimeout("hangs")

    async def work() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(hang)) as http:
            found = Discovery(ISSUER, http, Clock())
            waiting = [asyncio.create_task(found.current()) for _ in range(8)]
            await asked.wait()
            waiting[0].cancel()  # the one that began it
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError, *[AuthorizationServerUnavailable] * 7]
            assert len({id(end) for end in ends[1:]}) == 1  # of one try
            with pytest.raises(AuthorizationServerUnavailable):
                await found.current()

    run(work())


def test_a_failure_is_not_remembered() -> None:
    server = Fake(metadata_answer=answers(503))

    async def work() -> None:
        source = server.source()
        with pytest.raises(AuthorizationServerUnavailable):
            await source.token()
        server.metadata_answer = None
        await source.token()

    run(work())


@pytest.mark.parametrize(
    "resource, url",
    [
        ("https://a.example", "https://a.example/.well-known/oauth-protected-resource"),
        ("https://a.example/", "https://a.example/.well-known/oauth-protected-resource"),
        ("https://A.example:443/x/y", "https://a.example/.well-known/oauth-protected-resource/x/y"),
        ("https://a.example:8443/x?t=1", "https://a.example:8443/.well-known/oauth-protected-resource/x?t=1"),
    ],
)
def test_where_the_metadata_of_a_resource_is(resource: str, url: str) -> None:
    assert resource_metadata_url(resource) == url


@pytest.mark.parametrize("resource", ["http://a.example", "spiffe://fleet.example/billing", "a.example", ""])
def test_a_resource_without_an_https_url_has_none(resource: str) -> None:
    with pytest.raises(ConfigurationError):
        resource_metadata_url(resource)


def test_of_several_issuers_ours_decide_the_order() -> None:
    both: dict[str, Any] = {"resource": AGENT, "authorization_servers": ["https://a.example", "https://b.example"]}
    for ours in (["https://a.example", "https://b.example"], ["https://b.example", "https://a.example"]):
        assert read_resource(both, AGENT, ours) == ours[0]
    with pytest.raises(MetadataRefused):
        read_resource(both, AGENT, [])


def test_a_resource_is_asked_where_it_is(request: pytest.FixtureRequest) -> None:
    server = Fake(metadata={"resource": f"{AGENT}/a2a", "authorization_servers": [ISSUER]})

    async def work() -> TokenSource:
        http = server.source()._cache.authority._http
        credentials = server.source()._cache.authority._source
        return await TokenSource.from_resource(
            f"{AGENT}/a2a", issuers=[ISSUER], scopes=["agent:execute"], http=http, source=credentials
        )

    source = run(work())
    assert [str(r.url) for r in server.requests] == [f"{AGENT}/.well-known/oauth-protected-resource/a2a"]
    assert source._ask.resource == f"{AGENT}/a2a"
    source.check_origin(AGENT)
