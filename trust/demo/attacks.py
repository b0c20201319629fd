"""Fourteen attacks on the running fleet, each with the check that must refuse it and what the attacker must see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import httpx
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from trust.agent import agent_client
from trust.authorize import exactly
from trust.demo.fleet import DOMAIN, ID, SHORT_LIFE, Fleet, Step
from trust.errors import HandshakeRefused, TrustError
from trust.identity import AgentID
from trust.middleware import AGENT_CARD_PATH
from trust.signing.http import HEADER, SigningTransport, sign_request
from trust.tls.client import AgentTransport

# Chapter 5: each row is an attempt, the check that must refuse it, and what the refused side must see.

Attempt = Callable[[Fleet], Awaitable[httpx.Response]]


async def attacks(fleet: Fleet) -> AsyncIterator[Step]:
    expiring = (await fleet.tokens("auditor", "billing", "agent:execute").token()).value
    fetched = asyncio.get_running_loop().time()
    for what, attempt, check, status in _ATTACKS:
        if attempt is _expired_token:
            await asyncio.sleep(
                max(0.0, fetched + SHORT_LIFE.total_seconds() + 0.1 - asyncio.get_running_loop().time())
            )
            yield await _refused(fleet, what, lambda f: _expired_token(f, expiring), check, status)
        else:
            yield await _refused(fleet, what, attempt, check, status)


async def _refused(fleet: Fleet, what: str, attempt: Attempt, check: str, status: str) -> Step:
    """Try it, and compare the check in the refuser's audit trail and the answer on the wire with what must be."""
    before = len(fleet.trail.events)
    found = ""
    try:
        response = await attempt(fleet)
        seen = f"HTTP {response.status_code}"
    except HandshakeRefused as error:
        seen = f"TLS alert {str(error).partition('alert ')[2].partition(';')[0]}"
    except TrustError as error:  # the attack was on the client, and the client refused it
        seen, found = "error", error.check
    except ssl.SSLError as error:  # Python's own TLS: the reason is TLSV13_ALERT_CERTIFICATE_REQUIRED, for example
        seen = f"TLS alert {(error.reason or '').lower().partition('alert_')[2]}"
    async with asyncio.timeout(20):
        while not found:  # the server writes its trail a moment after the wire has the answer
            denied = [e for e in fleet.trail.events[before:] if e["decision"] == "deny"]
            found = denied[-1]["check"] if denied else ""
            await asyncio.sleep(0.01)
    return Step(
        chapter=5,
        what=what,
        outcome="refused" if (found, seen) == (check, status) else f"expected {check} and {status}",
        ok=(found, seen) == (check, status),
        check=found,
        status=seen,
    )


def _rpc(text: str) -> bytes:
    message = {"messageId": secrets.token_hex(8), "role": "ROLE_USER", "parts": [{"text": text}]}
    return json.dumps({"jsonrpc": "2.0", "id": "1", "method": "SendMessage", "params": {"message": message}}).encode()


async def _post(
    fleet: Fleet,
    *,
    token: str,
    by: str = "planner",
    sign_for: str = "billing",
    body: bytes | None = None,
    sent: bytes | None = None,
    client: httpx.AsyncClient | None = None,
    times: int = 1,
) -> httpx.Response:
    """Post to billing by hand: agent `by` signs `body` for `sign_for` and sends `sent` in its place."""
    body = body or _rpc("invoice 43")
    url = f"{fleet.url['billing']}/a2a/jsonrpc"
    signed = sign_request(
        fleet.credentials[by],
        method="POST",
        url=url,
        body=body,
        audience=ID[sign_for],
        now=datetime.now(UTC),
        jti=secrets.token_urlsafe(16),
        content_type="application/json",
        version="1.0",
    )
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "a2a-version": "1.0",
        HEADER: signed.jws,
    }
    client = client or fleet.client(by, "billing")
    for _ in range(times):
        response = await client.post(url, content=sent or body, headers=headers)
    return response


async def _planner_token(fleet: Fleet, *scopes: str, to: str = "billing") -> str:
    return (await fleet.tokens("planner", to, *scopes).token()).value


