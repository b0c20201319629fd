"""One document from an issuer, bounded: what it sends is neither larger nor of another kind than was asked for."""

from __future__ import annotations

from collections.abc import Collection

import httpx

JSON = ("application/json",)
JWKS = ("application/jwk-set+json", "application/json")  # RFC 7517 section 8.5


async def fetch(http: httpx.AsyncClient, url: str, kinds: Collection[str], max_bytes: int) -> bytes:
    """The body of a 200 answer to GET.

    Not bounded: the time; and the head of the answer is as long as the client lets it be.

    Args:
        kinds: the content types that are taken, in lower case.
        max_bytes: of the body.

    Raises:
        ValueError: another status, type or encoding, or a larger body.
        httpx.HTTPError, TrustError: as the client.
    """
    # `auth=None`: a client that adds access tokens to its requests must not do so here, where the token is not meant
    # for the receiver and fetching one may itself need these keys. Redirects would let the answer of one host name
    # another; a compressed answer could be larger than anyone counted.
    headers = {"accept": ", ".join(kinds), "accept-encoding": "identity"}
    async with http.stream("GET", url, headers=headers, auth=None, follow_redirects=False) as response:
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"status {response.status_code}")
        # A page that somebody could upload to the host, or an error page with status 200, is no key set.
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in kinds:
            raise ValueError(f"content type {kind[:64] or 'missing'}, expected {' or '.join(kinds)}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("compressed answer")
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise ValueError(f"more than {max_bytes} bytes")
        return bytes(body)
