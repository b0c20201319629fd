"""One rule for each destination: who answers there, and that nobody else is asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from tests.interop.programs import save
from tests.trust.tls.parts import AGENT, FORGE, SERVER_ID, client, echo, run, until
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.errors import ConfigurationError, DestinationRefused, HandshakeRefused, NoPeerCertificate, PeerNotAllowed
from trust.tls import AgentTransport, destinations, peer_of_response, serving
from trust.tls.destinations import Rules, WebPKI

OTHER_ID = "spiffe://fleet.example/other"
ROOT = FORGE.root.public_bytes(Encoding.PEM).decode()
PATIENT = httpx.Timeout(60)


def here(path: str = "/server", **options: Any) -> Any:
    return serving(
        echo,
        source=FORGE.leaf(path),
        bundles=FORGE.bundles,
        authorize=unsafe_allow_any_peer(),
        lifespan="off",
        **options,
    )


def test_each_destination_has_its_agent() -> None:
    async def main() -> None:
        async with here() as one, here("/other") as other:
            rules = {one.url: exactly(SERVER_ID), other.url: exactly(OTHER_ID)}
            async with client(authorize=rules) as agent:
                for server, name in ((one, SERVER_ID), (other, OTHER_ID), (one, SERVER_ID)):
                    answer = await agent.get(server.url + "/path?query", timeout=PATIENT)
                    assert str(peer_of_response(answer).agent_id) == name

    run(main())


def test_an_agent_of_another_destination_is_refused() -> None:
    """Inside the handshake: it learns neither who we are nor what we wanted."""
    told: list[Exception] = []

    async def main() -> None:
        async with here("/other", on_refused=lambda error, _: told.append(error)) as server, here("/other") as other:
            rules = {server.url: exactly(SERVER_ID), other.url: exactly(OTHER_ID)}
            async with client(authorize=rules) as agent:
                with pytest.raises(PeerNotAllowed, match=f"expected {SERVER_ID}"):
                    await agent.post(server.url, content=b"secret", timeout=PATIENT)
                assert (await agent.get(other.url, timeout=PATIENT)).status_code == 200
            await until(lambda: told, 20)

    run(main())
    assert type(told[0]) is HandshakeRefused


def test_a_rule_stays_when_the_trust_is_reloaded() -> None:
    async def main() -> None:
        async with here() as server, here("/other") as other:
            rules = {server.url: exactly(SERVER_ID), other.url: exactly(SERVER_ID)}
            async with client(authorize=rules) as agent:
                transport: Any = agent._transport
                transport.context.reload(authorize=unsafe_allow_any_peer())
                assert (await agent.get(server.url, timeout=PATIENT)).status_code == 200
                with pytest.raises(PeerNotAllowed):
                    await agent.get(other.url, timeout=PATIENT)
                transport.context.reload(authorize=exactly(OTHER_ID))
                with pytest.raises(PeerNotAllowed):
                    await agent.get(server.url, timeout=PATIENT)

    run(main())


RULES = {"https://billing.fleet.example": exactly(SERVER_ID), "https://Web.Example:8443/": WebPKI()}
REFUSED = [
    "https://other.fleet.example/",
    "https://billing.fleet.example:8443/",
    "https://web.example/",
    "https://billing.fleet.example./",
    "https://fleet.example/https://billing.fleet.example/",
    "https://billing.fleet.example@evil.example/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_destination_without_a_rule_is_refused(url: str) -> None:
    async def main() -> None:
        async with client(authorize=RULES) as agent:
            with pytest.raises(DestinationRefused, match=r"https://billing.fleet.example or https://web.example:8443"):
                await agent.get(url)

    run(main())


def test_how_destinations_are_compared() -> None:
    rules = Rules(RULES)
    same = {
        rules.origin(httpx.URL(f"https://{host}/x")) for host in ("BILLING.fleet.example", "billing.fleet.example:443")
    }
    assert same == {("billing.fleet.example", 443)}
    assert Rules({"https://[::1]:1": exactly(SERVER_ID)}).origin(httpx.URL("https://[::1]:1/")) == ("::1", 1)
    with pytest.raises(DestinationRefused, match=r"got https://\[::2\]:1, expected https://\[::1\]:1"):
        Rules({"https://[::1]:1": exactly(SERVER_ID)}).origin(httpx.URL("https://[::2]:1/"))


def test_addresses_that_are_kept() -> None:
    """Only short ones: the number is bounded, and so is the size."""
    short, long = "https://a.example/x?y", "https://a.example/" + "x" * destinations.MAX_KEPT_URL
    assert destinations.url_of(short) is destinations.url_of(short) == httpx.URL(short)
    assert destinations.url_of(long) is not destinations.url_of(long) == httpx.URL(long)
    with pytest.raises(httpx.InvalidURL):
        destinations.url_of("https://[::1")


@pytest.mark.parametrize("authorize", [exactly(SERVER_ID), RULES], ids=["one rule", "destinations"])
def test_port_0_is_no_other(authorize: Any) -> None:
    with pytest.raises(ConfigurationError, match="got port 0, expected a port from 1 to 65535"):
        Rules(authorize).origin(httpx.URL("https://billing.fleet.example:0/"))


def test_a_host_that_is_no_idn_is_refused_like_any_other_without_tls() -> None:
    with pytest.raises(ConfigurationError, match="got http://xn--a, expected https://"):
        Rules(exactly(SERVER_ID)).origin(httpx.URL("http://xn--a/"))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"https://web.example": WebPKI()},
        {"http://billing.fleet.example": exactly(SERVER_ID)},
        {"billing.fleet.example": exactly(SERVER_ID)},
        {"https://": exactly(SERVER_ID)},
        {"https://billing.fleet.example/path": exactly(SERVER_ID)},
        {"https://billing.fleet.example?query": exactly(SERVER_ID)},
        {"https://user@billing.fleet.example": exactly(SERVER_ID)},
        {"https://billing.fleet.example:port": exactly(SERVER_ID)},
        {"https://billing.fleet.example:0": exactly(SERVER_ID)},
        {"https://xn--a": exactly(SERVER_ID)},
        {1: exactly(SERVER_ID)},
        {"https://a.example": exactly(SERVER_ID), "https://A.example:443": exactly(OTHER_ID)},
        {"https://a.example": exactly(SERVER_ID), "https://A.example:443": WebPKI()},
    ],
    ids=str,
)
def test_destinations_that_are_none(rules: Any) -> None:
    with pytest.raises(ConfigurationError):
        AgentTransport(AGENT, FORGE.bundles, rules)


# Servers outside any trust domain.


@asynccontextmanager
async def web_server(folder: Path, seen: list[Any], forge: Forge = FORGE) -> AsyncIterator[int]:
    """A TLS server as the world has them: for localhost, glad about a client certificate and content without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = save(folder, forge.leaf("/server"), "web")
    context.load_cert_chain(chain, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=ROOT)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append(writer.get_extra_info("ssl_object").getpeercert())
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nweb")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_a_web_server_is_known_by_its_name_and_gets_no_certificate(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with here() as server, web_server(tmp_path, seen) as port:
            rules = {server.url: exactly(SERVER_ID), f"https://localhost:{port}": WebPKI(roots=ROOT)}
            async with client(authorize=rules) as agent:
                answer = await agent.get(f"https://localhost:{port}/", timeout=PATIENT)
                assert answer.text == "web"
                with pytest.raises(NoPeerCertificate):
                    peer_of_response(answer)
                assert (await agent.get(server.url, timeout=PATIENT)).headers["x-peer"] == "/billing"

    run(main())
    assert seen == [None]


