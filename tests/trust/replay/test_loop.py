"""Guards that wait, and the gate that waits for them while everybody else is served."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.forge import NOW
from tests.interop.programs import needs
from tests.redis_server import RedisServer
from tests.trust.replay.conftest import SHARED, START, T, opened
from tests.world import World
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import Replayed, ReplayStoreUnavailable, ResponseNotSigned
from trust.identity import PEER_EXTENSION
from trust.middleware import Gate
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard, OffTheLoop, RedisReplayGuard, ReplayGuard, SQLiteReplayGuard, loop
from trust.signing.http import HEADER, MessageSigner, new_message_id, sign_request

W = World()
PATIENCE = 20  # seconds, for a busy machine


class Waiting:
    """A guard whose store answers when the test says so."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def remember(self, key: bytes, *, issued_at: float, expires_at: float, now: float) -> None:
        self.asked.set()
        assert self.answers.wait(PATIENCE)


name: contextvars.ContextVar[str] = contextvars.ContextVar("name")


@pytest.mark.parametrize(("guard", "same"), [(MemoryReplayGuard(started_at=START), True), (Waiting(), False)])
def test_only_a_guard_in_memory_is_asked_in_the_loops_own_thread(guard: ReplayGuard, same: bool) -> None:
    async def main() -> tuple[int, str]:
        name.set("the caller's")
        return await OffTheLoop(guard).run(lambda: (threading.get_ident(), name.get()))

    thread, seen = asyncio.run(main())
    assert (thread == threading.get_ident()) is same
    assert seen == "the caller's"


@pytest.mark.parametrize("guard", [MemoryReplayGuard(started_at=START), Waiting()])
def test_what_the_work_raises_is_raised(guard: ReplayGuard) -> None:
    def work() -> None:
        raise Replayed("again")

    with pytest.raises(Replayed):
        asyncio.run(OffTheLoop(guard).run(work))


def test_a_store_that_takes_too_long_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "ASK_SECONDS", 0.05)
    guard = Waiting()
    try:
        with pytest.raises(ReplayStoreUnavailable, match=r"an answer within 0\.05 s"):
            asyncio.run(OffTheLoop(guard).run(partial(guard.remember, b"", issued_at=T, expires_at=T, now=T)))
    finally:
        guard.answers.set()


class Trail:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.events.append(facts)


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def gate(replay: ReplayGuard, trail: Trail | None = None) -> Gate:
    return Gate(
        Starlette(routes=[Route("/hello", hello, methods=["GET", "POST"]), Route("/public", hello)]),
        source=W.billing,
        bundles=W.forge.bundles,
        authorize=exactly(W.planner.agent_id),
        tokens=W.validator(),
        scope="agent:execute",
        signatures="required",
        public_paths=("/public",),
        replay=replay,
        audit=trail or Trail(),
    )


def bearer() -> str:
    issued = int(time.time())
    return f"Bearer {W.token(iat=issued, exp=issued + 600)}"


def signed(**changes: Any) -> dict[str, str]:
    """The headers of a request that may be sent once; by a clock a little ahead, for a store that has just started."""
    jws = sign_request(
        W.planner,
        method="POST",
        url="https://billing.fleet.example/hello",
        body=b"",
        audience=W.billing.agent_id,
        now=datetime.fromtimestamp(time.time() + 5, UTC),
        jti=new_message_id(),
    ).jws
    return {"authorization": bearer(), HEADER: jws, **changes}


@contextmanager
def shared(store: str) -> Iterator[ReplayGuard]:
    made = SQLiteReplayGuard(store, started_at=NOW) if not store.startswith("redis") else opened(store)
    try:
        yield made
    finally:
        made.close()  # type: ignore[attr-defined]


def client(app: Gate) -> httpx.AsyncClient:
    """In this process, with the verified peer in the scope as the TLS server puts it there."""
    identity = PeerVerifier(W.forge.bundles).verify(W.planner.chain_der, now=NOW, usage="client")

    async def with_peer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "extensions": {PEER_EXTENSION: identity}}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(with_peer), base_url="https://billing.fleet.example")


def test_others_are_served_while_one_waits_for_the_store() -> None:
    guard = Waiting()

    async def main() -> tuple[int, int]:
        async with client(gate(guard)) as http:
            waiting = asyncio.create_task(http.post("/hello", headers=signed()))
            while not guard.asked.is_set():
                await asyncio.sleep(0.001)
            public = await http.get("/public")
            assert not waiting.done()
            guard.answers.set()
            return public.status_code, (await waiting).status_code

    assert asyncio.run(main()) == (200, 200)


@pytest.mark.parametrize("store", SHARED, indirect=True)
def test_two_servers_with_one_store_admit_a_request_once(store: str) -> None:
    async def main() -> list[int]:
        with shared(store) as one, shared(store) as other:
            async with client(gate(one)) as first, client(gate(other)) as second:
                headers = signed()
                answers = await asyncio.gather(*[http.post("/hello", headers=headers) for http in (first, second) * 10])
                answers.append(await second.post("/hello", headers=signed()))
                return [answer.status_code for answer in answers]

    *copies, another = asyncio.run(main())
    assert sorted(copies) == [200] + [401] * 19
    assert another == 200


async def _status(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> int:
    """Of a signed answer, or 401 for an unsigned one: a refusal."""
    try:
        return (await http.post(url, headers=headers)).status_code
    except ResponseNotSigned as error:
        assert "status 401" in str(error)
        return 401


@needs("redis-server")
def test_while_the_store_is_away_nothing_signed_is_admitted(tmp_path: Path) -> None:
    trail = Trail()

    async def main(server: RedisServer, guard: RedisReplayGuard) -> list[int]:
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)
        async with (
            serving(
                gate(guard, trail), source=W.billing, bundles=W.forge.bundles, authorize=members_of("fleet.example")
            ) as at,
            agent_client(
                source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id), signer=signer
            ) as http,
        ):
            headers = {"authorization": bearer()}
            server.stop()
            with pytest.raises(ResponseNotSigned, match="status 503"):  # what is not remembered gets no signed answer
                await http.post(at.url + "/hello", headers=headers)
            public = await http.get(at.url + "/public")
            server.start()
            async with asyncio.timeout(PATIENCE):  # what is signed in the second of the start is refused
                while (back := await _status(http, at.url + "/hello", headers)) == 401:
                    await asyncio.sleep(0.2)
            return [public.status_code, back]

    with RedisServer(tmp_path) as server:
        guard = RedisReplayGuard(server.url)
        public, back = asyncio.run(main(server, guard))
        guard.close()
    assert (public, back) == (200, 200)
    denied = trail.events[0]
    assert (denied["decision"], denied["check"]) == ("deny", "replay.store")
    assert "Connection refused" in denied["reason"]
