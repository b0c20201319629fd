"""ghostunnel, a TLS proxy in Go: in front of a program without TLS that our client calls, and for one that calls us."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.interop.fleet import (
    BILLING,
    OTHER,
    PLANNER,
    SECONDS,
    Fleet,
    OurServer,
    ask,
    each_refused,
    is_refused,
    judged_by_our_client,
    our_server,
    refuses_our_client,
    their_server,
)
from tests.interop.programs import needs
from tests.ports import free_port
from trust.errors import UntrustedChain

pytestmark = [
    pytest.mark.slow,
    needs("go", "gcc"),  # a part of it is written in C
    pytest.mark.timeout(600),  # its modules may have to be fetched and built first
]

# Its main package, built by the versions that its own go.sum names; what it is itself, these hashes say.
MODULE, VERSION = "github.com/ghostunnel/ghostunnel", "v1.8.4"
GO_MOD = f"module fetch\n\ngo 1.25.0\n\nrequire {MODULE} {VERSION}\n"
GO_SUM = f"""\
{MODULE} {VERSION} h1:vC35ek8ii/fcEJUoxFhAQIKqBZi3FTDsU58X+lToOSQ=
{MODULE} {VERSION}/go.mod h1:ul5FaBPaEDMFGgaGole90SGb9wmpX0I5gfNk5MWLo4Q=
"""


@pytest.fixture(scope="module")
def ghostunnel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ghostunnel")
    (folder / "go.mod").write_text(GO_MOD)
    (folder / "go.sum").write_text(GO_SUM)

    def go(*arguments: str | Path, cwd: Path) -> str:
        done = subprocess.run(["go", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = Path(json.loads(go("mod", "download", "-json", MODULE, cwd=folder))["Dir"])
    go("build", "-mod=readonly", "-o", folder / "ghostunnel", ".", cwd=source)
    return folder / "ghostunnel"


@asynccontextmanager
async def without_tls() -> AsyncIterator[int]:
    """A program that knows nothing of certificates."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nledgers")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a caller that was turned away
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


@asynccontextmanager
async def in_front(ghostunnel: Path, fleet: Fleet, who: str) -> AsyncIterator[str]:
    """The URL of a ghostunnel that is `who`, and that lets in the planner."""
    port = free_port()
    async with without_tls() as target:
        command = (ghostunnel, "server", "--listen", f"127.0.0.1:{port}", "--target", f"127.0.0.1:{target}")
        files = ("--cert", fleet[who].chain, "--key", fleet[who].key, "--cacert", fleet.root)
        async with their_server(*command, *files, "--allow-uri", PLANNER, port=port) as url:
            yield url


def test_our_client_calls_a_program_behind_ghostunnel(ghostunnel: Path, fleet: Fleet) -> None:
    async def main() -> None:
        async with in_front(ghostunnel, fleet, "billing") as url:
            assert await ask(fleet, url) == "ledgers"
            await judged_by_our_client(fleet, url)
            await refuses_our_client(fleet, url, None, "foreign", "other")

    asyncio.run(main())


def test_our_client_refuses_a_ghostunnel_of_another_ca(ghostunnel: Path, fleet: Fleet) -> None:
    async def main() -> None:
        async with in_front(ghostunnel, fleet, "foreign server") as url:
            with pytest.raises(UntrustedChain):
                await ask(fleet, url)

    asyncio.run(main())


async def through(ghostunnel: Path, fleet: Fleet, server: OurServer, who: str | None, *, wanted: str = BILLING) -> str:
    """What a program without TLS gets through a ghostunnel that is `who`, and that wants the server to be `wanted`."""
    port = free_port()
    command = (ghostunnel, "client", "--listen", f"127.0.0.1:{port}", "--target", f"localhost:{server.port}")
    own = ("--cert", fleet[who].chain, "--key", fleet[who].key) if who else ("--disable-authentication",)
    async with (
        their_server(*command, *own, "--cacert", fleet.root, "--verify-uri", wanted, port=port),
        httpx.AsyncClient(trust_env=False, timeout=SECONDS) as plain,
    ):
        return (await plain.get(f"http://127.0.0.1:{port}/")).text


def test_a_program_calls_our_server_through_ghostunnel(ghostunnel: Path, fleet: Fleet) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            assert await through(ghostunnel, fleet, server, "planner") == PLANNER
        assert (server.refused, [*map(str, server.callers)]) == ([], [PLANNER])

    asyncio.run(main())


@each_refused
def test_our_server_refuses_a_ghostunnel(ghostunnel: Path, fleet: Fleet, who: str | None) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            with pytest.raises(httpx.TransportError):
                await through(ghostunnel, fleet, server, who)
        is_refused(server, who)

    asyncio.run(main())


def test_a_ghostunnel_refuses_our_server_with_another_id(ghostunnel: Path, fleet: Fleet) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            with pytest.raises(httpx.TransportError):
                await through(ghostunnel, fleet, server, "planner", wanted=OTHER)
        assert server.callers == []

    asyncio.run(main())
