"""Node's https, as client of our server and as server for our client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.interop.fleet import (
    BILLING,
    OTHER,
    PLANNER,
    REFUSED,
    Fleet,
    answer_of,
    ask,
    each_refused,
    is_refused,
    judged_by_our_client,
    our_server,
    refuses_our_client,
    their_server,
)
from tests.interop.programs import needs
from trust.errors import UntrustedChain

pytestmark = [pytest.mark.slow, needs("node")]

AGENT = Path(__file__).parent / "node" / "agent.mjs"


async def got(fleet: Fleet, url: str, who: str | None, *, server: str = BILLING, trust: Path | None = None) -> str:
    files = [fleet[who].chain, fleet[who].key] if who else []
    return await answer_of("node", AGENT, "get", url, server, trust or fleet.crls, *files)


def test_a_node_client_calls_our_server(fleet: Fleet) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            assert await got(fleet, server.url, "planner") == PLANNER
        assert (server.refused, [*map(str, server.callers)]) == ([], [PLANNER])

    asyncio.run(main())


@each_refused
def test_our_server_tells_a_node_client_why(fleet: Fleet, who: str | None) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            code = (await got(fleet, server.url, who)).strip()
        assert code.endswith("_ALERT_" + REFUSED[who][1].upper())  # after the version of the protocol that had it first
        is_refused(server, who)

    asyncio.run(main())


def test_a_node_client_refuses_our_server(fleet: Fleet) -> None:
    """One that is not the agent it wants, one that is revoked, one of a CA that it does not know."""

    async def main() -> None:
        async with our_server(fleet) as server:
            assert (await got(fleet, server.url, "planner", server=OTHER)).strip() == "OTHER_AGENT"
            foreign = await got(fleet, server.url, "planner", trust=fleet["foreign"].root)
            assert foreign.strip() == "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"
        async with our_server(fleet, "revoked") as revoked:
            assert (await got(fleet, revoked.url, "planner")).strip() == "CERT_REVOKED"
        assert server.callers == revoked.callers == []

    asyncio.run(main())


def test_our_client_calls_a_node_server(fleet: Fleet) -> None:
    async def main() -> None:
        billing = fleet["billing"]
        async with their_server("node", AGENT, "serve", fleet.crls, billing.chain, billing.key) as url:
            assert await ask(fleet, url) == PLANNER
            await judged_by_our_client(fleet, url)
            await refuses_our_client(fleet, url, None, "foreign", "revoked")

    asyncio.run(main())


def test_our_client_refuses_a_node_server_of_another_ca(fleet: Fleet) -> None:
    async def main() -> None:
        billing = fleet["foreign server"]
        async with their_server("node", AGENT, "serve", fleet.crls, billing.chain, billing.key) as url:
            with pytest.raises(UntrustedChain):
                await ask(fleet, url)

    asyncio.run(main())
