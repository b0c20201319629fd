"""A key server over real mutual TLS that misbehaves in every way that bytes allow, and agents that validate by it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.forge import NOW, Forge
from trust.authorize import exactly, members_of
from trust.errors import KeysUnavailable, TokenKeyUnknown, TokenMalformed, TokenSignatureWrong
from trust.oauth.claims import AccessToken, sign_access_token
from trust.oauth.keys import RemoteKeys, SigningKey, public_jwks, remote
from trust.oauth.keys.remote import FAILURE_REST, FRESH, UNKNOWN_KID_REST, USABLE
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.signing import jws
from trust.tls import server_context
from trust.tls.client import AgentTransport

FORGE = Forge()
AUTHORITY, IMPOSTOR, BILLING, PLANNER = (
    FORGE.leaf(f"/{name}") for name in ("authority", "impostor", "billing", "planner")
)
PEER = PeerVerifier(FORGE.bundles).verify(PLANNER.chain_der, now=NOW, usage="client")
OLD, NEW = SigningKey.generate(), SigningKey.generate()
SECOND = timedelta(seconds=1)
GOOD = json.dumps(public_jwks([OLD])).encode()

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/jwk-set+json") -> Respond:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *headers, "", ""]

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + body)

    return respond


def endless(head: bytes, piece: bytes, *, pause: float = 0.0) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return respond


@dataclass
class KeyServer:
    """What it is asked for, and the bytes that it answers with."""

    respond: Respond = field(default_factory=lambda: answer(GOOD))
    asked: list[str] = field(default_factory=list)  # the target of each request
    port: int = 0

    def publish(self, *keys: SigningKey) -> None:
        self.respond = answer(json.dumps(public_jwks(keys)).encode())

    @property
    def issuer(self) -> str:
        return f"https://localhost:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self, credentials: Any = AUTHORITY) -> AsyncIterator[None]:
        """On the port of the first time."""
        tasks: set[asyncio.Task[Any] | None] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.current_task())
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
                try:
                    while True:
                        head = await reader.readuntil(b"\r\n\r\n")
                        self.asked.append(head.split(b" ")[1].decode())
                        await self.respond(writer)
                        await writer.drain()
                finally:
                    writer.transport.abort()

        context = server_context(credentials, FORGE.bundles, members_of("fleet.example"))
        server = await asyncio.start_server(serve, "127.0.0.1", self.port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in tasks:
                if task is not None:
                    task.cancel()
            await asyncio.sleep(0)
            await server.wait_closed()


@dataclass
class Agent:
    """Validates tokens for billing with the keys of a key server."""

    keys: RemoteKeys
    validator: TokenValidator

    async def validate(self, token: str, now: Any = NOW) -> AccessToken:
        await self.validator.prepare(token, now=now)
        return self.validator.validate(token, peer=PEER, now=now)


@contextlib.asynccontextmanager
async def agent(server: KeyServer) -> AsyncIterator[Agent]:
    transport = AgentTransport(BILLING, FORGE.bundles, exactly(AUTHORITY.agent_id))
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
        keys = RemoteKeys(f"{server.issuer}/jwks", http)
        yield Agent(keys, TokenValidator(issuer=server.issuer, audience=BILLING.agent_id, keys=keys))


def token(server: KeyServer, key: SigningKey = OLD, **header: Any) -> str:
    claims = {
        "iss": server.issuer,
        "sub": str(PLANNER.agent_id),
        "client_id": str(PLANNER.agent_id),
        "aud": str(BILLING.agent_id),
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 1800,
        "jti": "1",
        "cnf": {"x5t#S256": PLANNER.thumbprint},
    }
    if not header:
        return sign_access_token(claims, key)
    header = {"alg": key.alg, "typ": "at+jwt", "kid": key.kid, **header}
    passed_over = ("jku", "x5u", "jwk")  # by who signs; the validator passes over nothing
    return jws.sign_compact(json.dumps(claims).encode(), key=key.private_key, header=header, passed_over=passed_over)


async def fetched(agent: Agent) -> None:
    """Until the fetch that is under way, if any, has ended."""
    if (task := agent.keys._flight.under_way) is not None:
        await task


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BAD: dict[str, tuple[str, Respond]] = {
    "body a byte at a time": ("TimeoutError", endless(HEAD + b"content-length: 4096\r\n\r\n", b" ", pause=0.005)),
    "head a byte at a time": ("TimeoutError", endless(HEAD + b"x: ", b"a", pause=0.005)),
    "silence": ("TimeoutError", endless(b"", b"", pause=0.02)),
    "endless headers": ("RemoteProtocolError", endless(HEAD, b"x: " + b"a" * 1000 + b"\r\n")),
    "endless header": ("RemoteProtocolError", endless(HEAD + b"x: ", b"a" * 1000)),
    "endless body": (
        "more than 65536 bytes",
        endless(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"400\r\n" + b" " * 1024 + b"\r\n"),
    ),
    "huge body": ("more than 65536 bytes", answer(GOOD + b" " * (1 << 20))),
    "huge by its length alone": (
        "more than 65536 bytes",
        endless(HEAD + b"content-length: 99999999999\r\n\r\n", b" " * 1024),
    ),
    "gzip bomb": ("compressed answer", answer(gzip.compress(bytes(10 << 20)), "content-encoding: gzip")),
    "gzip, good keys in it": ("compressed answer", answer(gzip.compress(GOOD), "content-encoding: gzip")),
    "gzip that is not said to be": ("HeaderMalformed", answer(gzip.compress(GOOD))),
    "right body, of no type": ("content type missing", answer(GOOD, kind="")),
    "right body as HTML": ("content type text/html", answer(GOOD, kind="text/html")),
    "HTML as a key set": ("HeaderMalformed", answer(b"<html>It works!</html>")),
    "redirect": ("status 302", answer(b"", "location: /elsewhere", status="302 Found")),
    "not modified": ("status 304", answer(b"", status="304 Not Modified")),
    "in trouble": ("status 503", answer(GOOD, status="503 Service Unavailable")),
    "cut short": ("TimeoutError", endless(HEAD + b"content-length: 4096\r\n\r\n" + GOOD, b"", pause=0.02)),
    "two lengths": (
        "RemoteProtocolError",
        endless(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", b"", pause=0.02),
    ),
    "another protocol": ("RemoteProtocolError", endless(b"SSH-2.0-OpenSSH_9.9\r\n", b"", pause=0.02)),
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how busy the machine is."""
    monkeypatch.setattr(remote, "FETCH_SECONDS", 30)


