"""The edge of the server: forms come in bounded and strict, answers go out as the RFCs spell them, all is recorded.

Every endpoint that clients post to is an `Endpoint`: it authenticates the client, and `decide` says what becomes of
the request.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, TypeVar
from urllib.parse import parse_qsl

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trust.audit import AuditSink, Decision
from trust.clock import Clock
from trust.errors import GrantError, GrantRequestMalformed, RequestTooLarge, RequestTooSlow, TargetRefused
from trust.identity import PeerIdentity, peer_of
from trust.oauth.keys import SigningKey, StaticKeys
from trust.oauth.server.authentication import Form, authenticate
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.grants import GrantPolicy
from trust.oauth.server.store import Store
from trust.sources import Source

MAX_BODY_BYTES = 16 << 10  # a subject token of 8 KiB and the other parameters
MAX_PARAMETERS = 32  # of one request; a token exchange has nine
BODY_SECONDS = 10  # to receive them; a slower sender only holds a connection

# RFC 6749 section 5.1. Nothing that the token endpoint says may be kept by a cache.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

T = TypeVar("T")

logger = logging.getLogger("a2a_trust.oauth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the endpoints of one server share."""

    policy: GrantPolicy
    clients: Source[ClientRegistry]
    store: Store
    signing_key: SigningKey
    published: StaticKeys
    audit: AuditSink
    clock: Clock
    threads: anyio.CapacityLimiter

    async def in_thread(self, call: Callable[[], T]) -> T:
        """The store blocks (a durable commit waits for the disk); the event loop must not."""
        return await run_sync(call, limiter=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an endpoint answers, and what the audit trail says of it beside what it says of every request."""

    response: Response
    subject: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Endpoint(ABC):
    """One endpoint that clients post forms to. Every request ends in one audit record."""

    event: ClassVar[str]  # its name in the audit trail

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @abstractmethod
    async def decide(self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime) -> Outcome:
        """What becomes of a request of this client.

        Raises:
            GrantError: it is refused, in the words of an RFC.
        """

    async def answer(self, request: Request) -> Response:
        peer = peer_of(request.scope)
        form: Form = {}
        try:
            form = parse_form(await _body(request))
            now = self.parts.clock()
            client, proven = authenticate(form, peer, self.parts.clients.current(), now=now)
            outcome = await self.decide(form, client=client, peer=proven, now=now)
            # What cannot be recorded is not handed out.
            self._record("allow", "all", peer, form, subject=outcome.subject, **outcome.facts)
            return outcome.response
        except (GrantError, RequestTooLarge, RequestTooSlow) as error:
            self._record("deny", error.check, peer, form, reason=str(error))
            return _refusal(error.status, error.code)
        except ClientDisconnect:
            self._record("deny", "request.disconnected", peer, form)
            return _refusal(400, "invalid_request")
        except Exception:
            logger.exception("%s request failed", self.event)
            self._record("deny", "server", peer, form)
            return _refusal(500, "server_error")

    def _record(
        self, decision: Decision, check: str, peer: PeerIdentity | None, form: Form, subject: str = "", **facts: str
    ) -> None:
        self.parts.audit.record(
            event=self.event,
            decision=decision,
            check=check,
            peer=str(peer.agent_id) if peer else "",
            subject=subject,
            target=form.get("resource", ""),
            grant=form.get("grant_type", ""),
            client=form.get("client_id", ""),
            **facts,
        )


def parse_form(body: bytes) -> Form:
    """The parameters of a request, each once; those without a value are left out. RFC 6749 section 3.2.

    Raises:
        GrantRequestMalformed: not a form, or a parameter twice.
        TargetRefused: several resources (RFC 8707 section 2): one token is for one receiver.
    """
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:  # UnicodeDecodeError is one
        raise GrantRequestMalformed("request body", expected="application/x-www-form-urlencoded") from None
    repeated = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
    if repeated == ["resource"]:
        raise TargetRefused("several resources", expected="one: a token is for one receiver")
    if repeated:
        raise GrantRequestMalformed("parameter given twice", got=", ".join(repeated), expected="each once")
    return {name: value for name, value in pairs if value}


async def _body(request: Request) -> bytes:
    """The form of a request, bounded in size and time before anything is parsed."""
    if request.url.query:
        # RFC 6749 section 3.2: parameters in a URL end in logs, subject tokens among them.
        raise GrantRequestMalformed("token request has a query", expected="parameters in the body only")
    if "authorization" in request.headers:
        raise GrantRequestMalformed("client authentication", got="an Authorization header", expected="the certificate")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded" or "content-encoding" in request.headers:
        raise GrantRequestMalformed("content type", got=content_type, expected="application/x-www-form-urlencoded")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RequestTooLarge("token request is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise RequestTooSlow("token request came too slowly", expected=f"within {BODY_SECONDS} s") from None
    return bytes(body)


def _refusal(status: int, code: str) -> Response:
    """RFC 6749 section 5.2. The code is all that the wire learns; the reason is in the audit trail."""
    return JSONResponse({"error": code}, status_code=status, headers=NO_STORE)
