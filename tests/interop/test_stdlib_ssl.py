"""Python's own `ssl`, which knows host names and no SPIFFE IDs, as client of our server and server for our client."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.interop.fleet import (
    PLANNER,
    REFUSED,
    SECONDS,
    Fleet,
    OurServer,
    ask,
    each_refused,
    is_refused,
    judged_by_our_client,
    our_server,
    refuses_our_client,
)
from trust.errors import UntrustedChain


def context(side: ssl.Purpose, fleet: Fleet, who: str | None, trust: Path | None = None) -> ssl.SSLContext:
    """As any program makes it: the root, the lists, a chain and a key, by file."""
    made = ssl.create_default_context(side, cafile=str(trust or fleet.crls))
    if trust is None:
        made.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if who is not None:
        made.load_cert_chain(fleet[who].chain, fleet[who].key)
    return made


async def got(
    server: OurServer, fleet: Fleet, who: str | None, *, host: str = "localhost", trust: Path | None = None
) -> str:
    def talk() -> str:
        tls = context(ssl.Purpose.SERVER_AUTH, fleet, who, trust)
        connection = http.client.HTTPSConnection(host, server.port, timeout=SECONDS, context=tls)
        with closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read().decode()

    return await asyncio.to_thread(talk)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_client_calls_our_server_by_a_name_of_its_certificate(fleet: Fleet, host: str) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            assert await got(server, fleet, "planner", host=host) == PLANNER
        assert server.refused == []

    asyncio.run(main())


@each_refused
def test_our_server_tells_a_client_why(fleet: Fleet, who: str | None) -> None:
    async def main() -> None:
        async with our_server(fleet) as server:
            with pytest.raises(ssl.SSLError) as refused:
                await got(server, fleet, who)
        assert refused.value.reason.endswith("_ALERT_" + REFUSED[who][1].upper())
        is_refused(server, who)

    asyncio.run(main())


def test_a_client_refuses_our_server(fleet: Fleet) -> None:
    """One of a CA that it does not know, one that is revoked, one without the name that was called."""

    async def main() -> None:
        async with our_server(fleet) as server:
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
                await got(server, fleet, "planner", trust=fleet["foreign"].root)
        async with our_server(fleet, "revoked") as revoked:
            with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
                await got(revoked, fleet, "planner")
        async with our_server(fleet, "other") as nameless:
            with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'localhost'"):
                await got(nameless, fleet, "planner")
        assert server.callers == revoked.callers == nameless.callers == []

    asyncio.run(main())


@asynccontextmanager
async def stock_server(fleet: Fleet, who: str) -> AsyncIterator[str]:
    """asyncio's, with client certificates required; it answers with the names in the caller's certificate."""
    tls = context(ssl.Purpose.CLIENT_AUTH, fleet, who)
    tls.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        (_, name), *_ = writer.get_extra_info("peercert")["subjectAltName"]
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode())
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}/"


def test_our_client_calls_a_stock_server(fleet: Fleet) -> None:
    async def main() -> None:
        async with stock_server(fleet, "billing") as url:
            assert await ask(fleet, url) == PLANNER
            await judged_by_our_client(fleet, url)
            await refuses_our_client(fleet, url, None, "foreign", "revoked")

    asyncio.run(main())


def test_our_client_refuses_a_stock_server_of_another_ca(fleet: Fleet) -> None:
    async def main() -> None:
        async with stock_server(fleet, "foreign server") as url:
            with pytest.raises(UntrustedChain):
                await ask(fleet, url)

    asyncio.run(main())
