"""One bounded exchange. What is refused is tested with those who fetch: keys, denylists, the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from trust.oauth.fetch import JSON, fetch


class Body(httpx.AsyncByteStream):
    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("status", "headers", "refused"),
    [
        (200, {}, None),
        (404, {}, "status 404"),
        (200, {"content-type": "text/html"}, "content type text/html"),
        (200, {"content-encoding": "gzip"}, "compressed"),
        (200, {"content-length": "2"}, "more than 1 bytes"),
    ],
    ids=["good", "another status", "another type", "compressed", "too large"],
)
def test_a_connection_is_given_back_whatever_came(status: int, headers: dict[str, str], refused: str | None) -> None:
    async def work() -> None:
        answer = httpx.Response(status, headers={"content-type": JSON[0], **headers}, stream=body)
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer)) as http:
            max_bytes = 1 if refused and "more" in refused else 2
            if refused is None:
                assert await fetch(http, "https://auth.fleet.example/", JSON, max_bytes) == b"{}"
            else:
                with pytest.raises(ValueError, match=refused):
                    await fetch(http, "https://auth.fleet.example/", JSON, max_bytes)

    body = Body()
    asyncio.run(work())
    assert body.closed
