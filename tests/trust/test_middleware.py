"""The gate's ASGI edge: what the application sees, what the wire learns, what is signed, what is bounded."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.forge import HOUR, NOW
from tests.world import ISSUER, World
from trust import answers, asgi, middleware
from trust.agent import agent_client, serving
from trust.audit import AuditSink
from trust.authorize import exactly, members_of
from trust.caller_auth import CallerCredentials
from trust.clock import wall_clock
from trust.credentials import Credentials
from trust.errors import ConfigurationError, KeysUnavailable, ResponseNotSigned
from trust.identity import PEER_EXTENSION
from trust.middleware import AGENT_CARD_PATH, Gate
from trust.oauth.client.discovery import issuer_of
from trust.oauth.dpop import make_proof
from trust.oauth.keys import SigningKey
from trust.oauth.operations import SkillScopes
from trust.oauth.policy import CedarPolicy
from trust.oauth.scopes import Catalogue
from trust.peers import PeerVerifier
from trust.private_keys import generate
from trust.replay import MemoryReplayGuard
from trust.signing.http import HEADER, MessageSigner

W = World()
BASE = "https://billing.fleet.example"
FOR_THE_CARD = W.signature(method="GET", url=BASE + AGENT_CARD_PATH, body=b"", content_type="")


class Trail:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.events.append(facts)


@requires("agent:execute")
async def whoami(request: Request) -> Response:
    caller = request.state.caller
    return JSONResponse(
        {
            "user": request.user.display_name,
            "peer": str(caller.agent_id),
            "scopes": list(request.auth.scopes),
            "authorization": request.headers.get("authorization"),
            "body": (await request.body()).decode(),
        }
    )


@requires("agent:admin")
async def admin(request: Request) -> Response:
    return PlainTextResponse("admin")


async def card(request: Request) -> Response:
    return JSONResponse({"user": request.user.is_authenticated})


async def events(request: Request) -> Response:
    async def stream() -> Any:
        yield b'data: {"n": 1}\n\n'

    return StreamingResponse(stream(), media_type="text/event-stream")


async def broken(request: Request) -> Response:
    raise RuntimeError("secret detail of the application")


async def empty(request: Request) -> Response:
    return Response(status_code=204)


APP = Starlette(
    routes=[
        Route("/whoami", whoami, methods=["GET", "POST"]),
        Route("/admin", admin, methods=["POST"]),
        Route(AGENT_CARD_PATH, card, methods=["GET", "POST"]),
        Route("/events", events, methods=["POST"]),
        Route("/broken", broken, methods=["POST"]),
        Route("/empty", empty, methods=["POST"]),
    ]
)


def gate(trail: AuditSink | None = None, **changes: Any) -> Gate:
    settings: dict[str, Any] = {
        "source": W.billing,
        "bundles": W.forge.bundles,
        "authorize": exactly(W.planner.agent_id),
        "tokens": W.validator(),
        "scope": "agent:execute",
        "signatures": "required",
        "public_paths": (AGENT_CARD_PATH,),
        "audit": trail or Trail(),
        **changes,
    }
    return Gate(APP, **settings)


def bearer() -> str:
    """A token that is valid now, and not when this file was read: a run of all tests may take longer than one lives."""
    issued = int(time.time())
    return f"Bearer {W.token(iat=issued, exp=issued + 600)}"


async def call(app: Any, method: str = "POST", path: str = "/whoami", **options: Any) -> httpx.Response:
    """One signed request with a token, over a real socket with mutual TLS; the answer's signature is verified."""
    async with serving(app, source=W.billing, bundles=W.forge.bundles, authorize=members_of("fleet.example")) as server:
        signer = MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)
        async with agent_client(
            source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id), signer=signer
        ) as client:
            headers = {"authorization": bearer()}
            return await client.request(method, server.url + path, headers=headers, **options)


