"""Whether a server can do its work, for whatever starts servers and sends requests to them.

    /health    200 while the process answers
    /ready     200, or 503 while a part of the server does not work; which parts do, by name:

    {"ready": false, "checks": {"store": false, "signing_keys": true}, "warnings": ["clients_file"]}

What is wrong with a part is in the server's log, and never in an answer. A warning leaves a server ready: what is wrong
is so for every server of a fleet, and stopping them all helps nobody. While the file of the clients is broken, the last
good one is in use; while Redis cannot be written to, agents that read it go by the last list, for as long as it lasts.

The paths are under the issuer's. Everybody who may connect may ask: no answer costs more than the one look into the
store that all who ask in a second have in common.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trust.errors import ConfigurationError, TrustError
from trust.oauth.server.store import Store

HEALTH, READY = "/health", "/ready"
STORE_SECONDS = 2.0  # for an answer of the store: who asks whether we are ready waits for few seconds more
REUSE_SECONDS = 1.0  # for which an answer of the store is good
RETRY_SECONDS = 5  # RFC 9110 section 10.2.3: for whoever was told that we are not ready

Problem = Callable[[], str | None]

logger = logging.getLogger("a2a_trust.oauth")


class Readiness:
    """The parts of one server.

    Args:
        store: is looked into, in one thread at a time.
        checks: the other parts that it cannot be without, by the names that `/ready` has for them: each gives what is
            wrong with it, or None, and does not block.
        warnings: the same, of what it can be without; these may block.
    """

    def __init__(
        self,
        store: Store,
        *,
        checks: Mapping[str, Problem] = MappingProxyType({}),
        warnings: Mapping[str, Problem] = MappingProxyType({}),
    ) -> None:
        self._store, self._checks, self._warnings = store, checks, warnings
        self._threads = anyio.CapacityLimiter(1)  # not one of those that answer requests
        self._look: asyncio.Task[tuple[bool, list[str]]] | None = None
        self._looked = 0.0
        self._problem: str | None = None

    def check(self) -> None:
        """For a program that has health checks of its own. Does not block, and so does not look into the store: where
        that is away, the rounds of the other parts tell soon.

        Raises:
            ConfigurationError: which of `checks` fail.
        """
        if failing := _failing(self._checks):
            raise ConfigurationError(
                "authorization server is not ready", got=f"problems with {', '.join(failing)}", do="see the lines above"
            )

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})

    async def ready(self, _: Request) -> Response:
        store, warnings = await self._looked_in_time()
        checks = {"store": store, **{name: problem() is None for name, problem in self._checks.items()}}
        content = {"ready": all(checks.values()), "checks": checks, "warnings": warnings}
        headers = {"Cache-Control": "no-store"}
        if content["ready"]:
            return JSONResponse(content, headers=headers)
        return JSONResponse(content, status_code=503, headers={**headers, "Retry-After": str(RETRY_SECONDS)})

    async def _looked_in_time(self) -> tuple[bool, list[str]]:
        """Whether the store answers, and the warnings: by one look for everybody.

        One that hangs is waited for by each for a moment, and nobody begins another.
        """
        look, now, loop = self._look, time.monotonic(), asyncio.get_running_loop()
        if look is None or look.get_loop() is not loop or (look.done() and now - self._looked >= REUSE_SECONDS):
            look = self._look = loop.create_task(run_sync(self._look_at_all, limiter=self._threads))
            self._looked = now
        done, _ = await asyncio.wait({look}, timeout=STORE_SECONDS)
        return look.result() if done else (False, [])

    def _look_at_all(self) -> tuple[bool, list[str]]:
        return self._store_answers(), _failing(self._warnings)

    def _store_answers(self) -> bool:
        try:
            with self._store.reached():
                self._store.clients.changes()
        except Exception as error:
            told = str(error) if isinstance(error, TrustError) else type(error).__name__
            if self._problem is None:
                logger.error("database does not answer: %s", told)
            self._problem = told
        else:
            if self._problem is not None:
                logger.warning("database answers again")
            self._problem = None
        return self._problem is None


def _failing(parts: Mapping[str, Problem]) -> list[str]:
    return [name for name, problem in parts.items() if problem() is not None]