async def _no_certificate(fleet: Fleet) -> httpx.Response:
    roots = "".join(c.public_bytes(Encoding.PEM).decode() for c in fleet.ca.bundle().roots)
    address = fleet.sockets["billing"].getsockname()

    def connect() -> httpx.Response:
        """With Python's own TLS, which knows the right root and has no certificate."""
        context = ssl.create_default_context(cadata=roots)
        with (
            socket.create_connection(address, timeout=5) as tcp,
            context.wrap_socket(tcp, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return httpx.Response(200, content=tls.recv(1000))

    return await asyncio.to_thread(connect)


async def _with_certificate_of(fleet: Fleet, domain: str) -> httpx.Response:
    """Try with a certificate of a CA that billing does not trust. Names on it cost its owner nothing."""
    with contextlib.closing(
        CertificateAuthority.create(
            fleet.folder / f"ca-{secrets.token_hex(4)}", trust_domain=domain, password=secrets.token_urlsafe(32)
        )
    ) as ca:
        forged = ca.issue_credentials(AgentID(domain, "/planner"), dns_names=("localhost",))
    async with agent_client(source=forged, bundles=fleet.bundles, authorize=exactly(ID["billing"])) as client:
        return await client.get(fleet.url["billing"] + AGENT_CARD_PATH)


async def _foreign_ca(fleet: Fleet) -> httpx.Response:
    return await _with_certificate_of(fleet, DOMAIN)


async def _other_domain(fleet: Fleet) -> httpx.Response:
    return await _with_certificate_of(fleet, "elsewhere.example")


async def _not_on_the_list(fleet: Fleet) -> httpx.Response:
    return await fleet.client("guest", "billing").get(fleet.url["billing"] + AGENT_CARD_PATH)


async def _stolen_token(fleet: Fleet) -> httpx.Response:
    return await _post(fleet, by="auditor", token=await _planner_token(fleet, "agent:execute"))


async def _expired_token(fleet: Fleet, token: str = "") -> httpx.Response:
    return await _post(fleet, by="auditor", token=token)


async def _token_for_another(fleet: Fleet) -> httpx.Response:
    return await _post(fleet, token=await _planner_token(fleet, "archive:read", to="archive"))


async def _missing_scope(fleet: Fleet) -> httpx.Response:
    return await _post(fleet, token=await _planner_token(fleet, "agent:read"))


async def _changed_byte(fleet: Fleet) -> httpx.Response:
    body = _rpc("pay 100 to planner")
    sent = body.replace(b"100", b"900")
    return await _post(fleet, token=await _planner_token(fleet, "agent:execute"), body=body, sent=sent)


async def _for_another_receiver(fleet: Fleet) -> httpx.Response:
    return await _post(fleet, token=await _planner_token(fleet, "agent:execute"), sign_for="archive")


async def _replay(fleet: Fleet) -> httpx.Response:
    return await _post(fleet, token=await _planner_token(fleet, "agent:execute"), times=2)


class _Swapped(httpx.AsyncBaseTransport):
    """A man in the middle behind the TLS edge: answers every request with the first answer it saw."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._first: tuple[httpx.Response, bytes] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        content = await response.aread()
        await response.aclose()
        first, content = self._first = self._first or (response, content)
        return httpx.Response(
            first.status_code,
            headers=first.headers,
            stream=httpx.ByteStream(content),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _swapped_answer(fleet: Fleet) -> httpx.Response:
    inner = AgentTransport(fleet.credentials["planner"], fleet.bundles, exactly(ID["billing"]), crls=fleet.crls)
    transport = SigningTransport(_Swapped(inner), fleet.signer("planner", "billing"))
    tokens = fleet.tokens("planner", "billing", "agent:execute")
    async with httpx.AsyncClient(transport=transport, auth=tokens, trust_env=False) as client:
        for text in ("invoice 44", "invoice 45"):
            response = await client.post(
                fleet.url["billing"] + "/a2a/jsonrpc",
                content=_rpc(text),
                headers={"content-type": "application/json", "a2a-version": "1.0"},
            )
    return response


async def _revoked_open_connection(fleet: Fleet) -> httpx.Response:
    """Open a connection, use it, revoke the certificate, and use the same connection again."""
    client = fleet.client("planner", "billing")
    token = await _planner_token(fleet, "agent:execute")
    accepted = await _post(fleet, token=token, client=client)
    if accepted.status_code != 200:
        return accepted
    fleet.ca.revoke(fleet.credentials["planner"].certificate.serial_number, "keyCompromise")
    fleet.crls.replace(fleet.ca.crl())
    return await _post(fleet, token=token, client=client)


async def _revoked_new_connection(fleet: Fleet) -> httpx.Response:
    for server in fleet.servers.values():
        server.context.reload()  # sweeps what is still open
    return await fleet.client("planner", "billing").get(fleet.url["billing"] + AGENT_CARD_PATH)


_ATTACKS: tuple[tuple[str, Callable[..., Awaitable[httpx.Response]], str, str], ...] = (
    ("no client certificate", _no_certificate, "peer.certificate", "TLS alert certificate_required"),
    ("certificate of a foreign CA", _foreign_ca, "peer.chain", "TLS alert unknown_ca"),
    ("certificate of another trust domain", _other_domain, "peer.trust_domain", "TLS alert unknown_ca"),
    ("a peer that is not on the list", _not_on_the_list, "peer.allowed", "TLS alert handshake_failure"),
    ("a token stolen and used with another certificate", _stolen_token, "token.binding", "HTTP 401"),
    ("a token for another audience", _token_for_another, "token.audience", "HTTP 401"),
    ("a missing scope", _missing_scope, "scope.insufficient", "HTTP 403"),
    ("a body with one byte changed", _changed_byte, "signature.value", "HTTP 401"),
    ("a signature for another receiver", _for_another_receiver, "signature.audience", "HTTP 401"),
    ("a replay", _replay, "replay", "HTTP 401"),
    ("an answer that belongs to another request", _swapped_answer, "signature.response", "error"),
    ("an expired token", _expired_token, "token.expired", "HTTP 401"),
    ("a revoked certificate on an open connection", _revoked_open_connection, "peer.revoked", "HTTP 401"),
    (
        "a revoked certificate on a new connection",
        _revoked_new_connection,
        "peer.revoked",
        "TLS alert certificate_revoked",
    ),
)
