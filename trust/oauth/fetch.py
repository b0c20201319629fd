"""One exchange with a server, bounded: what it sends is neither larger nor of another kind than was asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import httpx

JSON = ("application/json",)
JWKS = ("application/jwk-set+json", "application/json")  # RFC 7517 section 8.5

MAX_ANSWER_BYTES = 64 << 10  # metadata of large servers is a few kilobytes, a token answer less


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str  # in lower case, without parameters
    body: bytes = field(repr=False)  # it may hold a token


async def fetch(http: httpx.AsyncClient, url: str, kinds: Collection[str], max_bytes: int) -> bytes:
    """The body of a 200 answer to GET, bounded as `answer_to` is.

    Args:
        kinds: the content types that are taken, in lower case.
        max_bytes: of the body.

    Raises:
        ValueError: another status, type or encoding, or a larger body.
        httpx.HTTPError, TrustError: as the client.
    """

    def check(status: int, kind: str) -> None:
        if status != httpx.codes.OK:
            raise ValueError(f"status {status}")
        # A page that somebody could upload to the host, or an error page with status 200, is no key set.
        if kind not in kinds:
            raise ValueError(f"content type {kind[:64] or 'missing'}, expected {' or '.join(kinds)}")

    request = http.build_request("GET", url, headers={"accept": ", ".join(kinds)})
    return (await answer_to(http, request, max_bytes=max_bytes, check=check)).body


async def answer_to(
    http: httpx.AsyncClient, request: httpx.Request, *, max_bytes: int, check: Callable[[int, str], None]
) -> Answer:
    """The answer to a request.

    Not bounded: the time; and the head of the answer is as long as the client lets it be.

    Args:
        max_bytes: of the body.
        check: raises where the status or the content type is such that the body is not to be read.

    Raises:
        ValueError: a compressed answer, or a larger one.
        httpx.HTTPError, TrustError: as the client.
    """
    # `auth=None`: a client that adds access tokens to its requests must not do so here, where the token is not meant
    # for the receiver and fetching one may itself need this answer. Redirects would let the answer of one host name
    # another, and hand that what was sent; a compressed answer could be larger than anyone counted.
    request.headers["accept-encoding"] = "identity"
    response = await http.send(request, stream=True, auth=None, follow_redirects=False)
    try:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        check(response.status_code, kind)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("compressed answer")
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise ValueError(f"more than {max_bytes} bytes")
        return Answer(response.status_code, kind, bytes(body))
    finally:
        await response.aclose()
