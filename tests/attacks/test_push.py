"""Attacks by push notifications: on who receives one, and, by the URL of a webhook, on the network of who sends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.utils.push_url_validator import validate_push_notification_url
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.endpoints import WEB, Endpoint, over_web
from tests.forge import HOUR, NOW, Forge, spiffe
from trust.agent import push_client, serving
from trust.authorize import exactly, members_of
from trust.errors import (
    AddressRefused,
    AlgorithmRefused,
    AudienceMismatch,
    BindingMismatch,
    CertificateExpired,
    CertificateRevoked,
    DestinationRefused,
    HeaderMalformed,
    MessageExpired,
    MessageFromTheFuture,
    PeerNotAllowed,
    Replayed,
    ReplayGuardFull,
    ReplayStoreUnavailable,
    RequestMalformed,
    RequestTooLarge,
    SignatureMalformed,
    SignatureMissing,
    SignatureWrong,
    SignerUnknown,
    TrustError,
    TypeWrong,
    UnknownTrustDomain,
    UntrustedChain,
    WebhookRefused,
    WebhookUnknown,
    WrongExtendedKeyUsage,
)
from trust.replay import MemoryReplayGuard
from trust.signing import envelope, jws
from trust.signing.exchange import HEADER, sign_request
from trust.signing.http import new_message_id
from trust.signing.messages import sign_message
from trust.signing.push import sign_push
from trust.signing.push_receiver import PushReceiver
from trust.signing.targets import without_query
from trust.tls.destinations import WebPKI

FORGE = Forge()
OTHER = Forge("other.example")
IMPOSTOR = Forge("fleet.example")
REBOUND = WEB.leaf("/web", sans=[spiffe("spiffe://web.example/web"), x509.DNSName("rebind.example")])
BILLING, PLANNER, REVOKED = FORGE.leaf("/billing"), FORGE.leaf("/planner"), FORGE.leaf("/billing")
A_WEB = WebPKI(roots=WEB.root.public_bytes(Encoding.PEM).decode())
HOOK = "https://hooks.example/tasks?for=7"
SECOND = "https://hooks.example/second"
BODY = b'{"task":{"id":"7"}}'
JSON = "application/json"


def push(signer: Any = BILLING, *, cty: str = JSON, at: timedelta = timedelta(), **changes: Any) -> str:
    settings: dict[str, Any] = {"webhook": HOOK, "body": BODY, "jti": new_message_id(), **changes}
    return sign_push(signer, content_type=cty, now=NOW + at, **settings)


def with_header(change: Callable[[dict[str, Any]], None]) -> str:
    """A notification with another header, and a signature that is good for it."""
    parsed = jws.parse_detached(push(), algorithms=envelope.DEFAULT_ALGORITHMS, typ="a2a-push+jws")
    change(parsed.header)
    return jws.sign_detached(BODY, key=BILLING.private_key, header=parsed.header)


def as_request() -> str:
    """The same POST, signed as the request of a call."""
    return sign_request(
        BILLING,
        method="POST",
        url=HOOK,
        body=BODY,
        audience=HOOK,
        now=NOW,
        jti=new_message_id(),
        content_type=JSON,
        chain=True,
    ).jws


def as_message() -> str:
    signed = sign_message(
        {"messageId": "1", "parts": []}, "Message", credentials=BILLING, audience=HOOK, now=NOW, jti=new_message_id()
    )
    [entry] = next(iter(signed["metadata"].values()))["signatures"]
    return f"{entry['protected']}..{entry['signature']}"


class Full:
    def remember(self, key: bytes, **_: Any) -> None:
        raise ReplayGuardFull("replay guard is full")


class Away:
    def remember(self, key: bytes, **_: Any) -> None:
        raise ReplayStoreUnavailable("redis://secret@inside")


class Trail(list[dict[str, Any]]):
    def record(self, **facts: Any) -> None:
        self.append(facts)


class Inbox:
    def __init__(self) -> None:
        self.got: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.got.append(scope["state"]["notification"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def receiver(inbox: Inbox, trail: Trail, **changes: Any) -> PushReceiver:
    settings: dict[str, Any] = {
        "webhooks": (HOOK, SECOND),
        "bundles": FORGE.bundles,
        "authorize": exactly(BILLING.agent_id),
        "replay": MemoryReplayGuard(started_at=NOW - HOUR),
        "audit": trail,
        "clock": lambda: NOW,
        **changes,
    }
    return PushReceiver(inbox, **settings)


Row = tuple[str, Callable[[], dict[str, Any]], dict[str, Any], type[TrustError]]

# What is sent: `jws`, `body`, `path`, `method`, `headers` (further ones). Then the receiver's settings, and the error.
RECEIVED: list[Row] = [
    ("no signature", lambda: {"jws": None}, {}, SignatureMissing),
    ("two signatures", lambda: {"headers": [(HEADER, push())]}, {}, SignatureMalformed),
    ("no JWS", lambda: {"jws": "a.b"}, {}, SignatureMalformed),
    ("another body", lambda: {"body": BODY + b" "}, {}, SignatureWrong),
    ("another type of content", lambda: {"jws": push(cty="text/plain")}, {}, BindingMismatch),
    ("two types of content", lambda: {"headers": [("content-type", "text/plain")]}, {}, BindingMismatch),
    ("for another webhook of ours", lambda: {"path": "/second"}, {}, AudienceMismatch),
    ("for another host with this path", lambda: {"jws": push(webhook="https://b/tasks?for=7")}, {}, AudienceMismatch),
    (
        "for the host of a Host header",
        lambda: {"jws": push(webhook="https://b/tasks?for=7"), "headers": [("host", "b"), ("x-forwarded-host", "b")]},
        {},
        AudienceMismatch,
    ),
    (
        "for this webhook, spelled otherwise",
        lambda: {"jws": push(webhook=HOOK.replace("h", "H", 1))},
        {},
        AudienceMismatch,
    ),
    ("no webhook of ours", lambda: {"path": "/tasks"}, {}, WebhookUnknown),
    ("a path below a webhook", lambda: {"path": "/tasks/?for=7"}, {}, WebhookUnknown),
    ("a path that is none", lambda: {"path": "/tasks?for=7\x7f"}, {}, RequestMalformed),
    ("another method", lambda: {"method": "PUT"}, {}, RequestMalformed),
    ("a call's signature", lambda: {"jws": as_request()}, {}, TypeWrong),
    ("a message's signature", lambda: {"jws": as_message()}, {}, TypeWrong),
    ("HMAC", lambda: {"jws": _hmac()}, {}, AlgorithmRefused),
    ("members of a call", lambda: {"jws": with_header(lambda h: h["a2a"].update(htm="POST"))}, {}, HeaderMalformed),
    ("certificates left out", lambda: {"jws": with_header(lambda h: h.pop("x5c"))}, {}, SignerUnknown),
    (
        "another's certificates",
        lambda: {"jws": with_header(lambda h: h.update(x5c=_x5c(PLANNER)))},
        {},
        SignerUnknown,
    ),
    ("an agent that may not", lambda: {"jws": push(PLANNER)}, {}, PeerNotAllowed),
    ("an agent of another trust domain", lambda: {"jws": push(OTHER.leaf("/billing"))}, {}, UnknownTrustDomain),
    ("the agent of a CA with our name", lambda: {"jws": push(IMPOSTOR.leaf("/billing"))}, {}, UntrustedChain),
    (
        "a certificate for servers alone",
        lambda: {"jws": push(FORGE.leaf("/billing", eku=[ExtendedKeyUsageOID.SERVER_AUTH]))},
        {},
        WrongExtendedKeyUsage,
    ),
    (
        "an expired certificate",
        lambda: {"jws": push(FORGE.leaf("/billing", not_before=NOW - 3 * HOUR, not_after=NOW - HOUR))},
        {},
        CertificateExpired,
    ),
    ("a revoked one", lambda: {"jws": push(REVOKED)}, {"crls": FORGE.crls(REVOKED)}, CertificateRevoked),
    ("too late", lambda: {"jws": push(at=timedelta(seconds=-60))}, {}, MessageExpired),
    ("too early", lambda: {"jws": push(at=timedelta(seconds=11))}, {}, MessageFromTheFuture),
    ("larger than allowed", lambda: {}, {"max_body_bytes": 4}, RequestTooLarge),
    (
        "larger by what it says",
        lambda: {"jws": push(body=b"x"), "body": b"x", "headers": [("content-length", "5")]},
        {"max_body_bytes": 4},
        RequestTooLarge,
    ),
    ("larger than it says", lambda: {"headers": [("content-length", "4")]}, {"max_body_bytes": 4}, RequestTooLarge),
    ("no room to remember it", lambda: {}, {"replay": Full()}, ReplayGuardFull),
    ("nobody to remember it", lambda: {}, {"replay": Away()}, ReplayStoreUnavailable),
]


def _x5c(credentials: Any) -> list[str]:
    header = jws.parse_detached(push(credentials), algorithms=envelope.DEFAULT_ALGORITHMS, typ="a2a-push+jws").header
    return list(header["x5c"])


def _hmac() -> str:
    protected, _, signature = push().split(".")
    header = jws.decode(protected).replace(b'"ES256"', b'"HS256"')
    return f"{jws.encode(header)}..{signature}"


async def deliver(app: Any, what: dict[str, Any]) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request, by ASGI: nothing on the way brings it into form."""
    signature = what["jws"] if "jws" in what else push()
    headers = [("content-type", JSON), *([(HEADER, signature)] if signature else []), *what.get("headers", ())]
    path, _, query = what.get("path", "/tasks?for=7").partition("?")
    scope = {
        "type": "http",
        "method": what.get("method", "POST"),
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("192.0.2.7", 4711),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": what.get("body", BODY)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


@pytest.mark.parametrize(("case", "what", "settings", "expected"), RECEIVED, ids=[row[0] for row in RECEIVED])
def test_what_a_receiver_refuses(
    case: str, what: Callable[[], dict[str, Any]], settings: dict[str, Any], expected: type[TrustError]
) -> None:
    inbox, trail = Inbox(), Trail()
    status, headers, body = asyncio.run(deliver(receiver(inbox, trail, **settings), what()))
    assert not inbox.got
    [line] = trail
    assert (line["decision"], line["check"], line["peer"]) == ("deny", expected.check, "192.0.2.7:4711")
    assert (status, body) == (expected.status, b'{"error": "%b"}' % expected.code.encode())  # and nothing else
    assert (b"www-authenticate" in headers) == (status == 401)


def test_the_rows_without_their_mutation() -> None:
    inbox, trail = Inbox(), Trail()
    hook = receiver(inbox, trail)
    forwarded = {"headers": [("host", "evil.example"), ("x-forwarded-host", "evil.example")]}
    for what in ({}, {"path": "/second", "jws": push(webhook=SECOND)}, forwarded):
        assert asyncio.run(deliver(hook, what))[0] == 204
    assert [n.audience for n in inbox.got] == [HOOK, SECOND, HOOK]
    assert {n.signer.agent_id for n in inbox.got} == {BILLING.agent_id}
    assert [(line["decision"], line["peer"]) for line in trail] == [("allow", str(BILLING.agent_id))] * 3


def test_the_same_notification_again() -> None:
    inbox, trail, jws = Inbox(), Trail(), push()
    hook = receiver(inbox, trail)
    assert [asyncio.run(deliver(hook, {"jws": jws}))[0] for _ in range(3)] == [204, 401, 401]
    assert [line["check"] for line in trail] == ["all", Replayed.check, Replayed.check]
    assert len(inbox.got) == 1


def test_secrets_in_the_url_of_a_webhook_stay_out_of_the_trail() -> None:
    inbox, trail = Inbox(), Trail()
    hook = receiver(inbox, trail, webhooks=("https://hooks.example/tasks?key=OURS",))
    for webhook in ("https://hooks.example/other?key=THEIRS", "https://hooks.example/tasks?key=THEIRS"):
        assert asyncio.run(deliver(hook, {"path": "/tasks?key=OURS", "jws": push(webhook=webhook)}))[0] == 401
    assert [line["check"] for line in trail] == [AudienceMismatch.check] * 2
    assert "hooks.example/tasks?..." in trail[0]["reason"]
    assert not any(secret in repr(trail) for secret in ("OURS", "THEIRS"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://user:password@hooks.example/a@b?c=d@e", "https://...@hooks.example/a@b?..."),
        ("https://hooks.example/a@b", "https://hooks.example/a@b"),
        ("https://hooks.example/#secret?x", "https://hooks.example/#..."),
        (401, "401"),
    ],
)
def test_what_is_shown_of_a_url(value: object, shown: str) -> None:
    assert without_query(value) == shown


# The URL of a webhook, which is whatever somebody wants it to be.

URLS: list[tuple[str, str, type[TrustError]]] = [
    ("not https", "http://hooks.example/", WebhookRefused),
    ("no URL of the web", "gopher://hooks.example/", WebhookRefused),
    ("a user", "https://hooks.example@127.0.0.1/", WebhookRefused),
    ("a user that looks like a host", "https://hooks.example:443@127.0.0.1/", WebhookRefused),
    ("a backslash", "https://hooks.example\\@127.0.0.1/", WebhookRefused),
    ("an encoded host", "https://%6cocalhost/", WebhookRefused),
    ("a host in other letters", "https://\u2460\u2461\u2466.0.0.1/", WebhookRefused),
    ("a fragment", "https://hooks.example/#@127.0.0.1", WebhookRefused),
    ("steps in the path", "https://hooks.example/a/../b", WebhookRefused),
    ("a space", "https://hooks.example/a b", WebhookRefused),
    ("a host in no letters", "https://xn--/", WebhookRefused),
    ("a host in letters that are none", "https://xn--a.example/", WebhookRefused),
    ("no host", "https:///hooks", WebhookRefused),
    ("half a character", "https://hooks.example/\ud800", WebhookRefused),
    ("too long for a header", "https://hooks.example/" + "a" * 5000, WebhookRefused),
    ("too long to be read", "https://hooks.example/" + "a" * 70_000, WebhookRefused),
    ("port 0", "https://hooks.example:0/", WebhookRefused),
    ("a port that is none", "https://hooks.example:65536/", AddressRefused),
    ("another port", "https://hooks.example:8443/", AddressRefused),
    ("a port of other services", "https://127.0.0.1:6379/", AddressRefused),
    ("this machine", "https://127.0.0.1/", AddressRefused),
    ("this machine by its other addresses", "https://127.255.255.254/", AddressRefused),
    ("this machine by name", "https://localhost/", AddressRefused),
    ("this machine by IPv6", "https://[::1]/", AddressRefused),
    ("nobody, which is this machine", "https://0.0.0.0/", AddressRefused),
    ("nobody by IPv6", "https://[::]/", AddressRefused),
    ("in one number", "https://2130706433/", AddressRefused),
    ("in hexadecimal", "https://0x7f000001/", AddressRefused),
    ("in hexadecimal parts", "https://0x7f.0.0.1/", AddressRefused),
    ("in octal", "https://0177.0.0.1/", WebhookRefused),
    ("in octal, with zeros", "https://127.000.000.001/", WebhookRefused),
    ("short", "https://127.1/", AddressRefused),
    ("with a dot at its end", "https://127.0.0.1./", AddressRefused),
    ("metadata", "https://169.254.169.254/latest/meta-data/", AddressRefused),
    ("metadata of Alibaba", "https://100.100.100.200/", AddressRefused),
    ("metadata of Azure", "https://168.63.129.16/", AddressRefused),
    ("metadata by IPv6", "https://[fd00:ec2::254]/", AddressRefused),
    ("private, 10", "https://10.0.0.1/", AddressRefused),
    ("private, 172.16", "https://172.31.255.254/", AddressRefused),
    ("private, 192.168", "https://192.168.0.1/", AddressRefused),
    ("behind a carrier's NAT", "https://100.64.0.1/", AddressRefused),
    ("benchmarks", "https://198.18.0.1/", AddressRefused),
    ("multicast", "https://224.0.0.1/", AddressRefused),
    ("multicast by IPv6", "https://[ff02::1]/", AddressRefused),
    ("broadcast", "https://255.255.255.255/", AddressRefused),
    ("unique local", "https://[fc00::1]/", AddressRefused),
    ("link-local", "https://[fe80::1]/", AddressRefused),
    ("IPv4 in IPv6, mapped", "https://[::ffff:127.0.0.1]/", AddressRefused),
    ("IPv4 in IPv6, mapped, in hexadecimal", "https://[::ffff:7f00:1]/", AddressRefused),
    ("a public one, mapped", "https://[::ffff:8.8.8.8]/", AddressRefused),
    ("IPv4 in IPv6, compatible", "https://[::127.0.0.1]/", AddressRefused),
    ("IPv4 in IPv6, translated", "https://[::ffff:0:127.0.0.1]/", AddressRefused),
    ("IPv4 in NAT64", "https://[64:ff9b::10.0.0.1]/", AddressRefused),
    ("IPv4 in local NAT64", "https://[64:ff9b:1::10.0.0.1]/", AddressRefused),
    ("IPv4 in 6to4", "https://[2002:7f00:1::1]/", AddressRefused),
    ("IPv4 in Teredo", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", AddressRefused),
]


@pytest.mark.parametrize("others", [A_WEB, members_of("fleet.example")], ids=["web", "agents"])
@pytest.mark.parametrize(("case", "url", "expected"), URLS, ids=[row[0] for row in URLS])
def test_where_no_notification_goes(
    case: str, url: str, expected: type[TrustError], others: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: opened.append(address))
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *address: opened.append(address))

    async def main() -> None:
        async with push_client(source=BILLING, bundles=FORGE.bundles, webhooks={}, others=others) as client:
            with pytest.raises(TrustError) as caught:
                await client.post(url, json={})
        assert type(caught.value) is expected

    asyncio.run(main())
    assert not opened


def test_an_origin_without_a_rule() -> None:
    async def main() -> None:
        known = {"https://planner.example": exactly(PLANNER.agent_id)}
        async with push_client(source=BILLING, bundles=FORGE.bundles, webhooks=known, others=None) as client:
            with pytest.raises(DestinationRefused):
                await client.post("https://planner.example.evil.example/", json={})

    asyncio.run(main())


# Names that lead inside, or that do so a moment later.


class Resolver:
    """Answers with the next of these addresses, as the DNS of an attacker does; for `localhost` as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self._theirs = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not str(name).endswith(".example"):
            return self._theirs(host, port, *args, **options)
        self.asked.append(str(name))
        return [
            (socket.AF_INET6 if ":" in answer else socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))
            for answer in self.answers.pop(0)
        ]


@contextlib.asynccontextmanager
async def inside(port: int = 0) -> AsyncIterator[tuple[int, list[Any]]]:
    """A service that is not for strangers, at an address of its own; notes who connects."""
    callers: list[Any] = []

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(taken, "127.0.0.2", port)
    async with server:
        yield server.sockets[0].getsockname()[1], callers


@pytest.mark.parametrize("others", [A_WEB, members_of("fleet.example")], ids=["web", "agents"])
@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.2"],
        ["93.184.215.14", "127.0.0.2"],
        ["2606:2800:21f::1", "::ffff:127.0.0.2"],
        ["fe80::1%lo"],
    ],
    ids=["inside", "outside and inside", "inside in IPv6", "at an interface"],
)
def test_a_name_that_leads_inside(answer: list[str], others: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with inside() as (port, callers):
            resolver = Resolver(monkeypatch, answer)
            async with push_client(
                source=BILLING, bundles=FORGE.bundles, webhooks={}, others=others, ports=(port,)
            ) as client:
                with pytest.raises(TrustError) as caught:
                    await client.post(f"https://rebind.example:{port}/", json={})
            assert type(caught.value) is AddressRefused
            assert (resolver.asked, callers) == (["rebind.example"], [])

    asyncio.run(main())


def test_a_name_that_leads_inside_a_moment_later_and_a_check_that_looks_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack works on a check that resolves by itself: a2a-sdk's, with a plain httpx."""

    async def main() -> None:
        async with inside() as (port, callers):
            Resolver(monkeypatch, ["93.184.215.14"], ["127.0.0.2"])
            url = f"http://rebind.example:{port}/"
            assert await validate_push_notification_url(url)
            async with httpx.AsyncClient(trust_env=False) as plain:
                with pytest.raises(httpx.TransportError):
                    await plain.post(url, json={})
            assert len(callers) == 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["web", "agents"])
