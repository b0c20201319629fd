"""Events of a text/event-stream (HTML Living Standard, section 9.2): read strictly and within bounds, written one way.

Readers of event streams differ: some take U+2028 for the end of a line, some a byte order mark for a part of the first
field, some an `id` without data for an event. What is written here is read alike by all: no such character, no mark, no
field that is not an event's, line feeds only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from trust.errors import StreamEventTooLarge, StreamMalformed, TrustError

MAX_EVENT_BYTES = 16 << 20  # the data lines of one event: a task with all that is in it, as an answer's body may be
MAX_IDLE_BYTES = 1 << 20  # lines without an event: a keepalive of 3 bytes each 15 s for 60 days
MAX_FIELD_BYTES = 16 << 10  # any other line: a comment with a signature and its certificates

_TYPE = re.compile(r'text/event-stream(?:[ \t]*;[ \t]*charset="?utf-8"?)?', re.ASCII | re.IGNORECASE)
# Besides LF, by Python's `str.splitlines`, which has the most: httpx and so a2a-sdk's client go by it.
_ASCII_LINE_ENDS = [end.encode() for end in "\r\v\f\x1c\x1d\x1e"]
_LINE_ENDS = [*_ASCII_LINE_ENDS, *(end.encode() for end in "\x85\u2028\u2029")]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event with data. Those without are no events: readers drop them."""

    data: bytes  # UTF-8; its lines, with LF between them
    name: str | None = None  # None is "message"
    id: str | None = None  # where the stream sets one with this event


class Comment(NamedTuple):
    """A line for nobody, such as a keepalive."""

    text: bytes


class EventReader:
    """Feed it the bytes of a stream as they come. It holds no more than one event.

    An event that is not ended by an empty line when the stream ends is none. The field `retry` is not looked at.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the beginning of one
        self._after_cr = False  # a line feed that comes next is of the same line end
        self._at_start = True
        self._data = bytearray()
        self._size = 0  # of the lines of data
        self._idle = 0  # of all other lines since the last event
        self._name: str | None = None
        self._id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Event | Comment]:
        """What ends in this chunk. To be read to its end before the next one.

        Raises:
            StreamMalformed: not UTF-8.
            StreamEventTooLarge: a line or an event beyond the bounds, or too many lines without an event.
        """
        if self._after_cr and chunk[:1] == b"\n":
            chunk, self._after_cr = chunk[1:], False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._after_cr = False
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            if self._at_start:
                line = line.removeprefix(_BYTE_ORDER_MARK)
                self._at_start = False
            found = self._take(line)
            if found is not None:
                yield found
        if rest:
            self._line += rest
            _check_size(self._line, self._size)

    def _take(self, line: bytes) -> Event | Comment | None:
        if not _is_data(line):
            self._rest(len(line) + 1)
        if not line:
            return self._dispatch()
        _check_size(line, self._size)
        if line.startswith(b":"):
            return Comment(line[1:])
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(line) + 1
            self._data += value
            self._data += b"\n"
        elif field == b"event":
            self._name = _text(value)
        elif field == b"id" and b"\0" not in value:
            self._id = _text(value)
        return None

    def _dispatch(self) -> Event | None:
        data, name, size = bytes(self._data[:-1]), self._name, self._size
        self._data.clear()
        self._size, self._name = 0, None
        if not data:
            self._rest(size)
            return None
        self._idle = 0
        if not data.isascii():
            _text(data)
        event = Event(data, None if name in ("", "message") else name, self._id)
        self._id = None
        return event

    def _rest(self, size: int) -> None:
        """Count what is no event: whoever sends only that keeps a reader busy, and no time limit of its ends it."""
        self._idle += size
        if self._idle > MAX_IDLE_BYTES:
            raise StreamEventTooLarge("lines without an event", expected=f"at most {MAX_IDLE_BYTES} bytes of them")


def write_event(event: Event) -> bytes:
    """The one form of an event.

    Raises:
        StreamMalformed: a reader of it could find a line end that others do not.
    """
    data = event.data
    for end in _ASCII_LINE_ENDS if data.isascii() else _LINE_ENDS:
        if end in data:
            raise StreamMalformed(
                "data of an event", got="a line end besides LF", expected="it escaped, as JSON allows"
            )
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    head = b""
    for field, value in (("event", event.name), ("id", event.id)):
        if value is not None:
            if len((value + ".").splitlines()) != 1:
                raise StreamMalformed(f"{field} of an event", got="a line end", expected="one line")
            head += f"{field}: {value}\n".encode()
    return b"".join((head, b"data: ", data, b"\n\n"))


def is_event_stream(content_type: str) -> bool:
    """Whether anybody reads the body as events."""
    return content_type.lower().startswith("text/event-stream")


def check_type(content_type: str, refusal: type[TrustError]) -> None:
    """Whether everybody reads the events as UTF-8, as the standard says; some go by the charset.

    Raises:
        refusal: the Content-Type has another charset, or another parameter.
    """
    if not _TYPE.fullmatch(content_type):
        raise refusal("Content-Type of an event stream", got=content_type, expected="text/event-stream in UTF-8")


def _is_data(line: bytes | bytearray) -> bool:
    return line == b"data" or line.startswith(b"data:")


def _check_size(line: bytes | bytearray, before: int) -> None:
    limit = MAX_EVENT_BYTES - before if _is_data(line) else MAX_FIELD_BYTES
    if len(line) > limit:
        raise StreamEventTooLarge(
            "event of a stream",
            expected=f"at most {MAX_EVENT_BYTES} bytes of data, and {MAX_FIELD_BYTES} in any other line",
        )


def _text(value: bytes | bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise StreamMalformed("event stream", got="bytes that are not UTF-8", expected="UTF-8") from None
