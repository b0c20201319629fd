"""The edge for clients: what `httpx` sends is signed, and no answer comes through that is not signed for it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.forge import HOUR, NOW, Forge
from trust.authorize import exactly
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    IdentityError,
    PeerNotAllowed,
    ResponseMismatch,
    ResponseNotSigned,
    ResponseTooLarge,
    SignatureMalformed,
    SignatureWrong,
    SignerUnknown,
    StreamTruncated,
    TrustError,
)
from trust.identity import PeerIdentity
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing import http
from trust.signing.http import (
    HEADER,
    MessageSigner,
    RequestReference,
    SigningTransport,
    VerifiedMessage,
    content_type_of,
    new_message_id,
    reference_of,
    sign_request,
    sign_response,
    signature_of,
    target_uri,
    verify_request,
    verify_response,
)
from trust.sources import Live

FORGE = Forge()
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
REPORTS = FORGE.leaf("/reports")
VERIFIER = PeerVerifier(FORGE.bundles)
URL = "https://billing.example/a2a"
Headers = list[tuple[bytes, bytes]]


class Body(httpx.AsyncByteStream):
    """A body in chunks, as it comes from a socket, that notes how much was read and whether it was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.read = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    async def aclose(self) -> None:
        self.closed = True


class Connection:
    """What `trust.tls` puts into the extensions of an answer: the TLS object knows its peer."""

    def __init__(self, peer: PeerIdentity | None) -> None:
        self.peer = peer

    def get_extra_info(self, name: str) -> Any:
        return self if name == "ssl_object" else None


class Ended(Connection):
    """As it is when the connection has failed since: the TLS object has forgotten its peer, the stream has not."""

    def get_extra_info(self, name: str) -> Any:
        return self.peer if name == "peer" else Connection(None)


