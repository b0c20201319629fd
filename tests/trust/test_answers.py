"""Event streams through the gate, over real sockets: signed as they are made, and cut wherever they are not whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.forge import NOW
from tests.world import World
from trust import answers
from trust.agent import agent_client, httpx2_agent_client, serving, sync_agent_client
from trust.authorize import exactly
from trust.clock import wall_clock
from trust.errors import (
    ConfigurationError,
    DenylistUnavailable,
    ResponseNotSigned,
    StreamNotSigned,
    StreamTruncated,
    TrustError,
)
from trust.identity import PEER_EXTENSION
from trust.middleware import Gate
from trust.oauth.client import BearerAuth
from trust.oauth.client.asks import ask_for
from trust.oauth.metadata import origin_of
from trust.oauth.tokens import TokenValidators
from trust.peers import PeerVerifier
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import HEADER, MessageSigner, SigningTransport
from trust.sources import Live
from trust.tls import AgentTransport

W = World()
PATIENCE = 20.0
STREAM = [(b"content-type", b"text/event-stream")]

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Stream:
    """An application that answers with a stream: bytes are sent, events of asyncio are waited for, errors raised."""

    def __init__(self, *steps: Any, headers: Any = STREAM, end: bool = True, status: int = 200) -> None:
        self.steps, self.headers, self.end, self.status = steps, headers, end, status
        self.gone = asyncio.Event()  # the client

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for step in self.steps:
            if isinstance(step, bytes):
                await send({"type": "http.response.body", "body": step, "more_body": True})
            elif isinstance(step, Exception):
                raise step
            elif isinstance(step, asyncio.Event):
                waiting = [asyncio.ensure_future(receive()), asyncio.ensure_future(step.wait())]
                done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in rest:
                    task.cancel()
                if waiting[0] in done:
                    self.gone.set()
                    return
            else:
                step()
        if self.end:
            await send({"type": "http.response.body", "body": b""})
            await send({"type": "http.response.body", "body": b"data: {}\n\n"})  # what an application must not do


class Trail:
    def __init__(self) -> None:
        self.denied: list[str] = []

    def record(self, *, decision: str, check: str, **facts: Any) -> None:
        if decision == "deny":
            self.denied.append(check)


def gate(app: Any, **changes: Any) -> Gate:
    settings: dict[str, Any] = {
        "source": W.billing,
        "bundles": W.forge.bundles,
        "authorize": exactly(W.planner.agent_id),
        "tokens": W.validator(),
        "scope": "agent:execute",
        "signatures": "required",
        "public_paths": (),
        "audit": Trail(),
        **changes,
    }
    return Gate(app, **settings)


def bearer() -> dict[str, str]:
    issued = int(time.time())
    return {"authorization": f"Bearer {W.token(iat=issued, exp=issued + 600)}"}


def agent(make: Any = agent_client, **signing: Any) -> Any:
    signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles, **signing)
    return make(source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id), signer=signer)


def unsigned() -> httpx.AsyncClient:
    return agent_client(source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id))


@contextlib.asynccontextmanager
async def over_tls(app: Any, **options: Any) -> AsyncIterator[str]:
    settings = {"source": W.billing, "bundles": W.forge.bundles, "authorize": exactly(W.planner.agent_id), **options}
    async with serving(app, **settings) as server:
        yield server.url


async def collect(app: Any, method: str = "POST", **signing: Any) -> tuple[httpx.Response, list[bytes], list[str]]:
    """The answer, what was read of it, and the name of the error that ended it."""
    async with over_tls(app) as url, agent(**signing) as client:
        got: list[bytes] = []
        error: list[str] = []
        async with client.stream(method, url, headers=bearer()) as response:
            try:
                async with asyncio.timeout(PATIENCE):
                    async for part in response.aiter_raw():
                        got.append(part)
            except StreamTruncated as cut:
                error.append(cut.last_event_id)
        return response, got, error


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def event(number: int) -> bytes:
    return b'data: {"n":%d}\n\n' % number


def test_events_are_read_as_they_were_made() -> None:
    sent = [b": ping\r\n\r\n", b'event: error\r\ndata: {"n"', b":0}\r\n\r\n" + event(1), b"retry: 7\n\n", b"data: {"]
    headers = [*STREAM, (b"content-length", b"99"), (b"jws-signature", b"x"), (b"x-other", b"y")]
    trail = Trail()
    response, got, error = run(collect(gate(Stream(*sent, headers=headers), audit=trail)))
    assert (response.status_code, got, error) == (200, [b'event: error\ndata: {"n":0}\n\n', event(1)], [])
    assert HEADER not in response.headers and "content-length" not in response.headers
    assert response.headers["x-other"] == "y"
    assert trail.denied == []  # what came behind the end is no part of the answer, and no matter


def test_a_stream_without_an_event() -> None:
    response, got, error = run(collect(gate(Stream())))
    assert (response.status_code, got, error) == (200, [], [])


def test_each_event_comes_when_it_is_made() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        app = Stream(event(0), go_on, event(1))
        async with (
            over_tls(gate(app)) as url,
            agent() as client,
            asyncio.timeout(PATIENCE),
            client.stream("POST", url, headers=bearer()) as response,
        ):
            parts = response.aiter_raw()
            assert await anext(parts) == event(0)
            go_on.set()
            assert [part async for part in parts] == [event(1)]

    run(main())


def test_a_head_answer_has_no_events_and_is_signed_whole() -> None:
    response, got, error = run(collect(gate(Stream()), "HEAD"))
    assert (response.status_code, got, error) == (200, [], [])
    assert HEADER in response.headers


def test_an_application_that_fails_leaves_a_cut_stream() -> None:
    app = Stream(event(0), RuntimeError("secret detail"))
    _, got, error = run(collect(gate(app)))
    assert got == [event(0)]
    assert error and error[0].endswith("-0")


def test_an_application_that_stops_without_an_end_leaves_a_cut_stream() -> None:
    _, got, error = run(collect(gate(Stream(event(0), end=False))))
    assert (got, len(error)) == ([event(0)], 1)


@pytest.mark.parametrize("fails", [False, True])
def test_middleware_that_ends_a_body_before_it_raises_does_not_end_a_stream(fails: bool) -> None:
    """Starlette's `BaseHTTPMiddleware` does."""

    async def events() -> AsyncIterator[bytes]:
        yield event(0)
        if fails:
            raise RuntimeError("in the middle")
        yield event(1)

    async def passes(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = Starlette(
        routes=[Route("/", lambda _: StreamingResponse(events(), media_type="text/event-stream"), methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)],
    )
    _, got, error = run(collect(gate(app)))
    assert (got, len(error)) == (([event(0)], 1) if fails else ([event(0), event(1)], 0))


def test_a_refused_event_is_not_left_behind_by_a_second_start() -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        for text in (b"data: [DONE]\n\n", event(1)) if scope["type"] == "http" else ():
            for message in ({"type": "http.response.start", "status": 200, "headers": STREAM}, {"body": text}):
                try:
                    await send({"type": "http.response.body", **message})
                except Exception as error:
                    refused.append(type(error))

    refused: list[type[Exception]] = []
    with pytest.raises(StreamTruncated):
        run(collect(gate(app)))
    assert refused == [StreamNotSigned, ConfigurationError, StreamNotSigned]


class Proxy(httpx.AsyncBaseTransport):
    """Ends TLS, and sends the agent's request twice: it keeps the first answer and hands on the second as it likes."""

    def __init__(self, *tokens: str) -> None:
        self.inner = AgentTransport(W.planner, W.forge.bundles, exactly(W.billing.agent_id))
        self.tokens = tokens  # of the two requests; empty leaves the agent's own
        self.seen: list[int] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        for token in self.tokens:
            headers = httpx.Headers(request.headers)
            headers.update({"authorization": f"Bearer {token}"} if token else {})
            sent = httpx.Request(
                request.method, request.url, headers=headers, content=body, extensions=request.extensions
            )
            answer = await self.inner.handle_async_request(sent)
            await answer.aread()
            self.seen.append(answer.status_code)
        self.tokens = ("",)
        challenge = [(b"www-authenticate", b'Bearer error="invalid_token"')] * (answer.status_code == 401)
        kept = [(name, value) for name, value in answer.headers.raw if name.lower() != b"www-authenticate"]
        stream = httpx.ByteStream(answer.content)
        return httpx.Response(answer.status_code, headers=kept + challenge, stream=stream, extensions=answer.extensions)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Authority:
    """A token source without a server."""

    authority = SimpleNamespace(proof_key=None, clock=wall_clock)

    def holds(self, ask: Any) -> bool:
        return False

    async def token(self, ask: Any) -> SimpleNamespace:
        return SimpleNamespace(value=bearer()["authorization"].removeprefix("Bearer "))

    def drop(self, ask: Any, token: Any) -> bool:
        return True


@pytest.mark.parametrize("kind", [STREAM, [(b"content-type", b"text/plain")]], ids=["stream", "whole"])
def test_a_proxy_does_not_have_a_call_repeated_that_the_application_refused(kind: Any) -> None:
    """The application's 401 is signed; that the token was the reason is the proxy's word alone."""
    executed: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        executed.append((await receive())["body"])
        await Stream(event(0), headers=kind, status=401)(scope, lambda: asyncio.sleep(0), send)

    async def main() -> None:
        proxy = Proxy("")
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)
        async with over_tls(gate(app)) as url, httpx.AsyncClient(transport=SigningTransport(proxy, signer)) as client:
            auth = BearerAuth(Authority(), ask_for(W.billing.agent_id, ["a:b"]), frozenset({origin_of(httpx.URL(url))}))  # type: ignore[arg-type]
            answer = await client.post(url, content=b"pay", auth=auth)
            assert (answer.status_code, answer.content) == (401, event(0))
            assert "www-authenticate" not in answer.headers

    run(main())
    assert executed == [b"pay"]


