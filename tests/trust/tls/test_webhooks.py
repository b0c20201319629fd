"""What a client does to servers that others name, and what it lets them do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from tests.endpoints import WEB, Endpoint, over_web, web_roots
from tests.forge import Forge, spiffe
from tests.trust.tls.parts import AGENT, FORGE, LOOPS, SERVER, SERVERS, run
from trust.agent import serving
from trust.authorize import exactly, members_of
from trust.errors import AddressRefused, ConfigurationError, PeerNotAllowed, UntrustedChain
from trust.tls import reach, webhooks
from trust.tls.client import AgentTransport
from trust.tls.destinations import WebPKI
from trust.tls.reach import Reach
from trust.tls.webhooks import WebhookTransport

LOOPBACK = ("127.0.0.0/8", "::1/128")


def client(**rules: Any) -> httpx.AsyncClient:
    arguments = {"known": {}, "others": None, **rules}
    return httpx.AsyncClient(transport=WebhookTransport(AGENT, FORGE.bundles, **arguments), trust_env=False)


def anywhere(url: str, others: Any) -> httpx.AsyncClient:
    """A client that may go to this server, which it does not know."""
    return client(others=others, networks=LOOPBACK, ports=(httpx.URL(url).port,))


@contextlib.asynccontextmanager
async def hook(kind: str, app: Any, folder: Path) -> AsyncIterator[tuple[str, Any]]:
    """A webhook, and the rule for it."""
    if kind == "web":
        async with over_web(app, folder) as url:
            yield url, WebPKI(roots=web_roots(folder).read_text())
    else:
        async with serving(
            app, source=SERVER, bundles=FORGE.bundles, authorize=exactly(AGENT.agent_id), lifespan="off"
        ) as server:
            yield server.url + "/bundle", SERVERS


def nobody(host: str, port: int) -> list[str]:
    raise socket.gaierror(-2, "no such name")


KINDS = pytest.mark.parametrize("kind", ["web", "agent"])


@KINDS
def test_known_servers_may_be_anywhere(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(b"")
        async with hook(kind, endpoint, tmp_path) as (url, rule):
            async with client(known={url.removesuffix("/bundle"): rule}) as sender:
                assert (await sender.post(url, content=b"x")).status_code == 200
            other = (
                url.replace("localhost", "127.0.0.1") if "localhost" in url else url.replace("127.0.0.1", "localhost")
            )
            async with client(known={url.removesuffix("/bundle"): rule}, others=rule) as sender:
                with pytest.raises(AddressRefused):
                    await sender.post(other, content=b"x")
        assert len(endpoint.asked) == 1

    asyncio.run(main())


@KINDS
def test_of_an_answer_only_the_status_comes_back(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(b"root:x:0:0")
        endpoint.status, endpoint.headers = 302, {"location": "http://169.254.169.254/", "set-cookie": "a=b"}
        async with hook(kind, endpoint, tmp_path) as (url, rule), anywhere(url, rule) as sender:
            for _ in range(3):
                answer = await sender.post(url, content=b"x")
                assert (answer.status_code, answer.content, dict(answer.headers)) == (302, b"", {})
            assert not sender.cookies
        peers = [tuple(scope["client"]) for scope in endpoint.asked]
        assert len(peers) == 3
        assert any(one == other for one, other in pairwise(peers))  # a connection is used again, if not for too long

    asyncio.run(main())


class Flood:
    """Answers without an end: as fast as it is read, or a byte now and then."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.sent = 0
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(self._gone(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * (1 if self.pause else 16384), "more_body": True})
            self.sent += 1
            await asyncio.sleep(self.pause)
        self.ended.set()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@KINDS
def test_an_answer_without_an_end(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        flood = Flood(0)
        async with hook(kind, flood, tmp_path) as (url, rule), anywhere(url, rule) as sender:
            assert (await sender.post(url, content=b"x")).status_code == 200
            async with asyncio.timeout(20):
                await flood.ended.wait()

    asyncio.run(main())


def test_small_parts_count_for_more_than_their_bytes() -> None:
    """A million chunks of one byte come at once, and each of them is work."""
    taken = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 1_000_000:
            taken += 1
            yield b"x"

    asyncio.run(webhooks._read_over(parts()))
    assert taken == webhooks.MAX_ANSWER_BYTES // webhooks.PART_BYTES + 1


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 103 E\r\n" + b"a:b\r\n" * 50 + b"\r\n"],
    ids=["continue", "early hints"],
)
def test_interim_answers_without_an_end(interim: bytes, tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        with contextlib.suppress(OSError):
            while True:
                writer.write(interim * 1000)
                await writer.drain()
        writer.transport.abort()
        ended.set()

    async def main() -> None:
        WEB.leaf("/web").save(tmp_path / "web")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "web" / "chain.pem", tmp_path / "web" / "key.pem")
        async with await asyncio.start_server(server, "127.0.0.1", 0, ssl=context) as listening:
            url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/"
            async with anywhere(url, WebPKI(roots=web_roots(tmp_path).read_text())) as sender:
                with pytest.raises(httpx.ReadError, match=f"more than {webhooks.MAX_WIRE_BYTES} bytes"):
                    await sender.post(url, content=b"x")
            async with asyncio.timeout(20):
                await ended.wait()

    asyncio.run(main())


