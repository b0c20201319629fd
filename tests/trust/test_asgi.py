"""What an ASGI edge takes from its server, within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trust import asgi
from trust.asgi import body_of, check_declared_size, headers_of, origin_of, target_of, url_of, with_body
from trust.errors import RequestMalformed, RequestTooLarge, RequestTooSlow, TrustError


def receiving(*messages: dict[str, Any] | float) -> Any:
    """An ASGI `receive`; a number is a wait of so many seconds."""
    waiting = list(messages)

    async def receive() -> Any:
        while isinstance(message := waiting.pop(0), float):
            await asyncio.sleep(message)
        return message

    return receive


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts() -> None:
    assert asyncio.run(body_of(receiving(part(b"ab", True), {"type": "http.request"}), 4)) == b"ab"
    assert asyncio.run(body_of(receiving(part(b"ab", True), part(b"cd", False)), 4)) == b"abcd"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([part(b"abc", True), part(b"de", False)], RequestTooLarge),
        ([part(b"abc", True), {"type": "http.disconnect"}], RequestMalformed),
        ([part(b"abc", True), 60.0], RequestTooSlow),
    ],
    ids=["too large", "not whole", "too slow"],
)
def test_a_body_that_is_refused(messages: Any, expected: type[TrustError], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    with pytest.raises(TrustError) as caught:
        asyncio.run(body_of(receiving(*messages), 4))
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"5", RequestTooLarge), (b"9" * 5000, RequestTooLarge), (b"-1", RequestMalformed), (b"1,1", RequestMalformed)],
    ids=["one too many", "a number of a number", "negative", "two"],
)
def test_a_declared_size_that_is_refused(value: bytes, expected: type[TrustError]) -> None:
    check_declared_size(((b"content-length", b"4"), (b"other", value)), 4)
    with pytest.raises(TrustError) as caught:
        check_declared_size(((b"content-length", value),), 4)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"path": "/a b", "raw_path": b"/a%20b", "query_string": b""}, "/a%20b"),
        ({"path": "/\u00fc", "query_string": b"c=%2F?"}, "/%C3%BC?c=%2F?"),
    ],
)
def test_a_target(scope: dict[str, Any], expected: str) -> None:
    assert target_of(scope) == expected


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "/a", "raw_path": b"/a?b", "query_string": b""},
        {"path": "/a", "raw_path": b"/a#b", "query_string": b""},
        {"path": "/a", "raw_path": b"a", "query_string": b""},
        {"path": "/a", "query_string": b"b#c"},
        {"path": "/a", "query_string": b"b\xff"},
    ],
)
def test_a_target_that_is_refused(scope: dict[str, Any]) -> None:
    with pytest.raises(RequestMalformed):
        target_of(scope)


def test_the_application_gets_the_verified_bytes_and_then_what_comes() -> None:
    async def main() -> None:
        receive = with_body(b"verified", receiving({"type": "http.disconnect"}))
        assert await receive() == part(b"verified", False)
        assert await receive() == {"type": "http.disconnect"}

    asyncio.run(main())
    assert headers_of({"headers": [(b"X-A", b"B")]}) == ((b"x-a", b"B"),)


@pytest.mark.parametrize(
    ("hosts", "origin"),
    [
        ([b"h.example"], "https://h.example"),
        ([b"h.example:8443"], "https://h.example:8443"),
        ([b"[::1]:8443"], "https://[::1]:8443"),
        ([], ""),
        ([b"a.example", b"a.example"], ""),
        ([b"a.example/x"], ""),
        ([b"u@a.example"], ""),
        ([b'a.example"'], ""),
        ([b"a.example, b.example"], ""),
        ([b""], ""),
    ],
)
def test_the_origin_that_was_addressed(hosts: list[bytes], origin: str) -> None:
    headers = [(b"Host", host) for host in hosts]
    scope = {"scheme": "https", "headers": headers, "path": "/a", "query_string": b"b=c"}
    assert origin_of(scope) == origin
    if origin:
        assert url_of(scope) == f"{origin}/a?b=c"
        return
    with pytest.raises(RequestMalformed):
        url_of(scope)
