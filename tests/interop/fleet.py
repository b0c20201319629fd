"""Agents for other people's TLS to be, and our server and our client for it to talk to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.forge import Forge
from tests.interop.programs import save
from tests.ports import listens
from trust.agent import agent_client, serving
from trust.authorize import exactly
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateRevoked,
    HandshakeRefused,
    NoPeerCertificate,
    PeerNotAllowed,
    TrustError,
    UntrustedChain,
)
from trust.identity import AgentID, peer_of

DOMAIN = "fleet.example"
PLANNER, BILLING, OTHER, REVOKED = (f"spiffe://{DOMAIN}/{name}" for name in ("planner", "billing", "other", "revoked"))
SECONDS = 60.0  # for a program to end; none takes more than one or two where the machine is free


@dataclass(frozen=True, kw_only=True)
class Party:
    """An agent, and its files for programs."""

    credentials: Credentials
    chain: Path
    key: Path
    root: Path  # of the CA that it is of


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Three agents of one CA, one of which may call billing; a revoked one; and the planner and billing of an
    impostor's CA, with the same names."""

    root: Path
    crls: Path  # every list, and the root with them: a file of the kind that OpenSSL reads both from
    bundles: TrustBundles
    lists: RevocationLists
    parties: dict[str, Party]

    def __getitem__(self, name: str) -> Party:
        return self.parties[name]


def make_fleet(ca: CertificateAuthority, folder: Path) -> Fleet:
    impostor = Forge(DOMAIN)
    root, foreign, crls = folder / "root.pem", folder / "foreign-root.pem", folder / "crls.pem"
    root.write_bytes(ca.root.public_bytes(Encoding.PEM))
    foreign.write_bytes(impostor.root.public_bytes(Encoding.PEM))
    reachable: dict[str, Any] = {"dns_names": ["localhost"], "ip_addresses": ["127.0.0.1"]}
    ours = {
        "planner": ca.issue_credentials(PLANNER),
        "billing": ca.issue_credentials(BILLING, **reachable),
        "other": ca.issue_credentials(OTHER),
        "revoked": ca.issue_credentials(REVOKED, **reachable),
    }
    ca.revoke(ours["revoked"].certificate.serial_number)
    lists = ca.crl()
    crls.write_bytes(b"".join(thing.public_bytes(Encoding.PEM) for thing in (ca.root, *lists.crls)))
    theirs = {"foreign": impostor.leaf("/planner"), "foreign server": impostor.leaf("/billing")}
    parties = {}
    for name, credentials in {**ours, **theirs}.items():
        chain, key = save(folder, credentials, name)
        parties[name] = Party(credentials=credentials, chain=chain, key=key, root=root if name in ours else foreign)
    return Fleet(root=root, crls=crls, bundles=TrustBundles.of(ca.bundle()), lists=lists, parties=parties)


# Their client, our server. What a client presents, why our server refuses it, and the alert, as the names of RFC 8446
# have it (a program has words of its own for each).

REFUSED: dict[str | None, tuple[type[TrustError], str]] = {
    None: (NoPeerCertificate, "certificate_required"),
    "foreign": (UntrustedChain, "unknown_ca"),
    "revoked": (CertificateRevoked, "certificate_revoked"),
    "other": (PeerNotAllowed, "handshake_failure"),
}
each_refused = pytest.mark.parametrize("who", REFUSED, ids=lambda who: who or "nobody")


@dataclass
class OurServer:
    """A running billing agent that lets in the planner."""

    port: int
    callers: list[AgentID] = field(default_factory=list)  # those that the application answered
    refused: list[TrustError] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"


@contextlib.asynccontextmanager
async def our_server(fleet: Fleet, who: str = "billing") -> AsyncIterator[OurServer]:
    """Answers with the SPIFFE ID of the caller."""
    server = OurServer(port=0)

    async def whoami(scope: Any, receive: Any, send: Any) -> None:
        peer = peer_of(scope)
        assert peer is not None
        server.callers.append(peer.agent_id)
        body = str(peer.agent_id).encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with serving(
        whoami,
        source=fleet[who].credentials,
        bundles=fleet.bundles,
        authorize=exactly(PLANNER),
        crls=fleet.lists,
        on_refused=lambda error, _: server.refused.append(error),
        lifespan="off",
    ) as running:
        server.port = int(running.url.rpartition(":")[2])
        yield server


async def answer_of(*command: str | Path, say: bytes = b"", cwd: Path | None = None) -> str:
    """What a program wrote until it ended, to both of its outputs. Its input stays open after `say`: many a TLS tool
    ends the connection when its input ends."""
    program = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):  # it has ended already, and its output says why
                program.stdin.write(say)
                await program.stdin.drain()
            output = await program.stdout.read()
            program.stdin.close()
            await program.wait()
            return output.decode(errors="replace")
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


def is_refused(server: OurServer, who: str | None) -> None:
    """Every attempt, for the reason of the table, and the application was not asked."""
    assert {type(error) for error in server.refused} == {REFUSED[who][0]}, server.refused
    assert server.callers == []


# Our client, their server: a billing agent that asks for certificates of our CA.


@contextlib.asynccontextmanager
async def their_server(
    *command: str | Path, port: int | None = None, cwd: Path | None = None, **options: Any
) -> AsyncIterator[str]:
    """The URL of a program that serves until the block ends.

    Args:
        port: where it was told to listen; without one, the first line that it prints is its port, or its address.
    """
    program = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if port is None else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=cwd,
        **options,
    )
    try:
        async with asyncio.timeout(SECONDS):
            if port is None:
                assert program.stdout is not None
                port = int((await program.stdout.readline()).rpartition(b":")[2])
            else:
                await _listening(program, port)
        yield f"https://localhost:{port}/"
    finally:
        if program.returncode is None:
            program.kill()
        await program.communicate()


async def _listening(program: asyncio.subprocess.Process, port: int) -> None:
    while not listens(port):
        assert program.returncode is None, "the server ended"
        await asyncio.sleep(0.02)


async def ask(fleet: Fleet, url: str, who: str | None = "planner", *, server: str = BILLING) -> str:
    """What our client gets from a server that has to be `server`."""
    source = None if who is None else fleet[who].credentials
    async with agent_client(
        source=source, bundles=fleet.bundles, authorize=exactly(server), crls=fleet.lists
    ) as client:
        return (await client.get(url)).text


async def judged_by_our_client(fleet: Fleet, url: str) -> None:
    """Our client looks at whom it talks to: the very agent that it wants, or none."""
    with pytest.raises(PeerNotAllowed):
        await ask(fleet, url, server=OTHER)


async def refuses_our_client(fleet: Fleet, url: str, *whos: str | None) -> None:
    """Their server refuses those, and our client says that it was the server that did."""
    for who in whos:
        with pytest.raises(HandshakeRefused):
            await ask(fleet, url, who)
