"""The extension for signed messages: declared, asked for, echoed, required; read by a2a-sdk as its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import ExtensionSupportRequiredError
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.cards import CARD, changed
from tests.trust.test_middleware import Trail, W, bearer, gate, plain
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import ResponseMismatch, ResponseNotSigned, SignaturesNotOffered, TrustError
from trust.extension import ALGORITHMS, MAX_READ_BYTES, URI, check_declared, declaration, echoed, named, required_error
from trust.middleware import AGENT_CARD_PATH
from trust.peers import PeerVerifier
from trust.private_keys import generate
from trust.signing.cards import sign_card, verifier_for_a2a
from trust.signing.http import HEADER, MessageSigner
from trust.tls.client import peer_of_response

OTHER = "urn:example:other"


def card_with(**entry: Any) -> dict[str, Any]:
    return changed(CARD, capabilities={"extensions": [{**declaration("required"), **entry}]})


# Declared


@pytest.mark.parametrize("signatures", ["required", "optional"])
def test_the_gate_and_the_card_say_the_same(signatures: Any) -> None:
    entry = gate(signatures=signatures).extension
    assert gate(signatures=signatures).secured({})["capabilities"] == {"extensions": [entry]}
    assert entry.get("required", False) is (signatures == "required")
    assert entry["params"] == {"algs": ["ES256", "ES384", "Ed25519"], "carriage": ["http"]}


@pytest.mark.parametrize("signatures", ["required", "optional"])
def test_the_gate_does_what_it_declares(signatures: Any) -> None:
    """Unsigned calls pass exactly where the entry does not require signatures."""

    async def go() -> int:
        async with plain(gate(signatures=signatures)) as client:
            return (await client.post("/whoami", headers={"authorization": bearer()})).status_code

    required = gate(signatures=signatures).extension.get("required", False)
    assert asyncio.run(go()) == (401 if required else 200)


KEYS: dict[str, Callable[[], Any]] = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_gate_takes_each_algorithm_that_it_declares(algorithm: str) -> None:
    peer = W.forge.leaf("/planner", key=KEYS[algorithm]())
    MessageSigner(peer, audience=W.billing.agent_id, bundles=W.forge.bundles).check_card(CARD)
    assert W.admit(W.request(peer=peer, token=W.token(peer), signature=W.signature(peer))).message is not None


BAD_CARDS: dict[str, dict[str, Any]] = {
    "no capabilities": changed(CARD, capabilities=None),
    "capabilities of another type": changed(CARD, capabilities=[]),
    "no extensions": changed(CARD, capabilities={}),
    "extensions of another type": changed(CARD, capabilities={"extensions": {"uri": URI}}),
    "another extension": card_with(uri=URI + "2"),
    "an entry that is none": changed(CARD, capabilities={"extensions": [URI]}),
    "twice": changed(CARD, capabilities={"extensions": [declaration("required")] * 2}),
    "too many": changed(CARD, capabilities={"extensions": [*([{"uri": OTHER}] * 64), declaration("required")]}),
    "no params": card_with(params=None),
    "params of another type": card_with(params="ES256"),
    "no algorithms": card_with(params={"carriage": ["http"]}),
    "algorithms as a text that has ours in it": card_with(params={"algs": "ES256", "carriage": ["http"]}),
    "algorithms that we have not": card_with(params={"algs": ["ML-DSA-44", "ES512"], "carriage": ["http"]}),
    "another carriage": card_with(params={"algs": ["ES256"], "carriage": ["json"]}),
}


@pytest.mark.parametrize("name", BAD_CARDS)
def test_a_card_that_does_not_offer_our_signatures_is_refused(name: str) -> None:
    check_declared(CARD, "ES256")
    with pytest.raises(TrustError) as caught:
        check_declared(BAD_CARDS[name], "ES256")
    assert type(caught.value) is SignaturesNotOffered


def test_an_agent_that_only_offers_signatures_gets_them() -> None:
    check_declared(changed(CARD, capabilities={"extensions": [declaration("optional")]}), "ES256")


def test_a_signer_without_an_algorithm_for_headers_says_so() -> None:
    ours = MessageSigner(
        W.forge.leaf("/planner", key=generate("ML-DSA-44")), audience=W.billing.agent_id, bundles=W.forge.bundles
    )
    with pytest.raises(TrustError, match="signing key"):
        ours.check_card(CARD)


# Named


@pytest.mark.parametrize(
    ("headers", "uris"),
    [
        ([], ()),
        ([(b"a2a-extensions", b"")], ()),
        ([(b"A2A-Extensions", b" urn:b ,\turn:a,,")], ("urn:b", "urn:a")),
        ([(b"x-a2a-extensions", b"urn:a"), (b"a2a-extensions", b"urn:b"), (b"accept", b"x")], ("urn:a", "urn:b")),
    ],
)
def test_which_extensions_a_message_names(headers: list[tuple[bytes, bytes]], uris: tuple[str, ...]) -> None:
    assert named(headers) == uris


@pytest.mark.parametrize(
    ("answer", "request_", "expected"),
    [
        ([], [], []),
        ([], [(b"a2a-extensions", OTHER.encode())], []),
        ([], [(b"a2a-extensions", URI.encode())], [(b"a2a-extensions", URI)]),
        ([], [(b"x-a2a-extensions", URI.encode())], [(b"x-a2a-extensions", URI)]),
        (
            [(b"A2A-Extensions", OTHER.encode())],
            [(b"a2a-extensions", f"{OTHER}, {URI}".encode())],
            [(b"a2a-extensions", f"{OTHER}, {URI}")],
        ),
        (
            [(b"a2a-extensions", URI.encode())],
            [(b"a2a-extensions", URI.encode()), (b"x-a2a-extensions", URI.encode())],
            [(b"a2a-extensions", URI), (b"x-a2a-extensions", URI)],
        ),
    ],
)
def test_what_an_answer_names_as_activated(answer: Any, request_: Any, expected: Any) -> None:
    kept = [(b"content-type", b"text/plain")]
    assert echoed([*kept, *answer], request_) == [*kept, *((name, uris.encode()) for name, uris in expected)]


# Required: the error is a2a-sdk's own


@pytest.mark.parametrize("number", ["1", "", 7, 0, -1, None])
def test_the_error_for_json_rpc_is_the_sdks(number: str | int | None) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": "SendMessage", "params": {}}).encode()
    error = ExtensionSupportRequiredError(f"Extension support required: {URI}", data={"extension": URI})
    assert required_error(body) == build_error_response(number, error)


@pytest.mark.parametrize(
    "number", [True, 1.5, [1], {"a": 1}, "x" * 257, 2**53], ids=["bool", "float", "list", "object", "long", "big"]
)
def test_an_id_that_json_rpc_does_not_have_does_not_come_back(number: Any) -> None:
    answer = required_error(json.dumps({"jsonrpc": "2.0", "id": number}).encode())
    assert answer.get("id") is None
    assert answer["error"]["message"] == f"Extension support required: {URI}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b'"jsonrpc"',
        b'{"message":{"messageId":"1"}}',
        b'{"jsonrpc":"2.0","id":1,"id":2}',
        b'{"jsonrpc":"2.0","id":"1","params":"' + b"x" * MAX_READ_BYTES + b'"}',
        b'{"jsonrpc":"2.0","id":"1","params":' + b"[" * 200 + b"]" * 200 + b"}",
    ],
    ids=["empty", "half", "not UTF-8", "list", "text", "REST", "two ids", "too large", "too deep"],
)
def test_every_other_request_gets_the_error_of_the_rest_binding(body: bytes) -> None:
    error = ExtensionSupportRequiredError(f"Extension support required: {URI}", data={"extension": URI})
    expected = build_rest_error_payload(error)
    expected["error"] |= {"code": 401, "status": "UNAUTHENTICATED"}  # as the status of the answer
    assert required_error(body) == expected


# With a2a-sdk over mutual TLS


class Echo(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.call_context is not None
        asked = ",".join(sorted(context.requested_extensions))
        await event_queue.enqueue_event(new_text_message(asked, role=Role.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("nobody cancels here")


def signer() -> MessageSigner:
    return MessageSigner(W.planner, audience=W.billing.agent_id, bundles=W.forge.bundles)


@asynccontextmanager
async def agent(**card: Any) -> AsyncIterator[tuple[str, dict[str, Any], list[str]]]:
    """An a2a-sdk agent of both bindings behind the gate: its URL, its card, and the requests that came."""
    document: dict[str, Any] = changed(CARD, **card)
    parsed = AgentCard()
    handler = DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=parsed)
    routes = [
        *create_agent_card_routes(parsed),
        *create_jsonrpc_routes(handler, "/rpc"),
        *create_rest_routes(handler, path_prefix="/rest"),
    ]
    guarded = gate()
    guarded._app = Starlette(routes=routes)
    came: list[str] = []

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        came.append(scope["path"])
        await guarded(scope, receive, send)

    async with serving(
        counted, source=W.billing, bundles=W.forge.bundles, authorize=exactly(W.planner.agent_id), lifespan="off"
    ) as server:
        document["supportedInterfaces"] = [
            {"url": f"{server.url}/{path}", "protocolBinding": binding, "protocolVersion": "1.0"}
            for path, binding in (("rpc", "JSONRPC"), ("rest", "HTTP+JSON"))
        ]
        signed = sign_card(document, credentials=W.billing).card
        ParseDict(signed, parsed)
        yield server.url, signed, came


@asynccontextmanager
async def caller(by: MessageSigner | None) -> AsyncIterator[httpx.AsyncClient]:
    async with agent_client(
        source=W.planner, bundles=W.forge.bundles, authorize=exactly(W.billing.agent_id), signer=by
    ) as http:
        http.headers["authorization"] = bearer()
        yield http


async def say(http: httpx.AsyncClient, card: dict[str, Any], binding: str, *, streaming: bool = False) -> str:
    config = ClientConfig(httpx_client=http, supported_protocol_bindings=[binding], streaming=streaming)
    client = await create_client(ParseDict(card, AgentCard()), client_config=config)
    request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
    return [get_message_text(answer.message) async for answer in client.send_message(request)][-1]


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_a_signed_call_of_the_sdk_activates_the_extension(binding: str) -> None:
    async def main() -> None:
        async with agent() as (url, card, _), caller(signer()) as http:
            assert await say(http, card, binding) == URI
            response = await http.get(f"{url}/rest/tasks/none", headers={"A2A-Version": "1.0", "A2A-Extensions": OTHER})
            assert response.headers.get_list("a2a-extensions", split_commas=True) == [URI]
            assert peer_of_response(response).agent_id == W.billing.agent_id

    asyncio.run(main())


@pytest.mark.parametrize("streaming", [False, True], ids=["unary", "streaming"])
def test_an_unsigned_call_of_the_sdk_gets_its_own_error(streaming: bool) -> None:
    """With the REST binding as the exception that it has for it. Its JSON-RPC client reads no answer but 200, and says
    401: the error is in the answer that its exception holds."""
    config = {"capabilities": {**CARD["capabilities"], "streaming": streaming}}

    async def main() -> None:
        async with agent(**config) as (_, card, _), caller(None) as http:
            with pytest.raises(ExtensionSupportRequiredError, match=URI) as rest:
                await say(http, card, "HTTP+JSON", streaming=streaming)
            assert rest.value.data == {"extension": URI}
            with pytest.raises(A2AClientError, match="401") as rpc:
                await say(http, card, "JSONRPC", streaming=streaming)
            cause = rpc.value.__cause__
            assert isinstance(cause, httpx.HTTPStatusError)
            answer, sent = cause.response.json(), json.loads(cause.request.content)
            assert (cause.response.status_code, answer["error"]["code"], answer["id"]) == (401, -32008, sent["id"])

    asyncio.run(main())


def test_a_client_with_a_signer_learns_from_the_verified_card_before_it_sends_anything() -> None:
    check = verifier_for_a2a(keys=PeerVerifier(W.forge.bundles), agent=W.billing.agent_id, signer=signer())

    async def main(**card: Any) -> list[str]:
        async with agent(**card) as (url, _, came), caller(signer()) as http:
            config = ClientConfig(httpx_client=http, streaming=False)
            await create_client(url, client_config=config, signature_verifier=check)
            return came

    assert asyncio.run(main()) == [AGENT_CARD_PATH]
    for name in ("another extension", "algorithms that we have not"):
        with pytest.raises(SignaturesNotOffered):
            asyncio.run(main(capabilities=BAD_CARDS[name]["capabilities"]))


# A client that signs takes nothing unsigned for an answer


async def _ask(app: Any, *, certificate: bool = True, calls: int = 1) -> httpx.Response:
    async with (
        serving(
            app,
            source=W.billing,
            bundles=W.forge.bundles,
            authorize=members_of("fleet.example"),
            client_certificates="required" if certificate else "optional",
            lifespan="off",
        ) as server,
        agent_client(
            source=W.planner if certificate else None,
            bundles=W.forge.bundles,
            authorize=exactly(W.billing.agent_id),
            signer=signer(),
        ) as http,
    ):
        for _ in range(calls):
            response = await http.post(server.url + "/whoami", headers={"authorization": bearer()})
        return response


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500, 502, 503])
def test_an_unsigned_answer_is_none_whatever_its_status(status: int) -> None:
    async def answer(_: Request) -> Response:
        return PlainTextResponse("x", status, headers={"A2A-Extensions": URI})

    with pytest.raises(ResponseNotSigned, match=f"status {status}"):
        asyncio.run(_ask(Starlette(routes=[Route("/whoami", answer, methods=["POST"])])))


def test_a_refusal_before_the_peer_is_known_cannot_be_signed_and_is_no_answer() -> None:
    trail = Trail()
    with pytest.raises(ResponseNotSigned, match="status 401"):
        asyncio.run(_ask(gate(trail), certificate=False))
    assert [event["check"] for event in trail.events] == ["peer.certificate"]


def test_the_answer_to_another_request_is_no_answer() -> None:
    kept: list[Any] = []
    guarded = gate()

    async def repeating(scope: Any, receive: Any, send: Any) -> None:
        async def keep(message: Any) -> None:
            kept.append(message)

        if not kept:
            await guarded(scope, receive, keep)
            assert kept[0]["status"] == 200 and HEADER.lower().encode() in dict(kept[0]["headers"])
        for message in kept:
            await send(message)

    with pytest.raises(ResponseMismatch):
        asyncio.run(_ask(repeating, calls=2))
