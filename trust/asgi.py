"""What an ASGI edge takes from its server: headers, a target and a body, within bounds, before anything is verified."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

from starlette.types import Message, Receive, Scope

from trust.errors import RequestMalformed, RequestTooLarge, RequestTooSlow

Headers = tuple[tuple[bytes, bytes], ...]

MAX_BODY_BYTES = 4 << 20  # an A2A message with a small file in it; raise it where agents exchange larger ones
BODY_SECONDS = 30  # to receive a whole body; a slower sender holds memory and a connection

# RFC 3986 section 3, without what parsers read differently: each part stays within itself.
_PATH = re.compile(rb"/[!-\"$->@-~]*")  # printable ASCII but "#" and "?"
_QUERY = re.compile(rb"[!-\"$-~]*")  # printable ASCII but "#"
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")  # RFC 9110 section 7.2, likewise


def headers_of(scope: Scope) -> Headers:
    """The headers, with their names in lower case."""
    return tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])


def target_of(scope: Scope) -> str:
    """Path and query of the request as the client spelled them.

    Raises:
        RequestMalformed: they are not what HTTP allows there.
    """
    path = scope.get("raw_path") or quote(scope["path"]).encode()
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(scope["query_string"]):
        raise RequestMalformed("request target", expected="a path and a query in ASCII, percent-encoded")
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    return (path + query).decode("ascii")


def url_of(scope: Scope) -> str:
    """The absolute URL that the client addressed, from parts that cannot run into one another.

    Raises:
        RequestMalformed: not one host, a target that HTTP does not allow, or a line break in the path.
    """
    if "\n" in scope["path"]:  # a route that ends in `$`, as Starlette's do, matches before a last line break, too
        raise RequestMalformed("line break in the path", expected="none")
    origin = origin_of(scope)
    if not origin:
        hosts = b", ".join(value for name, value in headers_of(scope) if name == b"host")
        raise RequestMalformed("Host header", got=hosts, expected="one host, and a port or none")
    return origin + target_of(scope)


def origin_of(scope: Scope) -> str:
    """The origin that the client addressed; empty where that is not one host."""
    hosts = [value for name, value in headers_of(scope) if name == b"host"]
    one = len(hosts) == 1 and _HOST.fullmatch(hosts[0])
    return f"{scope['scheme']}://{hosts[0].decode('ascii')}" if one else ""


def check_declared_size(headers: Headers, limit: int) -> None:
    """Refuse a body by what its sender says that it will be.

    Raises:
        RequestTooLarge: more than `limit` bytes. RequestMalformed: no number.
    """
    for value in (value for name, value in headers if name == b"content-length"):
        if not value.isdigit():
            raise RequestMalformed("Content-Length", got=value[:20], expected="a whole number")
        if len(value) > 19 or int(value) > limit:
            raise RequestTooLarge("request body", got=f"{value[:20]!r} bytes", expected=f"at most {limit}")


async def body_of(receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        RequestTooLarge: more than `limit` bytes. RequestTooSlow: not within 30 s. RequestMalformed: not all of it came.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestMalformed("peer went away in the middle of its request")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise RequestTooLarge("request body", expected=f"at most {limit} bytes")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTooSlow("request body", expected=f"all of it within {BODY_SECONDS} seconds") from None


def with_body(body: bytes, receive: Receive) -> Receive:
    """An ASGI `receive` that gives the application exactly the verified bytes, then what the server says next."""
    sent = False

    async def receive_verified() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_verified
