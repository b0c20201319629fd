"""The JDK's HttpClient against our server, and the JDK's HTTPS server for our client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.interop.fleet import (
    PLANNER,
    REFUSED,
    Fleet,
    answer_of,
    ask,
    judged_by_our_client,
    our_server,
    refuses_our_client,
    their_server,
)
from tests.interop.programs import needs, run

pytestmark = [pytest.mark.slow, needs("java", "javac")]

SWIFT = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")  # each run is a request or two


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("java")
    built = run("javac", "-d", folder, Path(__file__).parent / "java" / "Agent.java")
    assert built.returncode == 0, built.stderr
    return folder


async def got(classes: Path, fleet: Fleet, url: str, *whos: str | None, trust: Path | None = None) -> list[str]:
    """A line for each: what it got, or why it did not."""
    files = [file for who in whos for file in ((fleet[who].chain, fleet[who].key) if who else ("", ""))]
    said = await answer_of(*SWIFT, "-cp", classes, "Agent", "get", url, trust or fleet.crls, *files)
    return said.splitlines()


def test_a_java_client_calls_our_server(classes: Path, fleet: Fleet) -> None:
    """And is told why, when it is refused. One process is all of the agents, for it is slow to start."""

    async def main() -> None:
        async with our_server(fleet) as server:
            assert await got(classes, fleet, server.url, "planner", *REFUSED) == [
                PLANNER,
                *(f"Received fatal alert: {alert}" for _, alert in REFUSED.values()),
            ]
        assert [*map(str, server.callers)] == [PLANNER]
        attempts = [type(error) for error in server.refused]  # two for each refusal
        assert list(dict.fromkeys(attempts)) == [expected for expected, _ in REFUSED.values()]

    asyncio.run(main())


def test_a_java_client_refuses_our_server(classes: Path, fleet: Fleet) -> None:
    """One that is revoked, one of a CA that it does not know."""

    async def main() -> None:
        async with our_server(fleet) as server:
            (foreign,) = await got(classes, fleet, server.url, "planner", trust=fleet["foreign"].root)
            assert "unable to find valid certification path" in foreign
        async with our_server(fleet, "revoked") as revoked:
            (said,) = await got(classes, fleet, revoked.url, "planner")
            assert "revoked" in said
        assert server.callers == revoked.callers == []

    asyncio.run(main())


def test_our_client_calls_a_java_server(classes: Path, fleet: Fleet) -> None:
    async def main() -> None:
        billing = fleet["billing"]
        command = (*SWIFT, "-cp", classes, "Agent", "serve", fleet.crls, billing.chain, billing.key)
        async with their_server(*command) as url:
            assert await ask(fleet, url) == PLANNER
            await judged_by_our_client(fleet, url)
            await refuses_our_client(fleet, url, None, "foreign", "revoked")

    asyncio.run(main())