def plain(app: Any, peer: Credentials | None = W.planner) -> httpx.AsyncClient:
    """An unsigned client in this process, with the verified peer in the scope as the TLS server puts it there."""

    async def with_peer(scope: Any, receive: Any, send: Any) -> None:
        if peer is not None:
            identity = PeerVerifier(W.forge.bundles).verify(peer.chain_der, now=NOW, usage="client")
            scope = {**scope, "extensions": {**scope.get("extensions", {}), PEER_EXTENSION: identity}}
        await app(scope, receive, send)

    transport = httpx.ASGITransport(with_peer, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=BASE)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_the_application_sees_the_caller_and_never_the_token() -> None:
    trail = Trail()
    response = run(call(gate(trail), content=b"hello"))
    assert response.json() == {
        "user": str(W.planner.agent_id),
        "peer": str(W.planner.agent_id),
        "scopes": ["agent:execute"],
        "authorization": None,
        "body": "hello",
    }
    assert [(e["decision"], e["check"], e["target"]) for e in trail.events] == [("allow", "all", "POST /whoami")]


def test_starlettes_requires_asks_for_the_applications_own_scopes() -> None:
    assert run(call(gate(), path="/admin")).status_code == 403


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{}", 400, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"Unheard-of"}', 403, "access_denied"),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask"}', 403, "access_denied"),  # by the policy
        (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks"}', 403, "insufficient_scope"),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage"}', 200, None),
    ],
    ids=["no operation", "unknown operation", "policy", "scope", "allowed"],
)
def test_what_the_wire_learns_of_an_operation_that_is_refused(body: bytes, status: int, code: str | None) -> None:
    scope = SkillScopes(default="agent:execute", operations={"ListTasks": "task:list"}, jsonrpc="/whoami")
    permit = CedarPolicy('permit (principal, action == Action::"SendMessage", resource);')
    response = run(call(gate(scope=scope, permit=permit), content=body))  # signed, whatever it is
    assert (response.status_code, response.json().get("error")) == (status, code)
    # RFC 6750 section 3.1: the challenge says what a token would help with, and nothing of the other reasons.
    challenge = response.headers.get("www-authenticate", "").partition("resource_metadata=")[0].rstrip(", ")
    assert challenge == {
        "insufficient_scope": 'Bearer error="insufficient_scope", scope="task:list"',
        "access_denied": "Bearer",
    }.get(code or "", "")


def test_requires_goes_by_containment() -> None:
    policy = W.policy()
    caller = W.admit(W.request(token=W.token(scope="agent:*"))).caller
    auth = CallerCredentials(caller, policy, NOW)
    assert "agent:execute" in auth.scopes
    assert "other:execute" not in auth.scopes
    assert "authenticated" in auth.scopes
    assert "openid" not in auth.scopes
    assert 7 not in auth.scopes  # type: ignore[comparison-overlap]


def test_nothing_that_a_person_must_approve_is_granted_without() -> None:
    policy = W.policy(approvals=("pay:*",), catalogue=Catalogue({"agent:admin": ["pay:bills"]}))
    caller = W.admit(W.request(token=W.token(scope="agent:* pay:*"))).caller
    for approved in (False, True):
        scopes = CallerCredentials(caller, policy, NOW, approved=approved).scopes
        assert "agent:execute" in scopes
        assert [("pay:bills" in scopes), ("agent:admin" in scopes), ("agent:execute pay:bills" in scopes)] == [
            approved
        ] * 3


@pytest.mark.parametrize("path", ["/whoami%0A", "/who%0Aami", "/whoami%0a"])
def test_a_path_with_a_line_break_is_refused(path: str) -> None:
    # Starlette would route the first to /whoami, for which the scope function wants more.
    scoped = gate(scope=lambda facts: "agent:admin" if facts.path == "/whoami" else "agent:execute")
    with pytest.raises(ResponseNotSigned, match="status 400"):
        run(call(scoped, path=path))


def test_the_answer_of_the_application_is_signed_whatever_its_status() -> None:
    # `call` verifies every answer, so a status alone shows that its signature was right.
    assert run(call(gate(), path="/nowhere")).status_code == 404
    assert run(call(gate(), path="/empty")).status_code == 204
    assert HEADER in run(call(gate())).headers


def test_head_and_get_are_signed_too() -> None:
    assert run(call(gate(), "GET")).status_code == 200
    assert run(call(gate(), "HEAD")).status_code == 200


def test_an_application_that_fails_gives_a_signed_500_without_detail(caplog: pytest.LogCaptureFixture) -> None:
    response = run(call(gate(), path="/broken"))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