@pytest.mark.parametrize(("reason", "bad"), BAD.values(), ids=BAD)
def test_a_server_that_misbehaves_neither_gives_nor_takes_keys(
    reason: str, bad: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "TimeoutError":
        monkeypatch.setattr(remote, "FETCH_SECONDS", 0.3)

    async def run() -> None:
        server = KeyServer(respond=bad)
        async with server.running(), agent(server) as billing:
            # Cold: nothing can be said about the token. Not 401, for its holder did nothing wrong, and not 500.
            with pytest.raises(KeysUnavailable, match=reason) as caught:
                await billing.validate(token(server))
            assert caught.value.status == 503
            server.respond = answer(GOOD)
            with monkeypatch.context() as patch:
                patch.setattr(remote, "FETCH_SECONDS", 30)
                await billing.validate(token(server), NOW + FAILURE_REST)
            # With keys: they stay, and serve while it lasts.
            server.respond = bad
            stale = NOW + FAILURE_REST + FRESH
            await billing.validate(token(server), stale)
            await fetched(billing)
            await billing.validate(token(server), stale)
            with pytest.raises(KeysUnavailable, match=reason):
                await billing.validate(token(server), NOW + FAILURE_REST + USABLE)
            assert server.asked == ["/jwks"] * 4 or reason == "TimeoutError"

    asyncio.run(run())


def test_down_and_up_again() -> None:
    async def run() -> None:
        server = KeyServer()
        async with contextlib.AsyncExitStack() as up, agent_of_a_server_not_yet_there(server) as billing:
            with pytest.raises(KeysUnavailable, match="ConnectError"):
                await billing.validate(token(server))
            await up.enter_async_context(server.running())
            await billing.validate(token(server), NOW + FAILURE_REST)
            await up.aclose()  # killed: its connections, too
            for seconds in range(0, 1200, 60):
                await billing.validate(token(server), NOW + FAILURE_REST + timedelta(seconds=seconds))
                await fetched(billing)
            with pytest.raises(KeysUnavailable):  # whether it is a key of the issuer cannot be known now
                await billing.validate(token(server, NEW), NOW + timedelta(minutes=25))
            server.publish(OLD, NEW)
            async with server.running():
                await billing.validate(token(server, NEW), NOW + timedelta(minutes=26))
                await billing.validate(token(server), NOW + timedelta(minutes=26))

    asyncio.run(run())


@contextlib.asynccontextmanager
async def agent_of_a_server_not_yet_there(server: KeyServer) -> AsyncIterator[Agent]:
    async with server.running():
        pass  # now it has a port
    async with agent(server) as billing:
        yield billing


def test_another_agent_in_the_servers_place_is_not_asked() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(IMPOSTOR), agent(server) as billing:
            with pytest.raises(KeysUnavailable, match="PeerNotAllowed"):
                await billing.validate(token(server))
            assert server.asked == []

    asyncio.run(run())


def test_a_rotation_from_the_next_key_to_the_old_one_withdrawn() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(), agent(server) as billing:
            server.publish(OLD, NEW)  # before NEW signs anything
            await billing.validate(token(server))
            await billing.validate(token(server, NEW), NOW + SECOND)
            assert len(server.asked) == 1
            server.publish(NEW)
            await billing.validate(token(server), NOW + FRESH)  # until the fetch that this causes has ended
            await fetched(billing)
            assert len(server.asked) == 2
            with pytest.raises(TokenKeyUnknown):  # although the validator remembers the token
                await billing.validate(token(server), NOW + FRESH)
            await billing.validate(token(server, NEW), NOW + FRESH)

    asyncio.run(run())


def test_another_key_under_the_same_id() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(), agent(server) as billing:
            await billing.validate(token(server))
            server.respond = answer(json.dumps({"keys": [{**NEW.public_jwk, "kid": OLD.kid}]}).encode())
            with pytest.raises(TokenKeyUnknown):
                await billing.validate(token(server, NEW), NOW + SECOND)  # an ID that is not there: fetched
            with pytest.raises(TokenSignatureWrong):
                await billing.validate(token(server), NOW + SECOND)
            await billing.validate(token(server, NEW, kid=OLD.kid), NOW + SECOND)

    asyncio.run(run())


def test_one_fetch_for_200_tokens_at_once() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(), agent(server) as billing:
            first = asyncio.create_task(billing.validate(token(server)))
            others = [asyncio.create_task(billing.validate(token(server))) for _ in range(200)]
            await asyncio.sleep(0)
            first.cancel()
            assert {access.token_id for access in await asyncio.gather(*others)} == {"1"}
            with pytest.raises(asyncio.CancelledError):
                await first
            assert server.asked == ["/jwks"]

    asyncio.run(run())


def test_made_up_key_ids_cost_one_fetch_and_choose_nothing() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(), agent(server) as billing:
            await billing.validate(token(server))
            paths = [
                "../private",
                "/jwks?kid=x",
                "https://evil.example/",
                "a\r\nhost: evil.example",
                "\0",
                "%2e%2e/",
                ".",
            ]
            for kid in (*paths, *(f"made up {n}" for n in range(10_000))):
                await billing.keys.prepare(kid, now=NOW + SECOND)
            for kid in paths:
                with pytest.raises(TokenKeyUnknown):
                    await billing.validate(token(server, kid=kid), NOW + UNKNOWN_KID_REST)
            assert server.asked == ["/jwks"] * 2

    asyncio.run(run())


def test_no_address_or_key_of_a_token_is_used() -> None:
    async def run() -> None:
        server = KeyServer()
        async with server.running(), agent(server) as billing:
            for header in (
                {"jku": f"{server.issuer}/jku"},
                {"x5u": f"{server.issuer}/x5u"},
                {"jwk": NEW.public_jwk},
                {"jku": f"{server.issuer}/jku", "kid": "made up"},
            ):
                with pytest.raises(TokenMalformed):
                    await billing.validate(token(server, NEW, **header))
            assert server.asked == []

    asyncio.run(run())