def test_each_answer_has_its_own_limit(tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(b"x" * 40_000)
        async with hook("web", endpoint, tmp_path) as (url, rule), anywhere(url, rule) as sender:
            for _ in range(5):
                assert (await sender.post(url, content=b"x")).status_code == 200
        assert len({tuple(scope["client"]) for scope in endpoint.asked}) < 5  # some were on one connection

    asyncio.run(main())


@KINDS
def test_an_answer_that_takes_for_ever(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "DELIVERY_SECONDS", 0.5)

    async def main() -> None:
        flood = Flood(0.02)
        async with hook(kind, flood, tmp_path) as (url, rule), anywhere(url, rule) as sender:
            async with asyncio.timeout(20):
                with pytest.raises(httpx.ReadTimeout, match=r"did not answer within 0\.5 s"):
                    await sender.post(url, content=b"x", timeout=None)
            if flood.sent:  # else the time was over before the server was reached
                async with asyncio.timeout(20):
                    await flood.ended.wait()

    asyncio.run(main())


@KINDS
@pytest.mark.parametrize("loop", LOOPS)
def test_no_proxy_of_the_environment(loop: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def main() -> None:
        async with hook(kind, Endpoint(b""), tmp_path) as (url, rule), anywhere(url, rule) as sender:
            assert (await sender.post(url, content=b"x")).status_code == 200

    run(main(), loop)


def test_a_web_server_proves_its_name(tmp_path: Path) -> None:
    """The connection goes to an address; what the certificate has to show is the name."""

    async def main() -> None:
        elsewhere = WEB.leaf("/web", sans=[spiffe("spiffe://web.example/web"), x509.DNSName("hooks.example")])
        async with over_web(endpoint := Endpoint(b""), tmp_path, elsewhere) as url:
            async with anywhere(url, WebPKI(roots=web_roots(tmp_path).read_text())) as sender:
                with pytest.raises(httpx.ConnectError, match="certificate is not valid for 'localhost'"):
                    await sender.post(url, content=b"x")
            async with anywhere(url, WebPKI()) as sender:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await sender.post(url, content=b"x")
        assert not endpoint.asked

    asyncio.run(main())


def test_an_agent_proves_who_it_is() -> None:
    async def main() -> None:
        async with hook("agent", endpoint := Endpoint(b""), Path()) as (url, _):
            async with anywhere(url, exactly("spiffe://fleet.example/another")) as sender:
                with pytest.raises(PeerNotAllowed):
                    await sender.post(url, content=b"x")
            async with client(known={url.removesuffix("/bundle"): SERVERS}) as sender:
                assert (await sender.post(url, content=b"x")).status_code == 200
        assert len(endpoint.asked) == 1

    asyncio.run(main())


def test_an_agent_of_another_ca() -> None:
    async def main() -> None:
        impostor = Forge(FORGE.domain)
        async with (
            serving(
                Endpoint(b""), source=impostor.leaf("/server"), bundles=FORGE.bundles, authorize=SERVERS, lifespan="off"
            ) as server,
            anywhere(server.url, members_of(FORGE.domain)) as sender,
        ):
            with pytest.raises(UntrustedChain):
                await sender.post(server.url, content=b"x")

    asyncio.run(main())


@KINDS
def test_nobody_listens(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with hook(kind, Endpoint(b""), tmp_path) as (url, rule):
            pass
        async with anywhere(url, rule) as sender:
            with pytest.raises(httpx.ConnectError):
                await sender.post(url, content=b"x")
        monkeypatch.setattr(reach, "_resolve", nobody)
        async with client(others=rule) as sender:
            with pytest.raises(httpx.ConnectError, match="no such name"):
                await sender.post("https://nowhere.example/", content=b"x")

    asyncio.run(main())


def test_what_is_not_https() -> None:
    async def main() -> None:
        async with client(others=WebPKI()) as sender:
            with pytest.raises(AddressRefused, match="got http, expected https"):
                await sender.post("http://hooks.example/", content=b"x")

    asyncio.run(main())


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"known": {"https://hooks.example/path": WebPKI()}},
        {"known": {"https://hooks.example": WebPKI(), "https://Hooks.example:443": WebPKI()}},
        {"known": {"https://a.example": SERVERS, "https://b.example": "anybody"}},
        {"others": "anybody"},
        {"others": {"https://hooks.example": SERVERS, "https://b.example": WebPKI()}},
    ],
    ids=["nothing", "a path", "twice", "no rule", "no rule for others", "rules for others"],
)
def test_what_cannot_be_meant(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        client(**rules)


def test_a_reach_is_not_for_a_proxy() -> None:
    with pytest.raises(ConfigurationError, match="agents, without a proxy"):
        AgentTransport(AGENT, FORGE.bundles, SERVERS, proxy="http://proxy.example:3128", reach=Reach())