def test_a_refusal_is_signed_once_the_peer_is_known() -> None:
    response = run(call(gate(scope="agent:admin")))
    assert response.status_code == 403
    expected = 'Bearer error="insufficient_scope", scope="agent:admin", resource_metadata="https://127.0.0.1:'
    assert response.headers["www-authenticate"].startswith(expected)
    assert response.json() == {"error": "insufficient_scope"}


def test_an_event_stream_is_never_an_unsigned_answer_to_a_signed_request() -> None:
    response = run(call(gate(), path="/events"))
    assert (response.status_code, response.content) == (200, b'data: {"n": 1}\n\n')  # verified, as `call` does


def test_an_unsigned_stream_passes_where_signatures_are_optional() -> None:
    async def go() -> httpx.Response:
        async with plain(gate(signatures="optional")) as client:
            return await client.post("/events", headers={"authorization": bearer()})

    response = run(go())
    assert (response.status_code, response.text) == (200, 'data: {"n": 1}\n\n')


METADATA = f'resource_metadata="{BASE}/.well-known/oauth-protected-resource"'
REFUSALS: dict[str, tuple[dict[str, str], Credentials | None, int, str | None, str]] = {
    "no certificate": ({}, None, 401, f'Bearer error="invalid_token", {METADATA}', "peer.certificate"),
    "no token": ({}, W.planner, 401, f"Bearer {METADATA}", "token.missing"),
    "not a token": (
        {"authorization": "Bearer x"},
        W.planner,
        401,
        f'Bearer error="invalid_token", {METADATA}',
        "token.malformed",
    ),
    "two hosts": ({"host": "a, b"}, W.planner, 400, None, "request.form"),
    "not on the list": ({}, W.forge.leaf("/x"), 403, f"Bearer {METADATA}", "peer.allowed"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_tell_the_wire_a_status_and_a_code(name: str) -> None:
    headers, peer, status, challenge, check = REFUSALS[name]
    trail = Trail()

    async def go() -> httpx.Response:
        async with plain(gate(trail), peer) as client:
            return await client.post("/whoami", headers=headers)

    response = run(go())
    assert (response.status_code, response.headers.get("www-authenticate")) == (status, challenge)
    assert set(response.json()) == {"error"}
    assert [(e["decision"], e["check"]) for e in trail.events] == [("deny", check)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"scopes_supported": ["agent:execute"], "tls_client_certificate_bound_access_tokens": True}),
        (
            {
                "scope": SkillScopes(
                    default="agent:execute", operations={"GetTask": "task:read"}, skills={"pay": "pay:all"}, rest=""
                )
            },
            {"scopes_supported": ["agent:execute", "task:read", "pay:all"]},
        ),
        ({"scope": lambda facts: "agent:execute"}, {}),
    ],
    ids=["one scope", "scopes of skills", "a function"],
)
def test_the_gate_serves_the_metadata_of_its_resource_to_anyone(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = "/.well-known/oauth-protected-resource"

    async def go() -> list[httpx.Response]:
        async with plain(gate(**changes), None) as client:
            return [
                await client.get(path),
                await client.head(path),
                await client.post(path),
                await client.get(path + "s"),
            ]

    answer, head, *others = run(go())
    document = answer.json()
    assert (
        document.items()
        >= {
            **expected,
            "resource": str(W.billing.agent_id),
            "authorization_servers": [ISSUER],
            "bearer_methods_supported": ["header"],
        }.items()
    )
    assert ("scopes_supported" in document) == ("scopes_supported" in expected)
    assert (head.status_code, head.content, [a.status_code for a in others]) == (200, b"", [401, 401])


def test_the_metadata_is_signed_where_it_was_asked_for_so() -> None:
    # `call` verifies every answer.
    assert run(call(gate(), "GET", "/.well-known/oauth-protected-resource")).json()["resource"] == str(
        W.billing.agent_id
    )


def test_a_client_finds_the_issuer_by_the_metadata() -> None:
    async def go(path: str) -> str:
        async with plain(gate(), None) as client:
            ours = ["https://x.example", ISSUER]
            return await issuer_of(BASE + path, resource=str(W.billing.agent_id), issuers=ours, http=client)

    assert [run(go(path)) for path in ("", "/a2a/jsonrpc")] == [ISSUER, ISSUER]


def test_proofs_are_asked_for_where_they_are_taken_and_do_not_reach_the_application() -> None:
    key, trail = SigningKey.generate(), Trail()
    proxy, url = W.forge.leaf("/proxy"), BASE + "/whoami"
    issued = int(time.time())
    token = W.token(iat=issued, exp=issued + 600, cnf={"jkt": key.kid})
    seen: list[bytes] = []
    guarded = gate(
        trail,
        signatures="optional",
        tokens=W.validator(bindings=["dpop"]),
        authorize=exactly(proxy.agent_id),
        relays={proxy.agent_id: exactly(W.planner.agent_id)},
    )
    inner = guarded._app

    async def spying(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await inner(scope, receive, send)

    guarded._app = spying

    async def go() -> list[httpx.Response]:
        async with plain(guarded, proxy) as client:
            proof = make_proof(key, method="POST", url=url, now=wall_clock(), jti="once", token=token)
            headers = {"authorization": f"DPoP {token}", "dpop": proof}
            first, again = [await client.post("/whoami", headers=headers) for _ in range(2)]
            return [first, again, await client.post("/whoami", headers={"authorization": f"Bearer {token}"})]

    first, again, stolen = run(go())
    assert (first.status_code, first.json()["user"]) == (200, str(W.planner.agent_id))
    assert not {b"authorization", b"dpop"} & set(seen)
    challenge = again.headers.get_list("www-authenticate")
    assert len(challenge) == 1
    assert challenge[0].startswith('DPoP error="invalid_dpop_proof", resource_metadata=')
    assert challenge[0].endswith('algs="ES256 ES384 PS256 Ed25519 EdDSA"')
    assert again.json() == {"error": "invalid_dpop_proof"}
    assert (stolen.status_code, stolen.json()) == (401, {"error": "invalid_token"})
    assert [e["check"] for e in trail.events] == ["all", "proof.replay", "token.proof"]


def test_only_get_and_head_reach_a_public_path() -> None:
    async def go() -> list[int]:
        async with plain(gate(), None) as client:
            answers = [await client.get(AGENT_CARD_PATH), await client.post(AGENT_CARD_PATH)]
            answers.append(await client.get(AGENT_CARD_PATH + "/"))
            answers.append(await client.get("/whoami"))
            assert answers[0].json() == {"user": False}
            return [a.status_code for a in answers]

    assert run(go()) == [200, 401, 401, 401]


def test_without_a_certificate_the_agent_card_is_all_there_is() -> None:
    """The explicit choice of optional client certificates, over a real socket with a client that has none."""

    async def go() -> list[int]:
        async with serving(
            gate(),
            source=W.billing,
            bundles=W.forge.bundles,
            authorize=exactly(W.planner.agent_id),
            client_certificates="optional",
        ) as server:
            root = W.forge.root.public_bytes(Encoding.PEM).decode()
            stock = ssl.create_default_context(cadata=root)
            async with httpx.AsyncClient(verify=stock, trust_env=False) as client:
                url = server.url.replace("127.0.0.1", "localhost")
                card = await client.get(url + AGENT_CARD_PATH)
                assert card.json() == {"user": False}
                headers = {"authorization": bearer()}
                return [card.status_code, (await client.post(url + "/whoami", headers=headers)).status_code]

    assert run(go()) == [200, 401]


@pytest.mark.parametrize(
    ("changes", "signed"),
    [
        ({}, True),
        ({"url": BASE + ":443" + AGENT_CARD_PATH}, True),
        ({"method": "POST", "url": BASE + "/whoami"}, False),
        ({"method": "POST"}, False),
        ({"url": BASE + "/whoami"}, False),
        ({"url": BASE + AGENT_CARD_PATH + "?tenant=1"}, False),
    ],
    ids=["the same", "the same, with its port", "another request", "method", "path", "query"],
)
def test_what_is_public_is_no_signed_answer_to_another_request(changes: dict[str, str], signed: bool) -> None:
    """A proxy that ends TLS may put the header of one request on another."""
    request = {"method": "GET", "url": BASE + AGENT_CARD_PATH, "body": b"", "content_type": "", **changes}

    async def go() -> httpx.Response:
        async with plain(gate()) as client:
            return await client.get(AGENT_CARD_PATH, headers={HEADER: W.signature(**request)})

    response = run(go())
    assert (response.status_code, response.json(), HEADER in response.headers) == (200, {"user": False}, signed)


def test_what_is_public_is_a_signed_answer_where_it_was_asked_for() -> None:
    assert run(call(gate(), "GET", AGENT_CARD_PATH)).json() == {"user": False}


def test_without_a_sound_host_what_is_public_is_not_signed() -> None:
    headers = [(b"host", b"billing.fleet.example/x"), (b"jws-signature", FOR_THE_CARD.encode())]
    sent = _raw(gate(), [], peer=W.planner, method="GET", path=AGENT_CARD_PATH, headers=headers)
    assert sent[0]["status"] == 200
    assert not any(name == b"jws-signature" for name, _ in sent[0]["headers"])


@pytest.mark.parametrize(
    "names", [(b"a2a-extensions",), (b"x-a2a-extensions",), (b"x-a2a-extensions", b"a2a-extensions")]
)
def test_an_extension_is_not_hidden_under_the_headers_other_name(names: tuple[bytes, ...]) -> None:
    """The signature is good for either, so the application finds what was signed under both."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(pair for pair in scope["headers"] if b"extensions" in pair[0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guarded = gate(clock=lambda: NOW, tokens=W.validator(), replay=MemoryReplayGuard(started_at=NOW - HOUR))
    guarded._app = app
    uris = [b"urn:x", b"urn:y"]
    signature = W.signature(url=BASE + "/whoami", body=b"", content_type="", version="", extensions=["urn:x", "urn:y"])
    headers = [
        (b"host", b"billing.fleet.example"),
        (b"authorization", f"Bearer {W.token()}".encode()),
        (b"jws-signature", signature.encode()),
        *((names[n % len(names)], uri) for n, uri in enumerate(uris)),
    ]
    body = [{"type": "http.request", "body": b"", "more_body": False}]
    assert _raw(guarded, body, peer=W.planner, headers=headers)[0]["status"] == 200
    assert seen == [(b"a2a-extensions", b"urn:x, urn:y"), (b"x-a2a-extensions", b"urn:x, urn:y")]


def test_a_large_body_is_refused_before_any_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the gate was asked")

    monkeypatch.setattr(middleware, "judge", never)
    trail = Trail()
    app = gate(trail, max_body_bytes=10)

    async def chunks() -> Any:
        yield b"12345"
        yield b"678901"

    async def go() -> list[int]:
        async with plain(app) as client:
            declared = await client.post("/whoami", content=b"x" * 11)
            undeclared = await client.post("/whoami", content=chunks(), headers={"authorization": "Bearer x"})
            endless = await client.post("/whoami", content=b"", headers={"content-length": "1" * 5000})
            return [declared.status_code, undeclared.status_code, endless.status_code]

    assert run(go()) == [413, 413, 413]
    assert {e["check"] for e in trail.events} == {"request.size"}


def _raw(
    app: Any, messages: list[dict[str, Any]], *, peer: Credentials | None = None, **scope: Any
) -> list[dict[str, Any]]:
    """Drive the gate with ASGI messages that no HTTP client would make."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    base = {
        "type": "http",
        "method": "POST",
        "scheme": "https",
        "path": "/whoami",
        "raw_path": b"/whoami",
        "query_string": b"",
        "headers": [(b"host", b"billing.fleet.example")],
    }
    if peer is not None:
        identity = PeerVerifier(W.forge.bundles).verify(peer.chain_der, now=NOW, usage="client")
        scope["extensions"] = {**scope.get("extensions", {}), PEER_EXTENSION: identity}
    asyncio.run(app({**base, **scope}, receive, send))
    return sent


BEARER = [(b"host", b"billing.fleet.example"), (b"authorization", b"Bearer x")]


def test_a_slow_body_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    sent = _raw(gate(), [{"type": "http.request", "body": b"1", "more_body": True}], peer=W.planner, headers=BEARER)
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "scope",
    [
        {"headers": []},
        {"headers": [(b"host", b"a"), (b"host", b"b")]},
        {"headers": [(b"host", b"\xff")]},
        {"headers": [(b"host", b"billing.fleet.example/a2a?x=#")]},
        {"headers": [(b"host", b"user@billing.fleet.example")]},
        {"headers": [(b"host", b"billing.fleet.example"), (b"content-length", b"-1")]},
        {"raw_path": b"/whoami#x"},
        {"raw_path": b"whoami"},
        {"raw_path": b"/whoami?x"},
        {"raw_path": None, "path": "whoami"},
        {"query_string": b"a=1#&b=2"},
    ],
)
def test_a_request_without_one_clear_target_is_malformed(scope: dict[str, Any]) -> None:
    trail = Trail()
    sent = _raw(gate(trail), [{"type": "http.request", "body": b""}], **scope)
    assert sent[0]["status"] == 400
    assert trail.events[0]["check"] == "request.form"