@pytest.mark.parametrize(
    ("case", "host", "roots"),
    [
        ("another name", "127.0.0.1", ROOT),
        ("another authority", "localhost", Forge().root.public_bytes(Encoding.PEM).decode()),
        ("an authority that the world does not know", "localhost", None),
    ],
)
def test_a_web_server_that_is_refused(case: str, host: str, roots: str | None, tmp_path: Path) -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with web_server(tmp_path, seen) as port:
            url = f"https://{host}:{port}"
            rules = {url: WebPKI(roots=roots), "https://agent.example": exactly(SERVER_ID)}
            async with client(authorize=rules) as agent:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await agent.get(url, timeout=PATIENT)

    run(main())
    assert seen == []


def test_a_web_server_where_an_agent_should_be(tmp_path: Path) -> None:
    """Its certificate would do for its name; it is an agent's that is asked for, and by its SPIFFE ID."""

    async def main() -> None:
        async with here("/other") as server:
            url = server.url.replace("127.0.0.1", "localhost")
            async with client(authorize={url: exactly(SERVER_ID)}) as agent:
                with pytest.raises(PeerNotAllowed):
                    await agent.get(url, timeout=PATIENT)

    run(main())


def test_the_environment_adds_no_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    (tmp_path / "root.pem").write_text(ROOT)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))

    async def main() -> None:
        async with web_server(tmp_path, seen) as port:
            url = f"https://localhost:{port}"
            async with client(authorize={url: WebPKI(), "https://a.example": exactly(SERVER_ID)}) as agent:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await agent.get(url, timeout=PATIENT)

    run(main())
    assert not (tmp_path / "keys").exists()
