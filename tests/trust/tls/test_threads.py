"""`httpx.Client` over the same connections: the same errors, in whatever thread asks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.forge import Forge
from tests.trust.tls.parts import AGENT, FORGE, SERVER, SERVERS, echo, run
from tests.trust.tls.test_client import BAD_SERVERS, Scripted
from trust.authorize import unsafe_allow_any_peer
from trust.credentials import Credentials
from trust.errors import ConfigurationError, HandshakeRefused, TrustError
from trust.tls import AgentTransport, peer_of_response, serving
from trust.tls.threads import BlockingTransport

OPTIONS: dict[str, Any] = {"bundles": FORGE.bundles, "authorize": unsafe_allow_any_peer(), "lifespan": "off"}


def client(credentials: Credentials | None = AGENT, **options: Any) -> httpx.Client:
    arguments = {"bundles": FORGE.bundles, "authorize": SERVERS, **options}
    return httpx.Client(transport=BlockingTransport(AgentTransport(credentials, **arguments)), timeout=60)


def against(talk: Callable[[str], None], app: Any = echo, **options: Any) -> None:
    """Run `talk` in a thread, against a server."""

    async def main() -> None:
        async with serving(app, **{"source": SERVER, **OPTIONS, **options}) as server:
            await asyncio.to_thread(talk, server.url)

    run(main())


def test_a_call() -> None:
    def talk(url: str) -> None:
        with client() as agent:
            for body in (b"", b"question", b"x" * 3_000_000):
                response = agent.post(url, content=body)
                assert (response.headers["x-peer"], response.content) == ("/billing", body)
                assert peer_of_response(response).agent_id == SERVER.agent_id

    against(talk)


def test_many_threads_share_one_client() -> None:
    def talk(url: str) -> None:
        with client() as agent, ThreadPoolExecutor(8) as threads:
            answers = threads.map(lambda n: agent.post(url, content=b"%d" % n).content, range(40))
            assert list(answers) == [b"%d" % n for n in range(40)]

    against(talk)


@pytest.mark.parametrize(("case", "credentials", "options", "expected"), BAD_SERVERS, ids=[c[0] for c in BAD_SERVERS])
def test_a_server_that_is_refused(
    case: str, credentials: Credentials, options: dict[str, Any], expected: type[TrustError]
) -> None:
    def talk(url: str) -> None:
        with client(**options) as agent:
            with pytest.raises(TrustError) as caught:
                agent.post(url, content=b"secret")
            assert type(caught.value) is expected

    against(talk, source=credentials)


def test_our_certificate_is_refused() -> None:
    def talk(url: str) -> None:
        for body in (b"", b"x" * 3_000_000):
            with client(Forge().leaf()) as agent, pytest.raises(HandshakeRefused, match="alert unknown_ca"):
                agent.post(url, content=body)

    against(talk)


def test_timeouts() -> None:
    done = threading.Event()
    with Scripted(lambda accepted: done.wait(20) and None) as server, client() as agent:
        with pytest.raises(httpx.ConnectTimeout, match="TLS handshake"):
            agent.get(server.url, timeout=0.2)
        done.set()


def test_a_body_is_read_in_the_thread_that_sends_it() -> None:
    threads: set[int] = set()

    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            threads.add(threading.get_ident())
            yield b"part"

    def talk(url: str) -> None:
        with client() as agent:
            assert agent.post(url, content=chunks()).content == b"part" * 5
        assert threads == {threading.get_ident()}

    against(talk)


def test_an_error_of_the_body_that_is_sent() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"part"
        raise ZeroDivisionError

    def talk(url: str) -> None:
        with client() as agent:
            with pytest.raises(ZeroDivisionError):
                agent.post(url, content=chunks())
            assert agent.get(url).status_code == 200

    against(talk)


async def three_events(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(3):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b""})


def test_a_stream() -> None:
    def talk(url: str) -> None:
        with client() as agent:
            with agent.stream("GET", url) as response:
                assert [line for line in response.iter_lines() if line] == ["data: 0", "data: 1", "data: 2"]
            with agent.stream("GET", url) as response:
                assert next(response.iter_lines()) == "data: 0"  # and leaves
            assert agent.get(url).status_code == 200

    against(talk, three_events)


class Interrupted(BaseException):
    pass


def test_a_call_that_is_interrupted_ends_its_request() -> None:
    """As by Ctrl-C, wherever it is: here in the body."""

    def chunks() -> Iterator[bytes]:
        yield b"part"
        raise Interrupted

    def talk(url: str) -> None:
        with client() as agent:
            with pytest.raises(Interrupted):
                agent.post(url, content=chunks())
            assert agent.get(url).status_code == 200

    against(talk)


def test_a_client_that_is_closed() -> None:
    transport = BlockingTransport(AgentTransport(AGENT, FORGE.bundles, SERVERS))
    before = set(threading.enumerate())
    with contextlib.suppress(httpx.ConnectError), httpx.Client(transport=transport) as agent:
        agent.get("https://127.0.0.1:1/")
    assert set(threading.enumerate()) == before
    with pytest.raises(ConfigurationError, match="closed"):
        transport.handle_request(httpx.Request("GET", "https://127.0.0.1:1/"))
    transport.close()


def test_a_client_that_was_never_used() -> None:
    with client():
        pass


def test_inside_an_event_loop() -> None:
    """A blocking call blocks the loop, as any other does, and works."""

    async def main() -> None:
        with client() as agent, pytest.raises(httpx.ConnectError):
            agent.get("https://127.0.0.1:1/")

    run(main())