def test_a_peer_that_goes_away_is_recorded_with_its_address() -> None:
    trail = Trail()
    _raw(gate(trail), [], client=("192.0.2.1", 5))
    assert (trail.events[0]["peer"], trail.events[0]["check"]) == ("192.0.2.1:5", "peer.certificate")


def test_a_peer_that_goes_away_in_the_middle_is_recorded() -> None:
    trail = Trail()
    _raw(gate(trail), [{"type": "http.disconnect"}], peer=W.planner, headers=BEARER)
    assert (trail.events[0]["peer"], trail.events[0]["check"]) == (str(W.planner.agent_id), "request.form")


def test_nothing_is_read_or_fetched_for_a_stranger() -> None:
    """`receive` would wait for ever, and asking for the issuer's keys would be a 503."""
    keys = W.validator(keys=Unreachable())
    for peer, status in ((None, 401), (W.forge.leaf("/x"), 403), (W.planner, 401)):
        assert _raw(gate(tokens=keys), [], peer=peer)[0]["status"] == status


def test_the_application_sees_the_headers_that_were_judged() -> None:
    """httptools adds trailers to the very list in the scope, after the head was judged."""
    seen: list[tuple[bytes, bytes]] = []
    headers = [(b"host", b"billing.fleet.example"), (b"authorization", bearer().encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await PlainTextResponse("ok")(scope, receive, send)

    class Trailing(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            headers.append((b"x-evil", b"1"))
            return super().get(key, default)

    guarded = gate(signatures="optional")
    guarded._app = app
    _raw(guarded, [Trailing(type="http.request", body=b"")], peer=W.planner, headers=headers)
    assert seen == [(b"host", b"billing.fleet.example")]


def test_a_public_path_does_not_hand_tokens_to_the_application() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await PlainTextResponse("ok")(scope, receive, send)

    guarded = gate()
    guarded._app = app
    _raw(guarded, [], method="GET", path=AGENT_CARD_PATH, headers=BEARER)
    assert seen == [BEARER[0]]


def test_two_gates_share_the_guard_that_they_are_given() -> None:
    guard = MemoryReplayGuard(started_at=NOW - timedelta(minutes=1))
    assert gate(replay=guard)._policy.replay is guard


def test_the_answer_does_not_wait_for_work_that_comes_after_it(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette runs background tasks inside the application's call; one that fails must not undo a given answer."""
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("done")(scope, receive, send)
        order.append("after")
        raise RuntimeError("the task failed")

    async def send(message: Any) -> None:
        order.append(message["type"])

    guarded = gate()
    guarded._app = app
    identity = PeerVerifier(W.forge.bundles).verify(W.planner.chain_der, now=NOW, usage="client")
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "https",
        "path": AGENT_CARD_PATH,
        "query_string": b"",
        "headers": [(b"host", b"billing.fleet.example"), (b"jws-signature", FOR_THE_CARD.encode())],
        "extensions": {PEER_EXTENSION: identity},
    }
    run(guarded(scope, None, send))
    assert order == ["http.response.start", "http.response.body", "after"]
    assert "the task failed" in caplog.text


def test_an_application_that_does_not_answer_is_a_signed_500() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return

    guarded = gate()
    guarded._app = app
    assert run(call(guarded)).status_code == 500


def test_an_answer_too_large_to_sign_is_a_signed_500(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_RESPONSE_BYTES", 10)
    assert run(call(gate())).status_code == 500


def test_an_answer_of_several_types_is_a_signed_500() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        types = [(b"content-type", b"text/html"), (b"Content-Type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": types})
        await send({"type": "http.response.body", "body": b"{}"})

    guarded = gate()
    guarded._app = app
    response = run(call(guarded))
    assert (response.status_code, response.json()) == (500, {"error": "server_error"})


def test_ways_of_answering_that_cannot_be_signed_are_not_offered() -> None:
    offered: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        offered.append(set(scope["extensions"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/etc/passwd"})

    guarded = gate()
    guarded._app = app
    sent = _raw(
        guarded,
        [],
        peer=W.planner,
        method="GET",
        path=AGENT_CARD_PATH,
        raw_path=AGENT_CARD_PATH.encode(),
        headers=[(b"host", b"billing.fleet.example"), (b"jws-signature", FOR_THE_CARD.encode())],
        extensions={"http.response.pathsend": {}, "tls": {}},
    )
    assert offered == [{"tls", PEER_EXTENSION}]
    assert sent[0]["status"] == 500


def test_websockets_are_refused_before_they_are_accepted() -> None:
    trail = Trail()
    assert _raw(gate(trail), [], type="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert trail.events[0]["check"] == "request.websocket"


def test_an_unknown_kind_of_connection_is_not_let_through() -> None:
    with pytest.raises(ConfigurationError):
        _raw(gate(), [], type="raw")


def test_lifespan_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    guarded = gate()
    guarded._app = app
    _raw(guarded, [], type="lifespan")
    assert seen == ["lifespan"]


class Unreachable:
    def find(self, kid: str, alg: str, *, now: Any) -> Any:
        raise KeysUnavailable("keys of the issuer")

    async def prepare(self, kid: str | None, *, now: Any) -> None:
        raise KeysUnavailable("keys of the issuer")


def test_an_issuer_without_keys_is_503_with_retry_after() -> None:
    async def go() -> httpx.Response:
        async with plain(gate(tokens=W.validator(keys=Unreachable()))) as client:
            return await client.post("/whoami", headers={"authorization": bearer()})

    response = run(go())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json() == {"error": "temporarily_unavailable"}


def test_an_answer_behind_our_back_is_noticed_by_the_client() -> None:
    unsigned = Starlette(routes=[Route("/whoami", lambda _: PlainTextResponse("ok"), methods=["POST"])])
    with pytest.raises(ResponseNotSigned):
        run(call(unsigned))


HALF_MADE: list[dict[str, Any]] = [
    {"public_paths": AGENT_CARD_PATH},
    {"public_paths": None},
    {"signatures": "sometimes"},
    {"signatures": None},
    {"source": "billing.pem"},
    {"bundles": "bundles.json"},
    {"crls": "fleet.crl"},
    {"crls": []},
    {"tokens": "https://authority.fleet.example"},
    {"tokens": None},
    {"scope": "agent"},
    {"scope": ""},
    {"scope": "agent:execute  agent:read"},
    {"scope": "temporal:office"},
    {"scope": "agent:execute temporal:office"},
    {"scope": ["agent:execute"]},
    {"scope": None},
    {"scope": SkillScopes},
    {"relays": [W.planner.agent_id]},
    {"replay": "redis://127.0.0.1"},
    {"replay": MemoryReplayGuard},
    {"catalogue": {"agent:admin": ["agent:execute"]}},
    {"calendars": ["office"]},
    {"calendars": {"office": "Europe/Berlin"}},
    {"approvals": None},
    {"approvals": ["agent"]},
    {"permit": "agent.cedar"},
    {"permit": CedarPolicy},
    {"audit": "audit.jsonl"},
]


@pytest.mark.parametrize("changes", HALF_MADE, ids=lambda changes: "-".join(map(str, *changes.items()))[:40])
def test_a_gate_cannot_be_half_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r".+: .*expected .+") as caught:
        gate(**changes)
    assert type(caught.value) is ConfigurationError and "\n" not in str(caught.value)


def test_one_scope_is_no_collection_of_approvals() -> None:
    with pytest.raises(ConfigurationError, match=r"^approvals: got a value of type str, expected a collection"):
        gate(approvals="agent:execute")


@pytest.mark.parametrize("signatures", ["required", "optional"])
def test_a_key_that_signs_no_answers_is_told_when_the_gate_is_built(signatures: str) -> None:
    with pytest.raises(ConfigurationError, match=r"signing key.*expected a private key: EC P-256"):
        gate(source=W.forge.leaf("/billing", key=generate("ML-DSA-44")), signatures=signatures)