@pytest.mark.parametrize("kind", [STREAM, [(b"content-type", b"text/plain")]], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("tokens", "first", "accepted"),
    [
        (("", ""), [200, 401], False),
        (("", "x"), [200, 401], False),
        # Refused under a signature, so it cannot be executed: the client asks again, and that is executed, once.
        (("x",), [401], True),
        (("x", ""), [401, 401], False),
    ],
    ids=["again", "again with a bad token", "with a bad token", "with a bad token, then with its own"],
)
def test_a_call_that_a_proxy_sends_twice_is_executed_once(
    tokens: tuple[str, ...], first: list[int], accepted: bool, kind: Any
) -> None:
    executed: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        executed.append((await receive())["body"])
        await Stream(event(0), headers=kind)(scope, lambda: asyncio.sleep(0), send)

    async def main() -> None:
        proxy = Proxy(*tokens)
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)
        async with over_tls(gate(app)) as url, httpx.AsyncClient(transport=SigningTransport(proxy, signer)) as client:
            auth = BearerAuth(Authority(), ask_for(W.billing.agent_id, ["a:b"]), frozenset({origin_of(httpx.URL(url))}))  # type: ignore[arg-type]
            if accepted:
                assert (await client.post(url, content=b"pay", auth=auth)).content == event(0)
            else:
                with pytest.raises(ResponseNotSigned, match="status 401"):
                    await client.post(url, content=b"pay", auth=auth)
        assert proxy.seen == first + [200] * accepted

    run(main())
    assert len(executed) == int(200 in first) + accepted


