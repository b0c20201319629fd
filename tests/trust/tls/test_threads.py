"""`httpx.Client` over the same connections: the same errors, in whatever thread asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
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
from trust.tls import AgentTransport, peer_of_response, pool, serving
from trust.tls import threads as threads_module
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


def test_what_is_no_chunk_does_not_end_a_body() -> None:
    """The server would take the part before it for the whole."""

    def talk(url: str) -> None:
        with client() as agent, pytest.raises(TypeError):
            agent.post(url, content=iter([b"part", None, b"part"]))  # type: ignore[list-item]

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


# Closed while others use it.


class Held:
    """Answers with the beginning of a body, or with nothing, until its client goes away."""

    def __init__(self, answers: bool) -> None:
        self.asked = threading.Event()
        self.answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.answers:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        self.asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass


def get(agent: httpx.Client, url: str) -> object:
    return agent.get(url)


def upload(agent: httpx.Client, url: str) -> object:
    return agent.post(url, content=iter([b"part"] * 1_000_000))


@pytest.mark.parametrize(
    ("answers", "ask"), [(False, get), (True, get), (False, upload)], ids=["answer", "body", "upload"]
)
def test_closed_in_the_middle_of_calls(answers: bool, ask: Callable[[httpx.Client, str], object]) -> None:
    app = Held(answers)

    def talk(url: str) -> None:
        agent = client()
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(ask, agent, url) for _ in range(3)]
            assert app.asked.wait(20)
            agent.close()
            for call in calls:
                assert str(call.exception(20)) == "client was closed"
                assert type(call.exception()) is httpx.TransportError

    against(talk, app)


def test_a_client_that_is_closed() -> None:
    transport = BlockingTransport(AgentTransport(AGENT, FORGE.bundles, SERVERS))
    before = set(threading.enumerate())
    with contextlib.suppress(httpx.ConnectError), httpx.Client(transport=transport) as agent:
        agent.get("https://127.0.0.1:1/")
    assert set(threading.enumerate()) == before
    with pytest.raises(httpx.TransportError, match="client was closed"):
        transport.handle_request(httpx.Request("GET", "https://127.0.0.1:1/"))
    transport.close()


def test_closed_in_the_middle_of_a_handshake() -> None:
    begun, done = threading.Event(), threading.Event()

    def silent(accepted: Any) -> None:
        begun.set()
        done.wait(20)

    with Scripted(silent) as server, ThreadPoolExecutor(1) as threads:
        agent = client()
        call = threads.submit(agent.get, server.url)
        assert begun.wait(20)
        agent.close()
        assert type(call.exception(20)) is httpx.TransportError
        done.set()


def test_closed_while_a_call_waits_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    app = Held(False)

    def talk(url: str) -> None:
        agent = client()
        connections = agent._transport._inner._pool  # type: ignore[attr-defined]
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(agent.get, url) for _ in range(2)]
            deadline = time.monotonic() + 20
            while not (connections._waiting and app.asked.is_set()):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            agent.close()
            assert [type(call.exception(20)) for call in calls] == [httpx.TransportError] * 2

    against(talk, app)


def test_nobody_waits_for_a_call_that_cannot_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "CLOSING_SECONDS", 0.05)
    begun = threading.Event()

    class Stubborn(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            # Its loop is closed while it waits. That it never ended is not to be told in the log of a later test.
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            begun.set()
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

    agent = httpx.Client(transport=BlockingTransport(Stubborn()))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(agent.get, "https://127.0.0.1:1/")
        assert begun.wait(20)
        agent.close()
        assert str(call.exception(20)) == "client was closed"


def test_closed_by_the_body_that_it_sends() -> None:
    def talk(url: str) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"part"
            agent.close()
            yield b"part"

        agent = client()
        with pytest.raises(httpx.TransportError, match="client was closed"):
            agent.post(url, content=chunks())

    against(talk)


def test_closed_before_its_answer_is_read() -> None:
    def talk(url: str) -> None:
        agent = client()
        with agent.stream("GET", url) as response:
            agent.close()
            with pytest.raises(httpx.TransportError, match="client was closed"):
                response.read()

    against(talk, Held(True))


# Another process.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12: that is what this is about
def test_a_fork_of_a_process_that_has_a_client() -> None:
    """The child has no thread that would carry its calls, and must neither wait for one nor touch the connections."""

    def in_the_child(agent: httpx.Client, response: httpx.Response, url: str) -> bool:
        with pytest.raises(ConfigurationError, match=r"before this process was forked: got process \d+, expected"):
            agent.get(url)
        response.close()
        agent.close()
        return True

    def talk(url: str) -> None:
        with client() as agent, agent.stream("GET", url) as response:
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    code = 0 if in_the_child(agent, response, url) else 1
                os._exit(code)
            deadline = time.monotonic() + 20
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.005)
            if ended == (0, 0):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            assert ended == (child, 0)
            assert response.read().count(b"data") == 3  # here, everything goes on

    against(talk, three_events)


def test_what_a_child_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, without a fork."""

    def talk(url: str) -> None:
        with client() as agent:
            assert agent.get(url).status_code == 200
            with monkeypatch.context() as patch, agent.stream("GET", url) as response:
                patch.setattr(os, "getpid", lambda: -1)
                with pytest.raises(ConfigurationError, match="make a client in each process"):
                    agent.get(url)
                response.close()
                agent._transport.close()
            assert agent.get(url).status_code == 200

    against(talk)


def test_a_client_that_was_never_used() -> None:
    with client():
        pass


def test_inside_an_event_loop() -> None:
    """A blocking call blocks the loop, as any other does, and works."""

    async def main() -> None:
        with client() as agent, pytest.raises(httpx.ConnectError):
            agent.get("https://127.0.0.1:1/")

    run(main())
