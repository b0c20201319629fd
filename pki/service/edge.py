"""Where every request passes: it gets an ID, its refusal an answer and an audit record, its blocking work a thread."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pki.errors import DecisionNotRecorded
from pki.service.answers import refusal
from pki.service.seldom import SparingAudit
from trust.audit import AuditSink, record_all
from trust.errors import TrustError
from trust.identity import peer_of
from trust.seldom import Seldom

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
        self._sink = audit
        self._audit = SparingAudit(audit)
        self.observer = observer
        self._unrecorded = Seldom(lines=1)
        self._reading = ThreadPoolExecutor(READING_THREADS, "a2a-pki-read")
        self._recording = ThreadPoolExecutor(1, "a2a-pki-audit")  # a trail that hangs holds up nobody who is not in it
        # Of requests: no other process has the same ones, and asking the system for random bytes each time is slow.
        self._prefix, self._numbers = secrets.token_hex(5), itertools.count()

    def close(self) -> None:
        """Wait for what the threads are doing."""
        self._reading.shutdown()
        self._recording.shutdown()

    async def reading(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, call)

    def endpoint(self, event: str, handler: Handler) -> Handler:
        """`handler` as an endpoint that never raises; what it refuses is audited as `event`."""

        @functools.wraps(handler)
        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            request_id = request.state.id = f"{self._prefix}{next(self._numbers) % 0x1000000:06x}"
            try:
                response = await handler(request)
            except TrustError as error:
                response = refusal(error, request_id)
                await self.deny(request, event, error.check, str(error))
                if error.status >= 500:
                    logger.error("%s (request %s) failed: %s", event, request_id, error)
            except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # a defect, or a panic of a library in Rust: those are no Exceptions
                response = refusal(None, request_id)
                await self.deny(request, event, "server")
                logger.exception("%s (request %s) failed", event, request_id)
            response.raw_headers.append((b"x-request-id", request_id.encode()))
            if self.observer is not None:
                self.observer.answered(event, response.status_code, time.perf_counter() - started)
            return response

        return endpoint

    def direct(self, event: str, handler: Handler) -> ASGIApp:
        """As `endpoint`, as an application by itself."""
        endpoint = self.endpoint(event, handler)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        return app

    def asked(self, request: Request, event: str) -> dict[str, str]:
        """What is recorded of a request that is granted: who asked for what."""
        return {**self._asked(request, event), "decision": "allow", "check": "all"}

    @staticmethod
    def _asked(request: Request, event: str) -> dict[str, str]:
        return {"event": event, "peer": _peer(request), "target": _target(request), "request": request.state.id}

    def allow(self, decisions: Sequence[Mapping[str, str]]) -> None:
        """Record what was done: `asked`, and what was made of it. May be called in any thread.

        Called before it is handed out: what cannot be recorded is not.

        Raises:
            DecisionNotRecorded: whatever the trail raised.
        """
        try:
            record_all(self._sink, decisions)
        except Exception as error:  # a trail is the operator's, and may raise anything
            raise DecisionNotRecorded("audit trail", got=error, expected="one that can be written") from error

    async def deny(self, request: Request, event: str, check: str, reason: str = "") -> None:
        """Record that something was refused; where that fails, it stays refused."""
        if self.observer is not None:
            self.observer.refused(event, check)
        facts = {**self._asked(request, event), "check": check, "reason": reason}
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._recording, lambda: self._audit.record(decision="deny", **facts)
            )
        except Exception as error:  # likewise
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
    return f"{request.method} {request.scope['path']}"
