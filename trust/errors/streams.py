"""Check 4 for event streams."""

from __future__ import annotations

from trust.errors.base import Fault
from trust.errors.signatures import SignatureError


class StreamError(SignatureError):
    """An event stream, or one of its events."""

    check = "stream"


class StreamNotSigned(StreamError):
    """The application answers a signed request with a stream that cannot be signed; an unsigned one never goes out."""

    check = "stream.unsigned"
    fault = Fault.CALLER
    status = 501


class StreamMalformed(StreamError):
    """Not a text/event-stream in UTF-8 that every reader reads alike."""

    check = "stream.form"


class StreamEventTooLarge(StreamError):
    check = "stream.size"


class StreamEventLost(StreamError):
    """An event is there that comes after one that is not."""

    check = "stream.lost"


class StreamEventsReordered(StreamError):
    """As `StreamEventLost`, and the missing event came behind it."""

    check = "stream.reordered"


class StreamEventRepeated(StreamError):
    """An event has the number of an earlier one."""

    check = "stream.repeated"


class StreamEventInserted(StreamError):
    """An event in the stream is not of the stream."""

    check = "stream.inserted"


class StreamTruncated(StreamError):
    """The stream ended without its signed end: the connection failed, the server stopped, or somebody cut it."""

    check = "stream.truncated"

    def __init__(
        self, failed: str, *, last_event_id: str = "", got: object = None, expected: str = "", do: str = ""
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.last_event_id = last_event_id  # of the last verified event: the Last-Event-ID of a resubscription
