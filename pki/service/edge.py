"""Where every request passes: it gets an ID, its refusal an answer and an audit record, its blocking work a thread."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pki.errors import DecisionNotRecorded
from pki.service.answers import refusal
from pki.service.seldom import Seldom, SparingAudit
from trust.audit import AuditSink
from trust.errors import TrustError
from trust.identity import peer_of

READING_THREADS = 8  # of their own: lists and status are answered while issuance hangs on a locked database

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

logger = logging.getLogger("a2a_pki.service")


class Observer(Protocol):
    """What is counted (`pki.service.metrics`, where the extra is installed)."""

    def answered(self, event: str, status: int, seconds: float) -> None: ...

    def refused(self, event: str, check: str) -> None: ...

    def rendered(self) -> tuple[bytes, str]:
        """The page of /metrics and its content type."""


class Edge:
    """Shared by the applications of one service, in one event loop."""

    def __init__(self, audit: AuditSink, observer: Observer | None) -> None:
        self.audit = SparingAudit(audit)
        self.observer = observer
        self._unrecorded = Seldom(lines=1)
        self._reading = ThreadPoolExecutor(READING_THREADS, "a2a-pki-read")

    def close(self) -> None:
        """Wait for what the threads are doing."""
        self._reading.shutdown()

    async def reading(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, call)

    def endpoint(self, event: str, handler: Handler) -> Handler:
        """`handler` as an endpoint that never raises; what it refuses is audited as `event`."""

        @functools.wraps(handler)
        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            request_id = request.state.id = secrets.token_hex(8)
            try:
                response = await handler(request)
            except TrustError as error:
                response = refusal(error, request_id)
                self.deny(request, event, error.check, str(error))
                if error.status >= 500:
                    logger.error("%s (request %s) failed: %s", event, request_id, error)
            except Exception:
                response = refusal(None, request_id)
                self.deny(request, event, "server")
                logger.exception("%s (request %s) failed", event, request_id)
            response.headers["X-Request-ID"] = request_id
            if self.observer is not None:
                self.observer.answered(event, response.status_code, time.perf_counter() - started)
            return response

        return endpoint

    def allow(self, request: Request, event: str, *, subject: str, **facts: str) -> None:
        """Record that something was done. Called before it is handed out: what cannot be recorded is not.

        Raises:
            DecisionNotRecorded: whatever the trail raised.
        """
        try:
            self.audit.record(
                event=event,
                decision="allow",
                check="all",
                peer=_peer(request),
                subject=subject,
                target=_target(request),
                request=request.state.id,
                **facts,
            )
        except Exception as error:
            raise DecisionNotRecorded("audit trail", got=error, expected="one that can be written") from error

    def deny(self, request: Request, event: str, check: str, reason: str = "") -> None:
        if self.observer is not None:
            self.observer.refused(event, check)
        try:
            self.audit.record(
                event=event,
                decision="deny",
                check=check,
                peer=_peer(request),
                target=_target(request),
                request=request.state.id,
                reason=reason,
            )
        except Exception as error:  # it stays refused
            if self._unrecorded.says():
                logger.error("a refusal could not be recorded: %s%s", error, self._unrecorded.left_out())


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def _peer(request: Request) -> str:
    """The agent that the channel proves, or else the address that asks."""
    peer = peer_of(request.scope)
    if peer is not None:
        return str(peer.agent_id)
    return f"{request.client.host}:{request.client.port}" if request.client else "unknown"


def _target(request: Request) -> str:
    return f"{request.method} {request.url.path}"
