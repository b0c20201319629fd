"""What happens to open connections, tokens of identity and signatures when credentials are renewed beneath them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.authority import Trail
from tests.trust.tls.parts import AGENT, AGENT_ID, AGENTS, FORGE, SERVER_ID, SERVERS, echo
from tests.world import ISSUER, claims
from trust import agent_client
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import ResponseNotSigned
from trust.identity import PRESENTED_EXTENSION
from trust.middleware import Gate
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator
from trust.signing.http import MessageSigner, SignedRequest
from trust.sources import Live
from trust.tls import AgentTransport, serving


async def ports(client: httpx.AsyncClient, url: str) -> list[int]:
    """The local ports of two requests, one after the other: the same where the connection was used again."""
    found = []
    for _ in range(2):
        async with client.stream("GET", url) as response:
            found.append(response.extensions["network_stream"].get_extra_info("client_addr")[1])
            await response.aread()
    return found


@pytest.mark.parametrize("left, again", [(timedelta(minutes=4), False), (timedelta(minutes=7), True)])
def test_no_request_begins_shortly_before_the_servers_certificate_ends(left: timedelta, again: bool) -> None:
    async def main() -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        server = FORGE.leaf("/server", not_before=now - timedelta(hours=12), not_after=now + left)
        async with (
            serving(echo, source=server, bundles=FORGE.bundles, authorize=AGENTS) as here,
            httpx.AsyncClient(transport=AgentTransport(AGENT, FORGE.bundles, SERVERS)) as client,
        ):
            first, second = await ports(client, here.url)
            assert (first == second) is again

    asyncio.run(main())


def test_a_server_knows_what_it_presented() -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["extensions"][PRESENTED_EXTENSION])
            await echo(scope, receive, send)

        old, new = FORGE.leaf("/server"), FORGE.leaf("/server")
        source = Live(old)
        async with (
            serving(app, source=source, bundles=FORGE.bundles, authorize=AGENTS) as here,
            httpx.AsyncClient(transport=AgentTransport(AGENT, FORGE.bundles, SERVERS)) as client,
        ):
            await client.get(here.url)
            source.replace(new)
            await client.get(here.url)  # the same connection
            await client.get(here.url, headers={"connection": "close"})
            await client.get(here.url)
        assert seen == [old.thumbprint] * 3 + [new.thumbprint]

    asyncio.run(main())


A, B = FORGE.leaf("/billing"), FORGE.leaf("/billing")


@pytest.mark.parametrize(
    "signs, then, status, decisions",
    [
        (B, B, 200, ["allow"]),
        # Signed, then renewed, then connected: the server does not know A, which signed.
        (A, B, 200, ["deny", "allow"]),
        # A signer that is never the one of the channel: it is tried twice, and no more.
        (A, A, 401, ["deny", "deny"]),
    ],
    ids=["not renewed", "renewed", "another for good"],
)
def test_signatures_follow_a_renewal(signs: Credentials, then: Credentials, status: int, decisions: list[str]) -> None:
    """The client renews between signature and connection, the server between request and answer."""
    key, trail = SigningKey.generate(), Trail()
    server, signing = Live(FORGE.leaf("/server")), Live(signs)
    signed: list[SignedRequest] = []

    class Signer(MessageSigner):
        def sign(self, **arguments: Any) -> SignedRequest:
            made = super().sign(**arguments)
            signed.append(made)
            signing.replace(then)
            return made

    async def app(scope: Any, receive: Any, send: Any) -> None:
        server.replace(FORGE.leaf("/server"))
        await echo(scope, receive, send)

    async def main() -> None:
        now = int(datetime.now(UTC).timestamp())
        token = sign_access_token(claims(B, SERVER_ID, iat=now, exp=now + 600), key)
        gate = Gate(
            app,
            source=server,
            bundles=FORGE.bundles,
            authorize=exactly(AGENT_ID),
            tokens=TokenValidator(issuer=ISSUER, audience=SERVER_ID, keys=StaticKeys(public_jwks([key]))),
            scope="agent:execute",
            signatures="required",
            public_paths=(),
            audit=trail,
        )
        signer = Signer(signing, audience=SERVER_ID, bundles=FORGE.bundles)
        async with (
            serving(gate, source=server, bundles=FORGE.bundles, authorize=AGENTS) as here,
            agent_client(source=B, bundles=FORGE.bundles, authorize=SERVERS, signer=signer) as client,
        ):
            asking = client.post(here.url, content=b"x", headers={"authorization": f"Bearer {token}"})
            if status == 200:
                response = await asking
                assert (response.status_code, response.content) == (200, b"x")
            else:  # nobody knows what became of it, so nobody signs that
                with pytest.raises(ResponseNotSigned, match=f"status {status}"):
                    await asking
        assert [record["decision"] for record in trail.records] == decisions
        assert len({(made.jti, made.signed_at) for made in signed}) == 1  # one message, of which no server acts on two

    asyncio.run(main())
