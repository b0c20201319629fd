"""The edge of the server: forms come in bounded and strict, answers go out as the RFCs spell them, all is recorded.

Every endpoint that clients post to is an `Endpoint`: it authenticates the client, and `decide` says what becomes of
the request.
"""

from __future__ import annotations

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import ClassVar, TypeVar
from urllib.parse import parse_qsl

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trust.audit import AuditSink, Decision
from trust.clock import Clock
from trust.errors import (
    ClientLockedOut,
    ClientRefused,
    GrantError,
    GrantRequestMalformed,
    RequestTooLarge,
    RequestTooSlow,
    TargetRefused,
    TokenStoreUnavailable,
    TooManyTokenRequests,
)
from trust.identity import PeerIdentity, peer_of
from trust.oauth.keys import SigningKey, StaticKeys
from trust.oauth.server.authentication import Form, authenticate
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.grants import GrantPolicy
from trust.oauth.server.signing_keys import KeyRing
from trust.oauth.server.store import Store
from trust.oauth.server.throttle import FAILURES, LOCK_MINUTES, Throttle, caller_of
from trust.oauth.server.together import Together
from trust.seldom import Seldom
from trust.sources import Source

MAX_BODY_BYTES = 16 << 10  # a subject token of 8 KiB and the other parameters
MAX_PARAMETERS = 32  # of one request; a token exchange has nine
BODY_SECONDS = 10  # to receive them; a slower sender only holds a connection

# RFC 6749 section 5.1. Nothing that the token endpoint says may be kept by a cache.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

_UNWANTED = re.compile(r"(?i)(?:^|;)\s*q\s*=\s*0(?:\.0{0,3})?\s*(?:;|$)")  # RFC 9110 section 12.4.2

T = TypeVar("T")