class Billing(httpx.AsyncBaseTransport):
    """The agent that is called: it verifies each request completely and signs its answer, for real."""

    def __init__(
        self,
        *,
        content: bytes = b'{"ok":true}',
        status: int = 200,
        by: Any = BILLING,
        chain: bool = False,
        change: Callable[[Headers, bytes], tuple[Headers, bytes]] = lambda headers, body: (headers, body),
        status_on_the_wire: int | None = None,
        tls: bool = True,
        headers: Headers | None = None,
        connection: type[Connection] = Connection,
    ) -> None:
        self.connection = connection
        self.content, self.status, self.by, self.chain = content, status, by, chain
        self.change, self.status_on_the_wire, self.tls = change, status_on_the_wire, tls
        self.headers = headers or [(b"content-type", b"application/json")]
        self.guard = MemoryReplayGuard(started_at=NOW - HOUR)
        self.seen: list[httpx.Request] = []
        self.bodies: list[Body] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        message = verify_request(
            signature_of(request.headers.raw),
            method=request.method,
            url=str(request.url).partition("#")[0],  # never sent
            body=await request.aread(),
            audience=BILLING.agent_id,
            verifier=VERIFIER,
            peer=VERIFIER.verify(PLANNER.chain_der, now=NOW, usage="client"),
            now=NOW,
            signers=exactly(str(PLANNER.agent_id)),
            replay=self.guard,
            content_type=request.headers.get("content-type", ""),
            version=request.headers.get("a2a-version", ""),
            extensions=request.headers.get_list("a2a-extensions", split_commas=True),
        )
        signature = sign_response(
            self.by,
            request=message,
            status=self.status,
            body=self.content,
            now=NOW,
            jti=new_message_id(),
            content_type=dict(self.headers).get(b"content-type", b"").decode(),
            chain=self.chain,
        )
        headers, content = self.change([*self.headers, (b"JWS-Signature", signature.encode())], self.content)
        body = Body(content[:5], content[5:])
        self.bodies.append(body)
        peer = VERIFIER.verify(self.by.chain_der, now=NOW, usage="server") if self.tls else None
        return httpx.Response(
            self.status_on_the_wire or self.status,
            headers=headers,
            stream=body,
            extensions={"network_stream": self.connection(peer), "http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        self.closed = True


def signer(**changes: Any) -> MessageSigner:
    arguments: dict[str, Any] = {
        "audience": BILLING.agent_id,
        "bundles": FORGE.bundles,
        "clock": lambda: NOW,
        **changes,
    }
    return MessageSigner(arguments.pop("source", PLANNER), **arguments)


def call(server: Billing, *, by: MessageSigner | None = None, url: str = URL, **arguments: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=SigningTransport(server, by or signer())) as client:
            return await client.request(arguments.pop("method", "POST"), url, **arguments)

    return asyncio.run(run())


async def _generated() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


@pytest.mark.parametrize(
    "arguments",
    [
        {"json": {"method": "SendMessage"}},
        {"content": b""},
        {"method": "GET"},
        {"method": "DELETE", "url": URL + "?tenant=1&x=%20"},
        {"url": "https://BILLING.example:443/a2a#part"},
        {"content": _generated()},
        {"files": {"file": b"content"}},
        {"headers": {"A2A-Version": "1.0", "A2A-Extensions": "urn:b, urn:a"}},
        {"headers": {HEADER: "an..older one"}},
    ],
)
def test_a_signed_exchange(arguments: dict[str, Any]) -> None:
    server = Billing()
    response = call(server, **arguments)
    assert (response.status_code, response.json()) == (200, {"ok": True})
    assert response.headers["content-type"] == "application/json"
    assert response.extensions["http_version"] == b"HTTP/1.1"
    assert [body.closed for body in server.bodies] == [True]
    assert server.seen[0].headers["accept-encoding"] == "identity"
    assert server.closed


@pytest.mark.parametrize(
    ("server", "accepted"),
    [
        (Billing(status=403, content=b'{"error":"access_denied"}'), 403),
        (Billing(status=204, content=b""), 204),
        (Billing(tls=False, chain=True), 200),
        (Billing(connection=Ended), 200),
    ],
)
def test_answers_of_every_kind_come_through_when_they_are_signed(server: Billing, accepted: int) -> None:
    response = call(server)
    assert response.status_code == accepted
    if accepted == 200:
        assert response.json() == {"ok": True}  # decoded, where need be, only after the bytes were verified


def test_a_verified_answer_can_be_kept_as_evidence() -> None:
    seen: list[VerifiedMessage] = []
    response = call(Billing(), by=signer(received=seen.append))
    assert [(message.payload, message.signer.agent_id) for message in seen] == [(response.content, BILLING.agent_id)]


def without_signature(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    return [h for h in headers if h[0] != b"JWS-Signature"], body


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (Billing(change=without_signature), ResponseNotSigned),
        (Billing(change=lambda h, b: (h, b.replace(b"true", b"True"))), SignatureWrong),
        (Billing(change=lambda h, b: (h, b + b" ")), SignatureWrong),
        (Billing(change=lambda h, b: (h, b"")), SignatureWrong),
        (Billing(change=lambda h, b: (h, gzip.compress(b))), SignatureWrong),
        (Billing(change=lambda h, b: ([*h, h[-1]], b)), SignatureMalformed),
        (Billing(change=lambda h, b: ([(b"content-type", b"text/html"), *h[1:]], b)), ResponseMismatch),
        (Billing(change=lambda h, b: (h[1:], b)), ResponseMismatch),
        (Billing(change=lambda h, b: ([*h, (b"Content-Type", b"text/html")], b)), ResponseMismatch),
        (Billing(headers=[(b"x", b"y")], change=lambda h, b: ([*h, (b"content-type", b"a/b")], b)), ResponseMismatch),
        (Billing(status=403, status_on_the_wire=200), ResponseMismatch),
        (Billing(by=REPORTS), ResponseMismatch),
        (Billing(tls=False), SignerUnknown),
        (Billing(tls=False, connection=Ended), SignerUnknown),
        (Billing(content=gzip.compress(b'{"ok":true}'), headers=[(b"content-encoding", b"gzip")]), ResponseMismatch),
        (Billing(headers=[(b"content-type", b"text/event-stream")], content=b"data: {}\n\n"), ResponseNotSigned),
        (Billing(headers=[(b"content-type", b"Text/Event-Stream; charset=utf-8")]), StreamTruncated),
        (Billing(content=b"x" * 101), ResponseTooLarge),
    ],
)
def test_no_other_answer_comes_through(
    server: Billing, error: type[TrustError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 100)
    with pytest.raises(error) as caught:
        call(server)
    assert type(caught.value) is error
    assert server.bodies[0].closed


def test_an_unsigned_refusal_says_its_status_and_its_body_is_not_read() -> None:
    server = Billing(change=without_signature, status=401)
    with pytest.raises(ResponseNotSigned, match="status 401"):
        call(server)
    assert server.bodies[0].read == 0


def test_an_answer_cannot_be_kept_for_another_request() -> None:
    kept: list[Headers] = []

    def swap(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        kept.append(headers)
        return kept[0], body

    server, one_signer = Billing(change=swap), signer()
    assert call(server, by=one_signer).status_code == 200
    with pytest.raises(ResponseMismatch):
        call(server, by=one_signer)


def test_each_origin_has_its_audience() -> None:
    by = signer(audience={"https://BILLING.example:443": str(BILLING.agent_id), "https://r.example": REPORTS.agent_id})
    assert call(Billing(), by=by).status_code == 200
    request = by.sign(method="GET", url="https://r.example/x?y", body=b"")
    assert request.audience == "spiffe://fleet.example/reports"


def test_which_origins_the_audiences_name() -> None:
    by_origin = signer(audience={"https://BILLING.example:443": BILLING.agent_id})
    assert by_origin.names("https://billing.example") and by_origin.names("https://billing.example:443/")
    assert not by_origin.names("https://other.example") and not by_origin.names("https://billing.example:8443")
    assert not signer().names("https://billing.example")


@pytest.mark.parametrize(
    "url", ["https://other.example/a2a", "http://billing.example/a2a", "https://billing.example:8443/"]
)
def test_nothing_is_sent_to_an_origin_without_an_audience(url: str) -> None:
    server = Billing()
    with pytest.raises(ConfigurationError):
        call(server, by=signer(audience={"https://billing.example": BILLING.agent_id}), url=url)
    assert server.seen == []


def test_a_redirected_request_is_signed_anew_for_its_target() -> None:
    billing = Billing()

    class Redirecting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await billing.handle_async_request(request)
            if request.url.path == "/old":
                received = (request.method, str(request.url))
                message = reference_of(request.headers.raw, PLANNER.agent_id, received=received)
                assert message is not None
                signature = sign_response(BILLING, request=message, status=307, body=b"", now=NOW, jti=new_message_id())
                headers = {HEADER: signature, "location": "/new"}
                return httpx.Response(307, headers=headers, stream=Body(), extensions=response.extensions)
            return response

    async def run() -> httpx.Response:
        transport = SigningTransport(Redirecting(), signer())
        async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
            return await client.post("https://billing.example/old", content=b"x")

    assert asyncio.run(run()).status_code == 200
    signatures = [request.headers.get_list(HEADER) for request in billing.seen]
    assert [len(values) for values in signatures] == [1, 1]
    assert signatures[0] != signatures[1]


def test_a_renewed_certificate_is_used_for_the_next_request() -> None:
    renewed = FORGE.leaf("/planner")
    source = Live(PLANNER)
    by = signer(source=source)
    first = by.sign(method="GET", url=URL, body=b"")
    source.replace(renewed)
    second = by.sign(method="GET", url=URL, body=b"")
    peer = VERIFIER.verify(renewed.chain_der, now=NOW, usage="client")
    arguments: dict[str, Any] = {
        "method": "GET",
        "url": URL,
        "body": b"",
        "audience": BILLING.agent_id,
        "verifier": VERIFIER,
        "peer": peer,
        "now": NOW,
    }
    with pytest.raises(SignerUnknown):
        http.authenticate_request(first.jws, **arguments)
    assert http.authenticate_request(second.jws, **arguments).signer == peer


def test_a_chain_travels_where_it_is_asked_for() -> None:
    request = signer(chain=True).sign(method="GET", url=URL, body=b"")
    message = http.authenticate_request(
        request.jws,
        method="GET",
        url=URL,
        body=b"",
        audience=BILLING.agent_id,
        verifier=VERIFIER,
        peer=None,
        now=NOW,
    )
    assert message.signer.agent_id == PLANNER.agent_id


def test_who_may_answer_for_a_url_is_a_required_decision() -> None:
    for audience in ("https://billing.example", {"https://billing.example": "https://billing.example"}):
        with pytest.raises(ConfigurationError):
            signer(audience=audience)
    by = signer(audience="https://billing.example", signers=exactly(str(REPORTS.agent_id)))
    request = by.sign(method="GET", url=URL, body=b"")
    reference = RequestReference(requester=PLANNER.agent_id, jti=request.jti, digest=request.digest)
    answer = sign_response(BILLING, request=reference, status=200, body=b"", now=NOW, jti=new_message_id())
    peer = VERIFIER.verify(BILLING.chain_der, now=NOW, usage="server")
    with pytest.raises(PeerNotAllowed):
        by.verify(answer, request=request, status=200, body=b"", peer=peer)


@pytest.mark.parametrize(
    "audience",
    [
        {},
        {"https://billing.example/path": BILLING.agent_id},
        {"https://billing.example?x": BILLING.agent_id},
        {"billing.example": BILLING.agent_id},
        "billing.example",
        "https://billing.example/path",
        "",
    ],
)
def test_audiences_that_are_none(audience: Any) -> None:
    with pytest.raises(ConfigurationError):
        signer(audience=audience)


def test_mistakes_are_told_where_a_signer_is_made() -> None:
    with pytest.raises(ConfigurationError, match="audience of the signer: got billing, expected a SPIFFE ID, or "):
        signer(audience="billing")
    with pytest.raises(ConfigurationError, match="source: got a value of type str, expected Credentials"):
        MessageSigner("creds/planner", audience=BILLING.agent_id, bundles=FORGE.bundles)  # type: ignore[arg-type]


def test_a_malformed_spiffe_id_is_no_audience() -> None:
    with pytest.raises(IdentityError):
        signer(audience="spiffe://Fleet/billing")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a.example", "https://a.example/"),
        ("HTTPS://A.Example:443/Path", "https://a.example/Path"),
        ("http://a.example:80?x=1", "http://a.example/?x=1"),
        ("http://a.example:443/", "http://a.example:443/"),
        ("https://a.example:/", "https://a.example/"),
        ("https://a.example:08443/", "https://a.example:8443/"),
        ("https://a.example/?", "https://a.example/"),
        ("https://a.example/?#x", "https://a.example/"),
        ("https://a.example/a?b?c/d#e?f", "https://a.example/a?b?c/d"),
        ("https://a.example/%2e%2E/./..//x", "https://a.example/%2e%2E/./..//x"),
        ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
        ("https://127.0.0.1:5000/\"'<>`|\\", "https://127.0.0.1:5000/\"'<>`|\\"),
    ],
)
def test_target_uri(url: str, target: str) -> None:
    assert target_uri(url) == target
    assert target_uri(target) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "//a.example/",
        "ftp://a.example/",
        "wss://a.example/",
        "https:///path",
        "https://",
        "https://user@a.example/",
        "https://a.example\\@evil.example/",
        "https://a.example%2f.evil.example/",
        "https://a.example/ x",
        "https://a.example/\n",
        "https://a.example/é",
        "https://é.example/",
        "https://a.example:x/",
        "https://a.example:123456/",
        "https://[::1/",
        "https://a example/",
        " https://a.example/",
        None,
    ],
)
def test_targets_that_parsers_read_differently(url: Any) -> None:
    with pytest.raises(TrustError):
        target_uri(url)


