"""The signed list of this server's revoked tokens: at `/revoked` for whoever asks, and in Redis where one is named."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from types import TracebackType

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trust.clock import Clock, wall_clock
from trust.errors import DenylistTooLarge, TokenStoreUnavailable
from trust.oauth.denylist.document import LIST_SECONDS, MAX_ENTRIES, MEDIA_TYPE, RevokedTokens, sign_list
from trust.oauth.denylist.redis_list import SharedList
from trust.oauth.server.rounds import Rounds
from trust.oauth.server.signing_keys import KeyRing
from trust.oauth.server.store import Store
from trust.oauth.server.together import Together
from trust.seldom import Seldom
from trust.sources import Source

REUSE_SECONDS = 5  # a list in which nothing has changed is signed anew so often
ROUND_SECONDS = 2.0  # between two looks whether there is something to write to Redis

logger = logging.getLogger("a2a_trust.oauth")


class RevokedList:
    """The list, signed when it is wanted. Thread-safe."""

    def __init__(self, *, issuer: str, store: Store, keys: Source[KeyRing], clock: Clock = wall_clock) -> None:
        self.issuer = issuer
        self._store = store
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._signed: tuple[RevokedTokens, str, str] | None = None  # with the ID of its key, and as it is sent

    def current(self) -> tuple[RevokedTokens, str]:
        """The list and its JWS. Blocks: the store is asked each time whether anything was revoked.

        Raises:
            DenylistTooLarge: more tokens were revoked than agents take. They will refuse all, which is the safe side.
            TokenStoreUnavailable: the store does not answer.
        """
        with self._store.reached():
            return self._current()

    def _current(self) -> tuple[RevokedTokens, str]:
        sequence = self._store.tokens.revocations()  # first: a list may know more than its number says, never less
        key, now = self._keys.current().signing, self._clock()
        seconds = int(now.timestamp())
        with self._lock:
            if self._signed is not None:
                last, kid, text = self._signed
                fresh = 0 <= seconds - last.issued_at < REUSE_SECONDS
                if last.sequence == sequence and kid == key.kid and fresh:
                    return last, text
            revoked = RevokedTokens(
                issuer=self.issuer,
                sequence=sequence,
                issued_at=seconds,
                expires_at=seconds + LIST_SECONDS,
                tokens=self._store.tokens.revoked(now=now, limit=MAX_ENTRIES + 1),
            )
            text = sign_list(revoked, key)
            self._signed = revoked, key.kid, text
            return revoked, text


class RevokedRoute:
    """The list at `/revoked`, for every peer: who may connect may know which tokens it must refuse.

    Nobody is counted here. Those who ask at the same time cost one thread, one look into the store and one copy.
    """

    def __init__(self, revoked: RevokedList, threads: anyio.CapacityLimiter) -> None:
        def current(asked: Sequence[None]) -> list[tuple[RevokedTokens, bytes]]:
            found, text = revoked.current()
            return [(found, text.encode())] * len(asked)

        self._together = Together[None, tuple[RevokedTokens, bytes]](current, partial(run_sync, limiter=threads))
        self._seldom = Seldom()

    async def answer(self, request: Request) -> Response:
        try:
            revoked, text = await self._together.ask(None)
        except DenylistTooLarge as error:
            if self._seldom.says():
                logger.error("agents will refuse all tokens: %s%s", error, self._seldom.left_out())
            return JSONResponse({"error": error.code}, status_code=error.status)
        except TokenStoreUnavailable as error:
            if self._seldom.says():
                logger.error("list of revoked tokens cannot be made: %s%s", error, self._seldom.left_out())
            headers = {"Retry-After": str(error.retry_after)}
            return JSONResponse({"error": error.code}, status_code=error.status, headers=headers)
        except Exception:  # of the store, whose words are for nobody else
            if self._seldom.says():
                logger.exception("list of revoked tokens cannot be made%s", self._seldom.left_out())
            return JSONResponse({"error": "server_error"}, status_code=500)
        headers = {"Cache-Control": "no-cache", "ETag": f'"{revoked.sequence}-{revoked.issued_at}"'}
        if headers["ETag"] in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(text, headers=headers, media_type=MEDIA_TYPE)


class RevokedPublisher:
    """Writes the list to a Redis server, for as long as the `with` block runs: for `trust.RedisDenylist`.

    Whoever revoked a token, in whichever process over the same database: it is in the list two seconds later.

    Raises:
        ConfigurationError: as `trust.oauth.denylist.redis_list.SharedList`.
    """

    def __init__(self, revoked: RevokedList, url: str) -> None:
        self._list = revoked
        self._shared = SharedList(url, revoked.issuer)
        self._written = ""
        self._rounds = Rounds(
            self._write,
            seconds=ROUND_SECONDS,
            name="a2a-trust-revoked",
            failing="list of revoked tokens is not written",
            again="list of revoked tokens is written again",
        )

    @property
    def problem(self) -> str | None:
        """Why the last round failed, in one line; None where it did not."""
        return self._rounds.problem

    def __enter__(self) -> RevokedPublisher:
        self._rounds.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rounds.close()
        self._shared.close()

    def _write(self) -> None:
        revoked, text = self._list.current()
        if text != self._written:
            self._shared.write(text, sequence=revoked.sequence)
            self._written = text