@pytest.mark.parametrize("swallows", [False, True])
def test_an_event_that_cannot_be_signed_cuts_the_stream(swallows: bool) -> None:
    """Also where the application makes nothing of the error, and goes on."""
    inner = Stream(event(0), b"data: [DONE]\n\n", event(1))

    async def app(scope: Any, receive: Any, send: Send) -> None:
        async def swallowing(message: Any) -> None:
            with contextlib.suppress(Exception if swallows else ()):
                await send(message)

        await inner(scope, receive, swallowing)

    trail = Trail()
    _, got, error = run(collect(gate(app, audit=trail)))
    assert (got, len(error)) == ([event(0)], 1)
    assert trail.denied == ([] if swallows else ["stream.unsigned"])


@pytest.mark.parametrize(
    "headers",
    [
        [*STREAM, (b"content-encoding", b"gzip")],
        [(b"content-type", b"text/event-stream; charset=latin-1")],
    ],
    ids=["encoded", "charset"],
)
def test_a_stream_that_cannot_be_signed_is_a_signed_501(headers: Any) -> None:
    trail = Trail()
    response, got, _ = run(collect(gate(Stream(event(0), headers=headers), audit=trail)))
    assert (response.status_code, got) == (501, [b'{"error": "invalid_request"}'])
    assert HEADER in response.headers
    assert trail.denied == ["stream.unsigned"]