@pytest.mark.parametrize(
    "changes",
    [
        {"jti": "short"},
        {"jti": None},
        {"jti": "a" * 129},
        {"audience": ""},
        {"lifetime": timedelta(seconds=301)},
        {"lifetime": timedelta(0)},
        {"lifetime": timedelta(seconds=-60)},
        {"url": "/relative"},
        {"content_type": " application/json"},
        {"content_type": "application/json\n"},
        {"content_type": "té"},
        {"extensions": ["urn:" + "x" * 8000]},
        {"now": NOW.replace(tzinfo=None)},
    ],
)
def test_nothing_is_signed_that_no_verifier_would_accept(changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "method": "GET",
        "url": URL,
        "body": b"",
        "audience": BILLING.agent_id,
        "now": NOW,
        "jti": new_message_id(),
        **changes,
    }
    with pytest.raises((ConfigurationError, IdentityError)):
        sign_request(PLANNER, **arguments)


def test_extensions_are_a_collection() -> None:
    with pytest.raises(TypeError):
        sign_request(
            PLANNER,
            method="GET",
            url=URL,
            body=b"",
            audience=BILLING.agent_id,
            now=NOW,
            jti=new_message_id(),
            extensions="urn:a",
        )


def test_a_public_answer_is_bound_to_its_request_and_to_the_peer_of_the_channel() -> None:
    """What the request claims decides nothing: the answer goes to whoever is on the other end."""
    request = signer().sign(method="POST", url=URL, body=b"x")
    headers = [(b"host", b"billing.example"), (b"Jws-Signature", request.jws.encode())]
    reference = reference_of(headers, REPORTS.agent_id, received=("POST", URL))
    assert reference == RequestReference(requester=REPORTS.agent_id, jti=request.jti, digest=request.digest)

    reference = reference_of(headers, PLANNER.agent_id, received=("POST", URL))
    assert reference is not None
    answer = sign_response(BILLING, request=reference, status=401, body=b"no", now=NOW, jti=new_message_id())
    message = verify_response(
        answer,
        request=request,
        status=401,
        body=b"no",
        audience=PLANNER.agent_id,
        signers=exactly(str(BILLING.agent_id)),
        verifier=VERIFIER,
        peer=VERIFIER.verify(BILLING.chain_der, now=NOW, usage="server"),
        now=NOW,
    )
    assert message.payload == b"no"


