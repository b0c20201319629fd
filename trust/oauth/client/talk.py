"""What is asked of an authorization server, and what is taken for its answer: nothing large, slow or malformed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from trust.errors import (
    AuthorizationServerUnavailable,
    HeaderMalformed,
    MetadataRefused,
    TokenRequestError,
    TokenResponseRefused,
)
from trust.oauth.fetch import JSON, MAX_ANSWER_BYTES, Answer, answer_to
from trust.signing.jws import strict_json

FETCH_SECONDS = 10.0  # of one exchange with the authorization server, body included; a slow one is a down one


async def metadata(http: httpx.AsyncClient, url: str) -> tuple[int, dict[str, object]]:
    """Status and JSON object of what is at a URL.

    Raises:
        AuthorizationServerUnavailable: no answer in time, or one that says that the server is in trouble.
        MetadataRefused: anything but one strict JSON object of a bounded size.
    """
    request = http.build_request("GET", url, headers={"accept": JSON[0]}, timeout=FETCH_SECONDS)
    answer = await _answer(http, request, MetadataRefused)
    return answer.status, json_of(answer, MetadataRefused)


async def post(http: httpx.AsyncClient, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
    """What is answered to a form; its status may be enough.

    Raises:
        AuthorizationServerUnavailable: as `metadata`.
        TokenResponseRefused: it is too large, or compressed.
    """
    headers = {"accept": JSON[0], **headers}
    request = http.build_request("POST", url, data=form, headers=headers, timeout=FETCH_SECONDS)
    return await _answer(http, request, TokenResponseRefused)


async def _answer(http: httpx.AsyncClient, request: httpx.Request, malformed: type[TokenRequestError]) -> Answer:
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            return await answer_to(http, request, max_bytes=MAX_ANSWER_BYTES, check=_check_trouble)
    except ValueError as error:
        raise malformed("answer", got=error, expected=f"at most {MAX_ANSWER_BYTES} bytes, not compressed") from None
    except (httpx.HTTPError, TimeoutError) as error:
        # Of the connection alone: what is said of a request may show what is in it.
        reason = f": {error}" if isinstance(error, httpx.ConnectError) else ""
        raise AuthorizationServerUnavailable(
            "authorization server cannot be reached", got=type(error).__name__ + reason, do=f"look at {request.url}"
        ) from error


def _check_trouble(status: int, kind: str) -> None:
    if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
        raise AuthorizationServerUnavailable("authorization server is in trouble", got=f"status {status}")


def json_of(answer: Answer, malformed: type[TokenRequestError]) -> dict[str, object]:
    """The JSON object that an answer is; `malformed`, where it is none, or a redirect."""
    kind, status = answer.content_type, answer.status
    if kind not in JSON or status < 200 or 300 <= status < 400:
        raise malformed("answer", got=f"status {status}, {kind or 'no type'}", expected="JSON")
    try:
        members = strict_json(answer.body)
    except HeaderMalformed:
        members = None
    if not isinstance(members, dict):
        raise malformed("answer", got="something else", expected="one strict JSON object")
    return members
