"""What requests and answers have in common: bounded bodies, refusals, and answers that caches may keep."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pki.errors import EnrolmentRefused, RequestMalformed, RequestTooLarge, TooManyAttempts, TooManyRenewals
from pki.service.est import CHALLENGES
from trust.errors import Fault, RequestTooSlow, TrustError

BODY_SECONDS = 10  # to receive a body; a slower sender only holds a connection
RETRY_SECONDS = 5  # what a client is told to wait while something that the service needs is away
SHELF_SECONDS = 1.0  # how old an answer may be that is the same for everybody
SHELF_SIZE = 32  # revocation lists, mostly, of up to 2.5 MB each: an issuer has one for each 65,536 certificates


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request, bounded in size by what it declares and again while it is read, and in time.

    Raises:
        RequestTooLarge, RequestTooSlow, RequestMalformed: by which of them it breaks.
    """
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise RequestMalformed("Content-Length", got=declared, expected="a whole number")
    if len(declared) > 19 or int(declared) > limit:
        raise _too_large(limit)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise RequestMalformed("client went away in the middle of its request")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestTooSlow("request body", expected=f"all of it within {BODY_SECONDS} s") from None
    return bytes(body)


def refusal(error: TrustError | None, request_id: str) -> Response:
    """What the wire learns: a status, an RFC error code, the name of the check, and an ID to find the reason by.

    The check is a word of a fixed list, and is told for what the other side got wrong; the reason itself, and whatever
    went wrong on this side, is for the audit trail and the log. None is a defect.
    """
    if error is None:
        return _refusal(500, {"error": "server_error", "request": request_id})
    if error.fault is Fault.SERVICE:
        content = {"error": "temporarily_unavailable", "request": request_id}
        return _refusal(503, content, {"Retry-After": str(RETRY_SECONDS)})
    content = {"error": error.code, "request": request_id}
    if error.status < 500:
        content["check"] = error.check
    headers = {}
    if isinstance(error, RequestTooLarge | RequestTooSlow):
        headers["Connection"] = "close"  # the rest of that body is not worth reading
    if isinstance(error, TooManyAttempts | TooManyRenewals):
        headers["Retry-After"] = str(RETRY_SECONDS)
    response = _refusal(error.status, content, headers)
    if isinstance(error, EnrolmentRefused) and error.status == 401:
        for challenge in CHALLENGES:
            response.headers.append("WWW-Authenticate", challenge)
    return response


def unavailable(content: Mapping[str, object]) -> Response:
    return _refusal(503, content, {"Retry-After": str(RETRY_SECONDS)})


def _refusal(status: int, content: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {**(headers or {}), "Cache-Control": "no-store"})


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge("request body", expected=f"at most {limit} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Something signed that is the same for everybody, with what caches need to know (RFC 9111)."""

    content: bytes = field(repr=False)
    media_type: str
    etag: str
    max_age: int  # seconds
    modified: datetime | None

    @classmethod
    def of(
        cls, content: bytes, media_type: str, *, max_age: timedelta, modified: datetime | None = None
    ) -> Publication:
        return cls(
            content=content,
            media_type=media_type,
            etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            max_age=max(0, int(max_age.total_seconds())),
            modified=modified,
        )

    def answer(self, request: Request) -> Response:
        """200 with the content, or 304 for a client that has it."""
        headers = {
            "ETag": self.etag,
            "Cache-Control": f"max-age={self.max_age}, public, no-transform, must-revalidate",  # RFC 5019 section 6.2
        }
        if self.modified is not None:
            headers["Last-Modified"] = format_datetime(self.modified, usegmt=True)
        # RFC 9110 section 13.1.2: a list of tags, compared weakly.
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


class Shelf:
    """Publications, each made at most once a second however many ask for it, and never twice at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args: clock: seconds, never going back."""
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Publication]] = OrderedDict()
        self._making: dict[str, asyncio.Task[Publication]] = {}

    async def get(self, name: str, make: Callable[[], Awaitable[Publication]]) -> Publication:
        """The publication of that name. What `make` raises is raised to all who wait, and is not kept."""
        kept = self._kept.get(name)
        if kept is not None and self._clock() - kept[0] < SHELF_SECONDS:
            return kept[1]
        task = self._making.get(name)
        if task is None:
            task = self._making[name] = asyncio.ensure_future(self._make(name, make))
            task.add_done_callback(lambda _: self._making.pop(name, None))
        return await asyncio.shield(task)  # whoever goes away must not take the others' answer along

    async def _make(self, name: str, make: Callable[[], Awaitable[Publication]]) -> Publication:
        asked = self._clock()  # before the work: what changes meanwhile is not hidden for longer
        publication = await make()
        self._kept[name] = asked, publication
        self._kept.move_to_end(name)
        while len(self._kept) > SHELF_SIZE:
            self._kept.popitem(last=False)
        return publication