@pytest.mark.parametrize("value", [b"", b"a..b", None, "answer", "no jti", "no a2a"])
def test_what_a_public_answer_cannot_be_bound_to(value: Any) -> None:
    key, typ = PLANNER.private_key, "a2a-req+jws"
    signed: dict[Any, str] = {
        "answer": http_jws(key, {"typ": "a2a-res+jws", "a2a": {"jti": "a" * 22}}),
        "no jti": http_jws(key, {"typ": typ, "a2a": {"jti": 1}}),
        "no a2a": http_jws(key, {"typ": typ, "a2a": "a" * 22}),
    }
    headers = [] if value is None else [(b"jws-signature", signed[value].encode() if value in signed else value)]
    assert reference_of(headers, PLANNER.agent_id, received=("POST", URL)) is None


def http_jws(key: Any, header: dict[str, Any]) -> str:
    from trust.signing import jws

    return jws.sign_detached(b"", key=key, header=header)


@pytest.mark.parametrize("values", [[b"a/b", b"a/b"], [b"a/b", b"c/d"], [b"t\xc3\xa9"]])
def test_a_content_type_that_cannot_be_signed_is_not_sent(values: list[bytes]) -> None:
    server = Billing()
    with pytest.raises(ConfigurationError):
        call(server, headers=[(b"content-type", value) for value in values], content=b"x")
    assert server.seen == []


