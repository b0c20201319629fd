"""Publications, and the shelf that they stand on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request

from pki.errors import UnknownName
from pki.service.answers import SHELF_SECONDS, SHELF_SIZE, Publication, Shelf
from tests.pki.service.parts import run

THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def publication(content: bytes = b"signed") -> Publication:
    return Publication.of(content, "application/pkix-crl", max_age=timedelta(seconds=61.5), modified=THEN)


def asking(etags: str | None = None) -> Request:
    headers = [] if etags is None else [(b"if-none-match", etags.encode())]
    return Request({"type": "http", "method": "GET", "headers": headers})


def test_what_caches_are_told() -> None:
    answer = publication().answer(asking())
    assert (answer.status_code, answer.body) == (200, b"signed")
    assert answer.headers["content-type"] == "application/pkix-crl"
    assert answer.headers["cache-control"] == "max-age=61, public, no-transform, must-revalidate"
    assert answer.headers["last-modified"] == "Fri, 02 Jan 2026 03:04:05 GMT"
    assert answer.headers["etag"] != publication(b"another").answer(asking()).headers["etag"]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_a_client_that_has_it(form: str) -> None:
    etag = publication().etag
    answer = publication().answer(asking(form.format(etag)))
    assert (answer.status_code, answer.body, answer.headers["etag"]) == (304, b"", etag)


@pytest.mark.parametrize("form", ['"other"', "", "{}x"])
def test_a_client_that_has_another(form: str) -> None:
    assert publication().answer(asking(form.format(publication().etag))).status_code == 200


def test_what_has_ended_is_not_kept() -> None:
    ended = Publication.of(b"", "text/plain", max_age=-timedelta(seconds=5))
    assert ended.answer(asking()).headers["cache-control"].startswith("max-age=0,")
    assert "last-modified" not in ended.answer(asking()).headers


class Maker:
    def __init__(self) -> None:
        self.made = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> Publication:
        self.made += 1
        number = self.made
        await self.gate.wait()
        return publication(str(number).encode())


def test_made_once_for_all_who_ask_at_once_and_for_a_second() -> None:
    async def main() -> None:
        now = [100.0]
        shelf, maker = Shelf(lambda: now[0]), Maker()
        waiting = [asyncio.ensure_future(shelf.get("a", maker)) for _ in range(10)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the first who asked goes away; the others still get theirs
        await asyncio.sleep(0)
        maker.gate.set()
        assert {(await one).content for one in waiting[1:]} == {b"1"}
        now[0] += SHELF_SECONDS * 0.9
        assert (await shelf.get("a", maker)).content == b"1"
        assert (await shelf.get("b", maker)).content == b"2"
        now[0] += SHELF_SECONDS * 0.2
        assert (await shelf.get("a", maker)).content == b"3"

    run(main())


def test_a_failure_is_told_to_all_and_not_kept() -> None:
    async def main() -> None:
        shelf, maker = Shelf(lambda: 0.0), Maker()
        maker.gate.set()

        async def fail() -> Publication:
            await asyncio.sleep(0)
            raise UnknownName("list")

        found = await asyncio.gather(*(shelf.get("a", fail) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [UnknownName] * 3
        assert (await shelf.get("a", maker)).content == b"1"

    run(main())


def test_the_shelf_is_bounded() -> None:
    async def main() -> None:
        shelf, maker = Shelf(lambda: 0.0), Maker()
        maker.gate.set()
        for number in range(SHELF_SIZE + 1):
            await shelf.get(str(number), maker)
        assert len(shelf._kept) == SHELF_SIZE
        await shelf.get("0", maker)
        assert maker.made == SHELF_SIZE + 2
        await shelf.get(str(SHELF_SIZE), maker)
        assert maker.made == SHELF_SIZE + 2

    run(main())
