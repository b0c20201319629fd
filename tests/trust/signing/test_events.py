"""Event streams are read as the standard says, and written so that every reader reads them alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import httpx2
import pytest
from a2a.client.transports.http_helpers import parse_sse_stream
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.errors import ConfigurationError, StreamEventTooLarge, StreamMalformed
from trust.signing import events
from trust.signing.events import Comment, Event, EventReader, check_type, is_event_stream, write_event


def read(*chunks: bytes) -> list[Event | Comment]:
    reader = EventReader()
    return [item for chunk in chunks for item in reader.feed(chunk)]


# HTML Living Standard, section 9.2.6: what a stream means.
STANDARD = {
    "a line of data": (b"data: a\n\n", [Event(b"a")]),
    "CRLF": (b"data: a\r\n\r\n", [Event(b"a")]),
    "CR": (b"data: a\r\r", [Event(b"a")]),
    "lines of every kind": (b"data: a\rdata: b\ndata: c\r\n\n", [Event(b"a\nb\nc")]),
    "data over lines": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(b"YHOO\n+2\n10")]),
    "one space is taken away": (b"data:a\ndata:  b\n\n", [Event(b"a\n b")]),
    "a tab is not": (b"data:\ta\n\n", [Event(b"\ta")]),
    "empty lines of data": (b"data: a\ndata\ndata:\ndata: \n\n", [Event(b"a\n\n\n")]),
    "a colon in the value": (b"data: a:b\n\n", [Event(b"a:b")]),
    "a name": (b"event: add\ndata: 1\n\n", [Event(b"1", "add")]),
    "the last name counts, for one event": (
        b"event: a\nevent: b\ndata: 1\n\ndata: 2\n\n",
        [Event(b"1", "b"), Event(b"2")],
    ),
    "the name of an event without data": (b"event: a\n\ndata: 1\n\n", [Event(b"1")]),
    "the name that every event has": (b"event: message\ndata: 1\n\nevent\ndata: 2\n\n", [Event(b"1"), Event(b"2")]),
    "an id": (b"id: 1\ndata: a\n\ndata: b\n\n", [Event(b"a", None, "1"), Event(b"b")]),
    "an empty id": (b"id\ndata: a\n\n", [Event(b"a", None, "")]),
    "an id of its own is the next event's": (b"id: 1\n\ndata: a\n\n", [Event(b"a", None, "1")]),
    "an id with a zero byte": (b"id: \0\ndata: a\n\n", [Event(b"a")]),
    "comments": (b":\n: x\n:\xff\ndata: a\n\n", [Comment(b""), Comment(b" x"), Comment(b"\xff"), Event(b"a")]),
    "other fields": (b"retry: 7\nfoo: bar\ndat: x\n data: y\nDATA: z\ndata: a\n\n", [Event(b"a")]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
    "a second byte order mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "a byte order mark within": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a")]),
    "no data": (b"data\n\ndata:\n\n\n\n", []),
    "no end": (b"data: a\n\ndata: b\n", [Event(b"a")]),
    "line ends of other readers": ("data: a\u2028b\x85c\x0bd\n\n".encode(), [Event("a\u2028b\x85c\x0bd".encode())]),
}


@pytest.mark.parametrize("row", STANDARD)
def test_the_standard(row: str) -> None:
    stream, expected = STANDARD[row]
    assert read(stream) == expected
    assert read(*[bytes([byte]) for byte in stream]) == expected
    assert read(b"", *[part for byte in stream for part in (bytes([byte]), b"")]) == expected


@pytest.mark.parametrize("stream", [b"data: \xff\n\n", b"event: \xc3\n", b"id: \xed\xa0\x80\n"])
def test_a_stream_that_is_not_utf_8_is_refused(stream: bytes) -> None:
    with pytest.raises(StreamMalformed):
        read(stream)


def test_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 30)
    monkeypatch.setattr(events, "MAX_FIELD_BYTES", 20)
    assert read(b"data:" + b"x" * 25 + b"\n\n", b":" + b"x" * 19 + b"\n") == [Event(b"x" * 25), Comment(b"x" * 19)]
    assert read(b"data: 123456789\n\n" * 10, b"\n:" * 50) != []  # for each event, and for each line
    for stream in (
        b"data:" + b"x" * 26 + b"\n",
        b"data:" + b"x" * 26,
        b"data: 123456789\ndata: 123456789\n",
        b"data\n" * 7,
        b":" + b"x" * 20 + b"\n",
        b":" + b"x" * 20,
        b"event: " + b"x" * 14,
    ):
        with pytest.raises(StreamEventTooLarge):
            read(stream)
        with pytest.raises(StreamEventTooLarge):
            read(*[bytes([byte]) for byte in stream])


@pytest.mark.parametrize("end", ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"])
def test_nothing_is_written_that_a_reader_takes_for_the_end_of_a_line(end: str) -> None:
    for event in (
        Event(f"a{end}data: b".encode()),
        Event(f"a{end}".encode()),
        Event(b"", f"b{end}"),
        Event(b"", None, f"1{end}2"),
    ):
        with pytest.raises(StreamMalformed):
            write_event(event)


def test_a_name_or_an_id_is_one_line() -> None:
    with pytest.raises(StreamMalformed):
        write_event(Event(b"a", "b\ndata: c"))
    assert write_event(Event(b"a\n\nb", "c", "")) == b"event: c\nid: \ndata: a\ndata: \ndata: b\n\n"


@pytest.mark.parametrize(
    ("content_type", "stream", "read_alike"),
    [
        ("text/event-stream", True, True),
        ("Text/Event-Stream ; Charset=UTF-8", True, True),
        ('text/event-stream;charset="utf-8"', True, True),
        ("text/event-stream; charset=utf-16", True, False),
        ("text/event-stream; charset=utf-8; charset=utf-16", True, False),
        ("text/event-streams", True, False),
        ("application/json", False, False),
        ("", False, False),
    ],
)
def test_what_an_event_stream_is(content_type: str, stream: bool, read_alike: bool) -> None:
    assert is_event_stream(content_type) is stream
    if read_alike:
        check_type(content_type, ConfigurationError)
    else:
        with pytest.raises(ConfigurationError):
            check_type(content_type, ConfigurationError)


class _Chunks(httpx.AsyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        pass


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of what has nothing to wait for, without an event loop: it takes long to make one."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


TYPE = {"content-type": "text/event-stream"}


async def by_a2a(chunks: list[bytes]) -> list[tuple[str, str]]:
    """Name and data, as a2a-sdk's client reads them."""
    response = httpx.Response(200, headers=TYPE, stream=_Chunks(chunks))
    return [(name, data) async for name, data in parse_sse_stream(response) if data]


