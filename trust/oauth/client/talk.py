"""One exchange with an authorization server, bounded: what it sends is neither larger nor slower than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from trust.errors import AuthorizationServerUnavailable, HeaderMalformed, TokenRequestError
from trust.signing.jws import strict_json

FETCH_SECONDS = 10.0  # of one exchange with the authorization server, body included; a slow one is a down one
MAX_BODY_BYTES = 64 << 10  # metadata of large servers is a few kilobytes, a token answer less


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str  # in lower case, without parameters
    body: bytes = field(repr=False)  # it may hold a token


async def send(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    malformed: type[TokenRequestError],
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, object]]:
    """Status and JSON object of the answer.

    Raises:
        AuthorizationServerUnavailable: no answer in time, or one that says that the server is in trouble.
        TokenRequestError: `malformed`, where the answer is anything but one strict JSON object of a bounded size.
    """
    answer = await exchange(http, method, url, malformed, form, headers)
    return answer.status, json_of(answer, malformed)


async def exchange(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    malformed: type[TokenRequestError],
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """As `send`, for answers of which the status may be enough."""
    # `auth=None`: the client's own auth may be this very source. Redirects could hand the subject token to
    # another host; a compressed answer could be larger than anyone counted.
    sent = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
    body = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            http.stream(
                method, url, data=form, headers=sent, auth=None, follow_redirects=False, timeout=FETCH_SECONDS
            ) as response,
        ):
            status = response.status_code
            if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
                raise AuthorizationServerUnavailable("authorization server is in trouble", got=f"status {status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise malformed("answer is compressed", expected="what was asked for: no encoding")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise malformed("answer is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
    except (httpx.HTTPError, TimeoutError) as error:
        raise AuthorizationServerUnavailable(
            "authorization server cannot be reached", got=type(error).__name__, do=f"look at {url}"
        ) from error
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Answer(status, content_type, bytes(body))


def json_of(answer: Answer, malformed: type[TokenRequestError]) -> dict[str, object]:
    """The JSON object that an answer is; `malformed`, where it is none, or a redirect."""
    kind, status = answer.content_type, answer.status
    if kind != "application/json" or status < 200 or 300 <= status < 400:
        raise malformed("answer", got=f"status {status}, {kind or 'no type'}", expected="JSON")
    try:
        members = strict_json(answer.body)
    except HeaderMalformed:
        members = None
    if not isinstance(members, dict):
        raise malformed("answer", got="something else", expected="one strict JSON object")
    return members