logger = logging.getLogger("a2a_trust.oauth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the endpoints of one server share."""

    policy: GrantPolicy
    clients: Source[ClientRegistry]
    store: Store
    keys: Source[KeyRing]
    audit: AuditSink
    clock: Clock
    threads: anyio.CapacityLimiter
    throttle: Throttle

    @property
    def signing_key(self) -> SigningKey:
        return self.keys.current().signing

    @property
    def published(self) -> StaticKeys:
        return self.keys.current().verifying

    async def in_thread(self, call: Callable[[], T]) -> T:
        """The store blocks (a durable commit waits for the disk); the event loop must not.

        Raises:
            TokenStoreUnavailable: as `Store.reached`.
        """

        def reached() -> T:
            with self.store.reached():
                return call()

        return await run_sync(reached, limiter=self.threads)

    async def counted(self, call: Callable[[], T]) -> T:
        """The throttle blocks where its counters are shared."""
        return await self.in_thread(call) if self.throttle.blocks else call()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an endpoint answers, and what the audit trail says of it beside what it says of every request."""

    response: Response
    on_request: Mapping[str, Callable[[], Response]] = field(default_factory=dict)  # by the media type in Accept
    subject: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Endpoint(ABC):
    """One endpoint that clients post forms to. Every request ends in one audit record."""

    event: ClassVar[str]  # its name in the audit trail

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._away = Seldom(1)  # line a minute, however many ask meanwhile
        clients = parts.clients
        self._registered = Together[None, ClientRegistry](
            lambda asked: [clients.current()] * len(asked), parts.in_thread
        )

    @abstractmethod
    async def decide(
        self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime, proofs: Sequence[str]
    ) -> Outcome:
        """What becomes of a request of this client.

        Args:
            proofs: the values of its `DPoP` headers.

        Raises:
            GrantError: it is refused, in the words of an RFC.
        """

    async def answer(self, request: Request) -> Response:
        peer = peer_of(request.scope)
        form: Form = {}
        authorization = request.headers.getlist("authorization")
        who = caller_of(peer, request.scope.get("client"))
        try:
            await self.parts.counted(partial(self.parts.throttle.admit, who))
            form = parse_form(await _body(request))
            clients = await self._registered.ask(None)
            now = self.parts.clock()
            client, proven = authenticate(form, peer, clients, now=now, authorization=authorization)
            form = {**form, "client_id": client.client_id}
            proofs = request.headers.getlist("dpop")
            outcome = await self.decide(form, client=client, peer=proven, now=now, proofs=proofs)
            response = _as_asked(outcome, request)
            # What cannot be recorded is not handed out.
            self._record("allow", "all", peer, form, subject=outcome.subject, **outcome.facts)
            return response
        except TooManyTokenRequests as error:
            if error.is_first:  # and none of those that follow: whoever floods us does not flood the trail
                self._record("deny", error.check, peer, form, reason=str(error))
            return _refusal(error.status, error.code, headers={"Retry-After": str(error.retry_after)})
        except TokenStoreUnavailable as error:
            if self._away.says():
                logger.error("%s request failed: %s%s", self.event, error, self._away.left_out())
            self._record("deny", error.check, peer, form, reason=str(error))
            return _refusal(error.status, error.code, headers={"Retry-After": str(error.retry_after)})
        except (GrantError, RequestTooLarge, RequestTooSlow) as error:
            self._record("deny", error.check, peer, form, reason=str(error))
            if isinstance(error, ClientRefused) or peer is None:
                await self._count_failure(who, peer, form)
            # RFC 6749 section 5.2: in the scheme that the client has used.
            challenge = authorization and isinstance(error, ClientRefused)
            return _refusal(
                error.status,
                error.code,
                error.members if isinstance(error, GrantError) else {},
                {"WWW-Authenticate": f'Basic realm="{self.parts.policy.issuer}"'} if challenge else {},
            )
        except ClientDisconnect:
            self._record("deny", "request.disconnected", peer, form)
            return _refusal(400, "invalid_request")
        except Exception:
            logger.exception("%s request failed", self.event)
            self._record("deny", "server", peer, form)
            return _refusal(500, "server_error")

    async def _count_failure(self, who: str, peer: PeerIdentity | None, form: Form) -> None:
        if await self.parts.counted(partial(self.parts.throttle.failed, who)):
            reason = f"{FAILURES} failing authentications: {who} is locked out for {LOCK_MINUTES} minutes"
            self._record("deny", ClientLockedOut.check, peer, form, reason=reason)

    def _record(
        self, decision: Decision, check: str, peer: PeerIdentity | None, form: Form, subject: str = "", **facts: str
    ) -> None:
        self.parts.audit.record(
            event=self.event,
            decision=decision,
            check=check,
            peer=str(peer.agent_id) if peer else "",
            subject=subject,
            target=form.get("resource") or form.get("audience", ""),
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


def _as_asked(outcome: Outcome, request: Request) -> Response:
    for accepted in request.headers.get("accept", "").split(","):
        kind, _, parameters = accepted.partition(";")
        made = outcome.on_request.get(kind.strip().lower())
        if made is not None and not _UNWANTED.search(parameters):
            return made()
    return outcome.response


async def _body(request: Request) -> bytes:
    """The form of a request, bounded in size and time before anything is parsed."""
    if request.scope["query_string"]:
        # RFC 6749 section 3.2: parameters in a URL end in logs, subject tokens among them.
        raise GrantRequestMalformed("request has a query", expected="parameters in the body only")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded" or "content-encoding" in request.headers:
        raise GrantRequestMalformed("content type", got=content_type, expected="application/x-www-form-urlencoded")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RequestTooLarge("request is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise RequestTooSlow("request came too slowly", expected=f"within {BODY_SECONDS} s") from None
    return bytes(body)


def _refusal(
    status: int,
    code: str,
    members: Mapping[str, str | int] = MappingProxyType({}),
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """RFC 6749 section 5.2. The code is all that the wire learns; the reason is in the audit trail."""
    return JSONResponse({"error": code, **members}, status_code=status, headers={**NO_STORE, **headers})