def test_the_content_type_is_the_one_that_parsers_see() -> None:
    assert content_type_of([(b"x", b"y")], BindingMismatch) == ""
    assert content_type_of([(b"Content-Type", b" a/b; c=d\t")], BindingMismatch) == "a/b; c=d"


@pytest.mark.parametrize("url", [URL + "?code=SECRET", "ftp://billing.example/?code=SECRET"])
def test_the_query_of_a_target_is_not_told_to_logs(url: str) -> None:
    request = signer().sign(method="GET", url=URL + "?code=PRIVATE", body=b"")
    with pytest.raises(BindingMismatch) as caught:
        http.authenticate_request(
            request.jws,
            method="GET",
            url=url,
            body=b"",
            audience=BILLING.agent_id,
            verifier=VERIFIER,
            peer=VERIFIER.verify(PLANNER.chain_der, now=NOW, usage="client"),
            now=NOW,
        )
    assert "SECRET" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


def test_message_ids_are_fresh() -> None:
    assert len({new_message_id() for _ in range(100)}) == 100


def test_the_clock_is_the_default() -> None:
    request = MessageSigner(PLANNER, audience=BILLING.agent_id, bundles=FORGE.bundles).sign(
        method="GET", url=URL, body=b""
    )
    assert request.audience == str(BILLING.agent_id)