def test_a_stream_of_an_encoding_that_encodes_nothing() -> None:
    headers = [*STREAM, (b"content-encoding", b"identity")]
    assert run(collect(gate(Stream(event(0), headers=headers))))[1:] == ([event(0)], [])


def test_a_client_that_goes_away_ends_the_application() -> None:
    async def main() -> None:
        app = Stream(event(0), asyncio.Event())
        async with over_tls(gate(app)) as url, asyncio.timeout(PATIENCE):
            async with agent() as client, client.stream("POST", url, headers=bearer()) as response:
                assert await anext(response.aiter_raw()) == event(0)
            await app.gone.wait()

    run(main())


async def sends_on(scope: Any, receive: Any, send: Send) -> None:
    """An application that never looks whether anybody listens."""
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
    while True:
        await send({"type": "http.response.body", "body": event(0), "more_body": True})
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "sends on"])
@pytest.mark.parametrize("http", ["h11", "httptools", "h2"])
def test_a_server_that_stops_leaves_a_cut_stream(http: str, waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)
        options: dict[str, Any] = {"http2": True} if http == "h2" else {"http": http}
        async with contextlib.AsyncExitStack() as stack:
            app = Stream(event(0), asyncio.Event()) if waits else sends_on
            server = contextlib.AsyncExitStack()
            url = await server.enter_async_context(over_tls(gate(app), **options))
            client = await stack.enter_async_context(client_of(http, signer))
            async with asyncio.timeout(PATIENCE), client.stream("POST", url, headers=bearer()) as response:
                assert response.http_version == ("HTTP/2" if http == "h2" else "HTTP/1.1")
                parts = response.aiter_raw()
                assert await anext(parts) == event(0)
                stopping = asyncio.ensure_future(server.aclose())
                with pytest.raises(StreamTruncated) as cut:
                    while True:
                        assert await anext(parts) == event(0)
                assert cut.value.last_event_id
                await stopping

    run(main())
    assert [record for record in caplog.records if record.name == "a2a_trust"] == []  # it is no failure of anybody


def client_of(http: str, signer: MessageSigner) -> httpx.AsyncClient:
    if http != "h2":
        return agent()  # type: ignore[no-any-return]
    from trust.signing.http import SigningTransport
    from trust.tls import client_context

    context = client_context(W.planner, W.forge.bundles, exactly(W.billing.agent_id))
    inner = httpx.AsyncHTTPTransport(verify=context, http2=True, trust_env=False)
    return httpx.AsyncClient(transport=SigningTransport(inner, signer))


def test_events_are_evidence() -> None:
    seen: list[VerifiedMessage] = []
    run(collect(gate(Stream(event(0), event(1))), received=seen.append))
    assert [message.payload for message in seen] == [b'{"n":0}', b'{"n":1}', b""]
    assert {message.signer.agent_id for message in seen} == {W.billing.agent_id}


def test_whoever_looks_at_the_evidence_may_refuse_it() -> None:
    def refuse(message: VerifiedMessage) -> None:
        raise ValueError("not for me")

    with pytest.raises(ValueError, match="not for me"):
        run(collect(gate(Stream(event(0))), received=refuse))


def test_a_certificate_that_is_renewed_while_events_are_sent() -> None:
    source = Live(W.billing)
    renewed = W.forge.leaf("/billing")
    seen: list[VerifiedMessage] = []
    app = Stream(event(0), lambda: source.replace(renewed), event(1))
    _, got, error = run(collect(gate(app, source=source), received=seen.append))
    assert (got, error) == ([event(0), event(1)], [])
    assert ["x5c" in message.header for message in seen] == [False, True, True]


def test_certificates_do_not_come_along_where_the_channel_has_them() -> None:
    seen: list[VerifiedMessage] = []
    run(collect(gate(Stream(event(0))), received=seen.append, chain=True))
    assert ["x5c" in message.header for message in seen] == [False, False]