def test_a_name_that_leads_inside_a_moment_later(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved once for each connection, and the connection goes where that was, or nowhere."""

    async def main() -> None:
        endpoint = Endpoint(b"")
        server = (
            over_web(endpoint, tmp_path, REBOUND)
            if kind == "web"
            else serving(
                endpoint,
                source=PLANNER,
                bundles=FORGE.bundles,
                authorize=exactly(BILLING.agent_id),
                lifespan="off",
            )
        )
        others: Any = A_WEB if kind == "web" else exactly(PLANNER.agent_id)
        async with server as running:
            port = httpx.URL(running if kind == "web" else running.url).port
            async with inside(port) as (_, callers):
                resolver = Resolver(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])

                async def notify() -> httpx.Response:
                    async with push_client(
                        source=BILLING,
                        bundles=FORGE.bundles,
                        webhooks={},
                        others=others,
                        networks=["127.0.0.1"],
                        ports=[port],
                    ) as client:
                        return await client.post(f"https://rebind.example:{port}/", json={})

                assert (await notify()).status_code == 200
                with pytest.raises(TrustError) as caught:
                    await notify()
                assert type(caught.value) is AddressRefused
                assert resolver.asked == ["rebind.example"] * 2
                assert len(endpoint.asked) == 1
                assert not callers

    asyncio.run(main())
