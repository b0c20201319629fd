"""Through an HTTP proxy: a way for TLS from end to end, and clear words when there is none."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.interop.programs import needs
from tests.ports import free_port, wait_until_listens
from tests.trust.tls.parts import AGENT, FORGE, LOOPS, SERVER, client, echo, port_of, run, until
from tests.trust.tls.test_destinations import ROOT, web_server
from trust.agent import agent_client, sync_agent_client
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.errors import ConfigurationError, HandshakeFailed, PeerNotAllowed
from trust.tls import AgentTransport, peer_of_response, serving
from trust.tls.destinations import WebPKI
from trust.tls.proxy import Proxy

PATIENT = httpx.Timeout(60)


def here() -> Any:
    return serving(
        echo, source=SERVER, bundles=FORGE.bundles, authorize=unsafe_allow_any_peer(), host="127.0.0.1", lifespan="off"
    )


@contextlib.contextmanager
def tinyproxy(folder: Path, *settings: str) -> Iterator[str]:
    port = free_port()
    file = folder / "tinyproxy.conf"
    file.write_text("\n".join([f"Port {port}", "Listen 127.0.0.1", "Allow 127.0.0.1", "Timeout 60", *settings, ""]))
    process = subprocess.Popen(["tinyproxy", "-d", "-c", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_until_listens(port, process.poll)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=20)


@needs("tinyproxy")
@pytest.mark.parametrize("loop", LOOPS)
def test_through_a_proxy(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with here() as server:
            with tinyproxy(tmp_path) as proxy:
                async with client(proxy=f"http://{proxy}") as agent:
                    for body in (b"x" * 10_000_000, b"again"):
                        response = await agent.post(server.url, content=body, timeout=PATIENT)
                        assert (response.headers["x-peer"], response.content) == ("/billing", body)
                    assert peer_of_response(response).agent_id == SERVER.agent_id
                    stream = response.extensions["network_stream"]
                    assert stream.get_extra_info("server_addr")[1] == int(proxy.rpartition(":")[2])

    run(main(), loop)


@needs("tinyproxy")
def test_an_agent_behind_a_proxy_is_judged_as_any_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with here() as server:
            with tinyproxy(tmp_path) as proxy:
                other = exactly("spiffe://fleet.example/other")
                async with client(proxy=f"http://{proxy}", authorize=other) as agent:
                    with pytest.raises(PeerNotAllowed):
                        await agent.get(server.url, timeout=PATIENT)

    run(main())


@needs("tinyproxy")
def test_a_proxy_that_asks_who_we_are(tmp_path: Path) -> None:
    async def main() -> None:
        async with here() as server:
            with tinyproxy(tmp_path, "BasicAuth user pass_word") as proxy:
                for url, words in ((f"http://{proxy}", "401|407"), (f"http://user:wrong@{proxy}", "401|407")):
                    async with client(proxy=url) as agent:
                        with pytest.raises(httpx.ProxyError, match=words) as caught:
                            await agent.get(server.url, timeout=PATIENT)
                        assert "wrong" not in str(caught.value)
                async with client(proxy=f"http://user:pass%5Fword@{proxy}") as agent:
                    assert (await agent.get(server.url, timeout=PATIENT)).status_code == 200

    run(main())


@needs("tinyproxy")
def test_a_proxy_that_does_not_allow_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with here() as server:
            with tinyproxy(tmp_path, "ConnectPort 443") as proxy:
                async with client(proxy=f"http://{proxy}") as agent:
                    expected = f"refused the way to 127.0.0.1:{port_of(server.url)}: got 403, expected 200; let the"
                    with pytest.raises(httpx.ProxyError, match=expected):
                        await agent.get(server.url, timeout=PATIENT)

    run(main())


@needs("tinyproxy")
def test_a_web_server_through_a_proxy(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with web_server(tmp_path, seen) as port:
            with tinyproxy(tmp_path) as proxy:
                url = f"https://localhost:{port}"
                rules = {url: WebPKI(roots=ROOT), "https://agent.example": unsafe_allow_any_peer()}
                async with client(proxy=f"http://{proxy}", authorize=rules) as agent:
                    assert (await agent.get(url, timeout=PATIENT)).text == "web"

    run(main())
    assert seen == [None]


@needs("tinyproxy")
def test_the_clients_of_a_user(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"source": AGENT, "bundles": FORGE.bundles, "authorize": unsafe_allow_any_peer()}

    async def main() -> None:
        async with here() as server:
            with tinyproxy(tmp_path) as proxy:
                async with agent_client(**arguments, proxy=f"http://{proxy}") as agent:
                    assert (await agent.get(server.url)).status_code == 200

                def from_a_thread() -> int:
                    with sync_agent_client(**arguments, proxy=f"http://{proxy}") as agent:
                        return agent.get(server.url).status_code

                assert await asyncio.to_thread(from_a_thread) == 200

    run(main())


# Proxies that are none.


@contextlib.asynccontextmanager
async def answering(answer: bytes, asked: list[bytes]) -> Any:
    talks: list[asyncio.Task[Any]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            if answer and b"200" not in answer[:15]:
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*talks)


BAD: list[tuple[str, bytes, str]] = [
    ("it refuses", b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n", "407.*user and password"),
    ("it is ill", b"HTTP/1.1 502 No\r\ncontent-length: 1\r\n\r\nx", "502.*log"),
    ("it is a web server", b"HTTP/1.1 301 No\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "301"),
    ("it speaks before TLS does", b"HTTP/1.1 200 OK\r\n\r\n\x15\x03\x03\x00\x02\x02\x28", "more than its answer"),
    ("it has a body", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "more than its answer"),
    (
        "it answers twice",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "more than its answer",
    ),
    ("it speaks RTSP", b"RTSP/1.0 200 OK\r\n\r\n", "no answer.*another protocol"),
    ("it speaks no HTTP", b"SSH-2.0-OpenSSH\r\n", "no answer"),
    ("it could be read in two ways", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", "no answer"),
    ("it never ends", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 12_000, "no answer.*65536 bytes of head"),
    ("it says nothing", b"", "before it answered"),
    ("it breaks off", b"HTTP/1.1 2", "."),
]


@pytest.mark.parametrize(("case", "answer", "words"), BAD, ids=[c[0] for c in BAD])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_no_way(loop: str, case: str, answer: bytes, words: str) -> None:
    asked: list[bytes] = []

    async def main() -> None:
        async with answering(answer, asked) as proxy, client(proxy=proxy) as agent:
            with pytest.raises((httpx.ProxyError, httpx.ConnectTimeout), match=words) as caught:
                await agent.get(
                    "https://agent.example/", timeout=httpx.Timeout(60, connect=1 if "breaks" in case else 60)
                )
            assert "secret" not in str(caught.value)
            await until(lambda: len(agent._transport._pool) == 0)  # type: ignore[attr-defined]

    run(main(), loop)
    pair = base64.b64encode(b"user:secret").decode()
    head = f"CONNECT agent.example:443 HTTP/1.1\r\nHost: agent.example:443\r\nProxy-Authorization: Basic {pair}\r\n\r\n"
    assert asked == [head.encode()]


def test_a_way_that_ends_at_once() -> None:
    async def main() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n\r\n", []) as proxy, client(proxy=proxy) as agent:
            with pytest.raises(HandshakeFailed):
                await agent.get("https://[::1]:1/", timeout=PATIENT)

    run(main())


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with client(proxy=f"http://127.0.0.1:{port}") as agent:
            with pytest.raises(httpx.ConnectError, match="proxy"):
                await agent.get("https://agent.example/")

    run(main())


@pytest.mark.parametrize(
    "url",
    ["", "proxy:3128", "https://proxy", "socks5://proxy", "http://", "http://user:secret@proxy/x", "http://[::1", 1],
)
def test_urls_that_name_no_proxy(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected http://host:port") as caught:
        AgentTransport(AGENT, FORGE.bundles, unsafe_allow_any_peer(), proxy=url)
    assert "secret" not in str(caught.value)


def test_port_0_is_no_other() -> None:
    with pytest.raises(ConfigurationError, match="port 0"):
        Proxy("http://user:secret@proxy:0")


def test_a_password_is_not_shown() -> None:
    assert repr(Proxy("http://user:secret@proxy:3128")) == "Proxy(proxy:3128)"
