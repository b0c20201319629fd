"""The edge of a webhook: what the application gets, and what it never sees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from tests.forge import HOUR, NOW, Forge
from trust import asgi
from trust.authorize import exactly
from trust.errors import ConfigurationError, Replayed, RequestTooSlow
from trust.identity import PEER_EXTENSION
from trust.peers import PeerVerifier
from trust.replay import SQLiteReplayGuard
from trust.signing import envelope, jws
from trust.signing.exchange import HEADER
from trust.signing.http import new_message_id
from trust.signing.push import sign_push
from trust.signing.push_receiver import PushReceiver

FORGE = Forge()
BILLING = FORGE.leaf("/billing")
HOOK = "https://hooks.example/hook"
BODY = b'{"task":{"id":"7"}}'


class Trail(list[dict[str, Any]]):
    def record(self, **facts: Any) -> None:
        self.append(facts)


class App:
    """Notes each scope and the body that it can read."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        self.bodies.append(await Request(scope, receive).body())
        await send({"type": "http.response.start", "status": 202, "headers": [(b"x-app", b"1")]})
        await send({"type": "http.response.body", "body": b"taken"})


def receiver(app: Any, **changes: Any) -> PushReceiver:
    settings: dict[str, Any] = {
        "webhooks": [HOOK],
        "bundles": FORGE.bundles,
        "authorize": exactly(BILLING.agent_id),
        "audit": Trail(),
        **changes,
    }
    return PushReceiver(app, **settings)


def signed(**changes: Any) -> str:
    settings = {"webhook": HOOK, "body": BODY, "now": NOW, "jti": new_message_id(), **changes}
    return sign_push(BILLING, **settings)


async def post(app: Any, *, signature: str | None = None, **headers: str) -> httpx.Response:
    """Over httpx's own ASGI transport."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), trust_env=False) as client:
        return await client.post(HOOK, content=BODY, headers={HEADER: signature or signed(), **headers})


def test_what_the_application_gets() -> None:
    app, trail = App(), Trail()
    answer = asyncio.run(
        post(
            receiver(app, audit=trail, clock=lambda: NOW), authorization="Bearer t", **{"x-a2a-notification-token": "u"}
        )
    )
    assert (answer.status_code, answer.content, answer.headers["x-app"]) == (202, b"taken", "1")
    request = Request(app.scopes[0])
    notification = request.state.notification
    assert notification.payload == app.bodies[0] == BODY
    assert (notification.signer.agent_id, notification.audience) == (BILLING.agent_id, HOOK)
    # What the push configuration had the sender send is for the application to compare.
    assert (request.headers["authorization"], request.headers["x-a2a-notification-token"]) == ("Bearer t", "u")
    assert trail == [
        {
            "event": "push",
            "decision": "allow",
            "check": "all",
            "peer": str(BILLING.agent_id),
            "target": "POST /hook",
            "message": notification.message_id,
        }
    ]


def test_the_server_s_own_state_stays_and_is_not_changed() -> None:
    async def main() -> None:
        app = App()
        hook = receiver(app, clock=lambda: NOW)
        state: dict[str, Any] = {"of the lifespan": 1}

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await hook({**scope, "state": state}, receive, send)

        await post(with_state)
        assert app.scopes[0]["state"].keys() == {"of the lifespan", "notification"}
        assert state == {"of the lifespan": 1}

    asyncio.run(main())


def test_the_certificates_of_the_channel_will_do() -> None:
    """Of a sender that has them in TLS, and leaves them out of the header."""

    async def main() -> None:
        header = jws.parse_detached(signed(), algorithms=envelope.DEFAULT_ALGORITHMS, typ="a2a-push+jws").header
        del header["x5c"]
        short = jws.sign_detached(BODY, key=BILLING.private_key, header=header)
        peer = PeerVerifier(FORGE.bundles).verify(BILLING.chain_der, now=NOW, usage="client")
        hook = receiver(app := App(), clock=lambda: NOW)

        async def over_tls(scope: Any, receive: Any, send: Any) -> None:
            await hook({**scope, "extensions": {PEER_EXTENSION: peer}}, receive, send)

        assert (await post(over_tls, signature=short)).status_code == 202
        assert len(app.bodies) == 1
        trail = hook._audit
        assert (await post(over_tls, signature=short)).status_code == 401
        assert trail[-1]["check"] == Replayed.check  # type: ignore[index]
        assert trail[-1]["peer"] == str(BILLING.agent_id)  # type: ignore[index]

    asyncio.run(main())


def test_one_of_many_copies_through_a_shared_guard(tmp_path: Path) -> None:
    async def main() -> None:
        guards = [SQLiteReplayGuard(tmp_path / "replay.db", started_at=NOW - HOUR) for _ in range(2)]
        hooks = [receiver(App(), replay=guard, clock=lambda: NOW) for guard in guards]
        signature = signed()
        answers = await asyncio.gather(*(post(hooks[n % 2], signature=signature) for n in range(20)))
        for guard in guards:
            guard.close()
        assert sorted(answer.status_code for answer in answers) == [202] + [401] * 19

    asyncio.run(main())


def test_a_body_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)

    async def main() -> None:
        hook = receiver(App())
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/hook",
            "query_string": b"",
            "headers": [(HEADER.lower().encode(), signed().encode())],
        }
        await hook(scope, receive, send)
        assert sent[0]["status"] == 408
        assert hook._audit[0]["check"] == RequestTooSlow.check  # type: ignore[index]
        assert hook._audit[0]["peer"] == "unknown"  # type: ignore[index]

    asyncio.run(main())


def test_lifespan_websockets_and_what_else_may_come() -> None:
    async def main() -> None:
        app = App()
        hook, sent = receiver(app), []

        async def send(message: Any) -> None:
            sent.append(message)

        await hook({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
        assert [scope["type"] for scope in app.scopes] == ["lifespan"]
        await hook({"type": "websocket", "path": "/hook", "client": None}, None, send)  # type: ignore[arg-type]
        assert sent == [{"type": "websocket.close", "code": 1008}]
        with pytest.raises(ConfigurationError, match="got telepathy"):
            await hook({"type": "telepathy"}, None, send)  # type: ignore[arg-type]
        assert len(app.scopes) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "changes",
    [
        {"webhooks": []},
        {"webhooks": HOOK},
        {"webhooks": ["http://hooks.example/hook"]},
        {"webhooks": ["/hook"]},
        {"webhooks": [HOOK, "https://other.example/hook"]},
        {"authorize": "anybody"},
    ],
    ids=["none", "a str", "not https", "a path", "two of one path", "no rule"],
)
def test_what_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        receiver(App(), **changes)


def test_its_own_clock_and_memory() -> None:
    """With nothing but what is required: real time, a guard in memory, the audit log."""

    async def main() -> None:
        app = App()
        hook = PushReceiver(app, webhooks=[HOOK], bundles=FORGE.bundles, authorize=exactly(BILLING.agent_id))
        assert (await post(hook, signature=signed(now=NOW - HOUR))).status_code == 401
        assert not app.bodies

    asyncio.run(main())