def test_a_resubscription_names_what_it_goes_on_from() -> None:
    async def main() -> None:
        seen: list[VerifiedMessage] = []
        async with over_tls(gate(Stream(event(0)))) as url, agent(received=seen.append) as client:
            await client.post(url, headers=bearer())
            last = seen[0].message_id
            for value in (last, "of the application"):
                await client.post(url, headers={**bearer(), "Last-Event-ID": value})
        named = [message.header["a2a"].get("last") for message in seen]
        assert named == [None, None, last, last, None, None]

    run(main())


def test_the_answer_to_a_request_on_a_public_path_is_a_signed_stream_too() -> None:
    async def main() -> None:
        async with over_tls(gate(Stream(event(0)), public_paths=("/",))) as url, agent() as client:
            assert (await client.get(url)).content == event(0)

    run(main())


def test_the_other_clients_read_signed_streams_too() -> None:
    async def main() -> None:
        async with over_tls(gate(Stream(event(0), event(1)))) as url:
            async with agent(httpx2_agent_client) as client:
                assert (await client.post(url, headers=bearer())).content == event(0) + event(1)

            def in_a_thread() -> list[bytes]:
                with agent(sync_agent_client) as client, client.stream("POST", url, headers=bearer()) as response:
                    return list(response.iter_raw())

            assert await asyncio.to_thread(in_a_thread) == [event(0), event(1)]

    run(main())


def test_two_tasks_that_send_at_once_do_not_come_between_one_another() -> None:
    """A server that waits for its client between two writes: the events go out in the order of their numbers."""
    wire: list[bytes] = []
    waiting: list[asyncio.Future[None]] = []

    async def send(message: Any) -> None:
        if body := message.get("body", b""):
            if len(waiting) < 1:
                waiting.append(asyncio.get_running_loop().create_future())
                await waiting[0]
            wire.append(body)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        parts = [send({"type": "http.response.body", "body": event(n), "more_body": True}) for n in range(3)]
        sending = asyncio.gather(*parts)
        while not waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].set_result(None)
        await sending

    async def main() -> None:
        identity = PeerVerifier(W.forge.bundles).verify(W.planner.chain_der, now=NOW, usage="client")
        signature = W.signature(method="GET", url="https://billing.fleet.example/", body=b"", content_type="")
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "scheme": "https",
            "headers": [(b"host", b"billing.fleet.example"), (HEADER.lower().encode(), signature.encode())],
            "extensions": {PEER_EXTENSION: identity},
        }
        await gate(app, public_paths=("/",))(scope, lambda: None, send)  # type: ignore[arg-type]

    run(main())
    assert [b'"n":%d' % n in body for n, body in enumerate(wire)] == [True] * 3


class Denied:
    """A denylist that a test writes to while a stream is under way."""

    def __init__(self, answer: bool | TrustError = True) -> None:
        self.answer = answer
        self.written = False
        self.asked = 0

    async def prepare(self) -> None:
        self.asked += 1

    def contains(self, issuer: str, jti: str) -> bool:
        if self.written and isinstance(self.answer, TrustError):
            raise self.answer
        return self.written

    def write(self) -> None:
        self.written = True


AWAY = DenylistUnavailable("list of revoked tokens is not available")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("answer", "check"), [(True, "token.revoked"), (AWAY, AWAY.check)])
@pytest.mark.parametrize("signed", [True, False])
def test_a_stream_is_cut_when_its_token_is_revoked(
    signed: bool, answer: bool | TrustError, check: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 0.0)
    denylist, trail = Denied(answer), Trail()
    tokens: Any = W.validator(denylist=denylist)
    if several:
        tokens = TokenValidators(W.validator(issuer="https://other.example"), tokens)

    async def main() -> bytes:
        app = Stream(event(0), event(1), denylist.write, event(2), event(3))
        got = b""
        async with (
            over_tls(gate(app, audit=trail, tokens=tokens, signatures="optional")) as url,
            agent() if signed else unsigned() as client,
            asyncio.timeout(PATIENCE),
        ):
            with pytest.raises(StreamTruncated if signed else httpx.RemoteProtocolError):
                async with client.stream("POST", url, headers=bearer()) as response:
                    assert response.status_code == 200
                    async for part in response.aiter_raw():
                        got += part
            assert (await client.post(url, headers=bearer())).status_code == (401 if answer is True else 503)
        return got

    assert run(main()) == event(0) + event(1)
    assert trail.denied == [check, check]