async def by_httpx2(chunks: list[bytes]) -> list[tuple[str, str, str]]:
    """Name, data and id, as httpx2 reads them. It takes an id or a name alone for an event."""
    request = httpx2.Request("GET", "https://billing.example")
    response = httpx2.Response(200, headers=TYPE, stream=_Chunks(chunks), request=request)
    return [(e.event, e.data, e.id) async for e in httpx2.EventSource(response) if e.data]


def ours(items: list[Event | Comment]) -> list[tuple[str, str, str]]:
    """The same of ours, where an id stays until the next."""
    last, found = "", []
    for item in items:
        if isinstance(item, Event):
            last = last if item.id is None else item.id
            found.append((item.name or "message", item.data.decode(), last))
    return found


FIELDS = ["data:", "data: ", "data", "event: ", "id: ", "retry: ", ":", ": ", "7", "{}", "error", "message", "x" * 40]
ENDS = ["\n", "\r", "\r\n", "\n\n", " ", "é", "\ufeff", "\u2028", "\x85", "\x0b", "\x00"]
PIECES = st.sampled_from([*FIELDS, *ENDS])
STREAMS = st.lists(PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode())


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(stream) + 1) for place in at})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@settings(max_examples=100, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 400), max_size=6))
def test_every_reader_reads_what_was_written_as_we_read_the_original(stream: bytes, at: list[int]) -> None:
    items = read(stream)
    assert read(*cut(stream, at)) == items
    # The original: where nothing is in it that readers differ about, they read the same of it.
    text = stream.decode()
    if not {"\u2028", "\x85", "\x0b", "\x00", "\ufeff"} & set(text):
        if not text.endswith("\r"):  # httpx2 takes a CR at the end of everything for two line ends
            assert now(by_httpx2(cut(stream, at))) == ours(items)
        if "\r" not in text:  # httpx makes two line ends of a CRLF that comes in two chunks
            found = [(name or "message", data) for name, data in now(by_a2a(cut(stream, at)))]
            assert found == [(name, data) for name, data, _ in ours(items)]
    # What is written: always, and however it is cut.
    try:
        written = b"".join(write_event(item) for item in items if isinstance(item, Event))
    except StreamMalformed:
        assert {"\u2028", "\x85", "\x0b"} & set(text)
        return
    again = read(*cut(written, at))
    assert again == [item for item in items if isinstance(item, Event)]
    assert now(by_a2a(cut(written, at))) == [(name, data) for name, data, _ in ours(items)]
    if "\x00" not in text:
        assert now(by_httpx2(cut(written, at))) == ours(items)
