"""The TLS tools of OpenSSL, curl and GnuTLS: clients of our server, and servers for our client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.fleet import (
    PLANNER,
    REFUSED,
    Fleet,
    OurServer,
    Party,
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
from tests.ports import free_port
from trust.errors import UntrustedChain

pytestmark = pytest.mark.slow

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Client:
    """How a program is called for a request to our server, and what it says about alerts and about our server."""

    command: Callable[[Fleet, OurServer, Party | None, Path], list[str | Path]]
    say: bytes
    alerts: dict[str, str]
    untrusted: str


def s_client(fleet: Fleet, server: OurServer, who: Party | None, root: Path) -> list[str | Path]:
    command: list[str | Path] = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{server.port}",
        "-quiet",
        "-CAfile",
        root,
    ]
    command += ["-servername", "localhost", "-verify_hostname", "localhost", "-verify_return_error"]
    return command + (["-cert", who.chain, "-cert_chain", who.chain, "-key", who.key] if who else [])


def curl(fleet: Fleet, server: OurServer, who: Party | None, root: Path) -> list[str | Path]:
    command: list[str | Path] = ["curl", "--no-progress-meter", "--noproxy", "*", "--cacert", root, server.url]
    command += ["--resolve", f"localhost:{server.port}:127.0.0.1"]
    return command + (["--cert", who.chain, "--key", who.key] if who else [])


def gnutls_cli(fleet: Fleet, server: OurServer, who: Party | None, root: Path) -> list[str | Path]:
    command: list[str | Path] = ["gnutls-cli", "--x509cafile", root, "--port", str(server.port), "localhost"]
    return command + (["--x509certfile", who.chain, "--x509keyfile", who.key] if who else [])


OPENSSL_ALERTS = {alert: "alert " + alert.replace("_", " ") for _, alert in REFUSED.values()}
CLIENTS = {
    "openssl": Client(
        command=s_client, say=REQUEST, alerts=OPENSSL_ALERTS, untrusted="unable to get local issuer certificate"
    ),
    "curl": Client(command=curl, say=b"", alerts=OPENSSL_ALERTS, untrusted="SSL certificate problem"),
    "gnutls-cli": Client(
        command=gnutls_cli,
        say=REQUEST,
        alerts={
            "certificate_required": "Received alert [116]",
            "unknown_ca": "Received alert [48]",
            "certificate_revoked": "Received alert [44]",
            "handshake_failure": "Received alert [40]",
        },
        untrusted="The certificate issuer is unknown",
    ),
}
each_client = pytest.mark.parametrize("program", [pytest.param(name, marks=needs(name)) for name in CLIENTS])


def test_every_alert_has_a_name_in_every_program() -> None:
    for client in CLIENTS.values():
        assert set(client.alerts) == {alert for _, alert in REFUSED.values()}


@each_client
def test_a_client_calls_our_server(fleet: Fleet, program: str) -> None:
    async def main() -> None:
        client = CLIENTS[program]
        async with our_server(fleet) as server:
            said = await answer_of(*client.command(fleet, server, fleet["planner"], fleet.root), say=client.say)
        assert PLANNER in said
        assert (server.refused, [*map(str, server.callers)]) == ([], [PLANNER])

    asyncio.run(main())


@each_client
@each_refused
def test_our_server_tells_a_client_why(fleet: Fleet, program: str, who: str | None) -> None:
    async def main() -> None:
        client = CLIENTS[program]
        party = fleet[who] if who else None
        async with our_server(fleet) as server:
            said = await answer_of(*client.command(fleet, server, party, fleet.root), say=client.say)
        is_refused(server, who)
        assert client.alerts[REFUSED[who][1]] in said

    asyncio.run(main())


@each_client
def test_a_client_does_not_trust_another_root(fleet: Fleet, program: str) -> None:
    async def main() -> None:
        client = CLIENTS[program]
        async with our_server(fleet) as server:
            command = client.command(fleet, server, fleet["planner"], fleet["foreign"].root)
            said = await answer_of(*command, say=client.say)
        assert client.untrusted in said
        assert server.callers == []

    asyncio.run(main())


# Our client, their server.


def s_server(fleet: Fleet, who: Party, port: int) -> list[str | Path]:
    command: list[str | Path] = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-tls1_3"]
    command += ["-cert", who.chain, "-cert_chain", who.chain, "-key", who.key]
    command += ["-CAfile", fleet.crls, "-crl_check_all", "-extended_crl"]
    return [*command, "-Verify", "5", "-verify_return_error"]


def gnutls_serv(fleet: Fleet, who: Party, port: int) -> list[str | Path]:
    command: list[str | Path] = ["gnutls-serv", "--http", "--port", str(port), "--quiet"]
    command += ["--x509certfile", who.chain, "--x509keyfile", who.key]
    return [*command, "--x509cafile", fleet.root, "--require-client-cert", "--verify-client-cert"]


SERVERS = {"openssl": s_server, "gnutls-serv": gnutls_serv}
ANSWERS = {"openssl": PLANNER, "gnutls-serv": "This is <a"}  # the one tells its client who it is, the other does not
each_server = pytest.mark.parametrize("program", [pytest.param(name, marks=needs(name)) for name in SERVERS])


@each_server
def test_our_client_calls_a_server(fleet: Fleet, program: str) -> None:
    async def main() -> None:
        port = free_port()
        async with their_server(*SERVERS[program](fleet, fleet["billing"], port), port=port) as url:
            assert ANSWERS[program] in await ask(fleet, url)
            await judged_by_our_client(fleet, url)

    asyncio.run(main())


@each_server
def test_a_server_refuses_our_client(fleet: Fleet, program: str) -> None:
    async def main() -> None:
        port = free_port()
        async with their_server(*SERVERS[program](fleet, fleet["billing"], port), port=port) as url:
            await refuses_our_client(fleet, url, None, "foreign", *(["revoked"] if program == "openssl" else []))

    asyncio.run(main())


@each_server
def test_our_client_refuses_a_server_of_another_ca(fleet: Fleet, program: str) -> None:
    async def main() -> None:
        port = free_port()
        async with their_server(*SERVERS[program](fleet, fleet["foreign server"], port), port=port) as url:
            with pytest.raises(UntrustedChain):
                await ask(fleet, url)

    asyncio.run(main())