def test_a_whole_answer_goes_out_though_its_token_was_revoked_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is done by then; whoever asked is told."""
    monkeypatch.setattr(answers, "CHECK_SECONDS", 0.0)
    denylist = Denied()

    async def slow(request: Request) -> JSONResponse:
        denylist.write()
        return JSONResponse({"done": True})

    app = Starlette(routes=[Route("/", slow, methods=["POST"])])
    response, got, _ = run(collect(gate(app, tokens=W.validator(denylist=denylist))))
    assert (response.status_code, b"".join(got)) == (200, b'{"done":true}')


def test_nothing_is_sent_after_a_refusal_and_nothing_asked_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sent, asked = [0.0], list[Any](), list[TrustError | None]()
    denied: list[TrustError] = []
    monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def check() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise AWAY

    async def main() -> None:
        guarded = answers.WhileAllowed(send, check, denied.append)
        for second in range(25):
            now[0] = second / 10
            with contextlib.suppress(DenylistUnavailable):
                await guarded({"type": "http.response.body", "body": second, "more_body": True})

    run(main())
    assert (len(asked), denied) == (2, [AWAY])
    assert sent == list(range(20))


def part(number: int, *, more: bool = True) -> Any:
    return {"type": "http.response.body", "body": number, "more_body": more}


def test_a_stream_that_begins_late_is_asked_for_at_its_first_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 0.0)
    sent: list[Any] = []
    denied: list[TrustError] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def check() -> None:
        raise AWAY

    async def main() -> None:
        await answers.WhileAllowed(send, check, denied.append)(part(0, more=False))
        guarded = answers.WhileAllowed(send, check, denied.append)
        for number in (1, 2):
            with pytest.raises(DenylistUnavailable):
                await guarded(part(number))

    run(main())
    assert (sent, denied) == ([0], [AWAY])


@pytest.mark.parametrize("asks", ["fails", "is cancelled"])
def test_nothing_goes_past_a_question_without_an_answer(asks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the application makes of the error: there was no answer yet, so the next part is asked for, too."""
    monkeypatch.setattr(answers, "CHECK_SECONDS", 3600.0)
    sent: list[Any] = []
    questions = 0

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def check() -> None:
        nonlocal questions
        questions += 1
        if questions < 3:
            raise OSError if asks == "fails" else asyncio.CancelledError

    async def main() -> None:
        guarded = answers.WhileAllowed(send, check, lambda error: None)
        guarded._next = 0.0
        for number in range(5):
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await guarded(part(number))

    run(main())
    assert (sent, questions) == ([2, 3, 4], 3)


@pytest.mark.parametrize("allowed", [True, False])
def test_tasks_that_send_while_it_is_asked_wait_for_the_answer(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 3600.0)
    sent: list[Any] = []
    denied: list[TrustError] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def main() -> list[Any]:
        answer = asyncio.get_running_loop().create_future()

        async def check() -> None:
            await asyncio.shield(answer)

        guarded = answers.WhileAllowed(send, check, denied.append)
        guarded._next = 0.0
        sending = asyncio.gather(*(guarded(part(number)) for number in range(3)), return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)
        assert sent == []
        answer.set_result(None) if allowed else answer.set_exception(AWAY)
        return await sending

    assert run(main()) == ([None] * 3 if allowed else [AWAY] * 3)
    assert (sent, denied) == ([0, 1, 2], []) if allowed else ([], [AWAY])


def test_a_trail_that_fails_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 0.0)

    async def check() -> None:
        raise AWAY

    def full(error: TrustError) -> None:
        raise OSError("no space left on the device")

    async def main() -> None:
        guarded = answers.WhileAllowed(send, check, full)
        for number in range(2):
            with pytest.raises(OSError, match="no space"):
                await guarded(part(number))
        assert guarded.refused is None  # so the gate raises what the sender got, and does not take it for told

    async def send(message: Any) -> None:
        raise AssertionError("sent")

    run(main())
