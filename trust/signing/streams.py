"""Signed event streams: each event of an answer of the type text/event-stream is signed, and names the one before it.

An event is a JSON object: for A2A's JSON-RPC binding the response object, an error's too, for its REST binding the
StreamResponse. Its detached JWS is the first thing in that outermost object, whatever is in it, and is put there and
taken out as text:

    data: {"jsonrpc":"2.0","id":1,"result":{...}}                                             the application's event
    data: {"metadata":{"urn:a2a-trust:message-signature:v1":"<JWS>"},"jsonrpc":"2.0","id":1,"result":{...}}

Signed are the bytes of the application's event (its data lines, joined by LF), as they were before; but U+0085, U+2028
and U+2029 are written as escapes first, because some readers take them for line ends. To verify with another library:
take that member and the comma behind it out of the text. A2A has no member of that name there, and its
readers pass over it; an object that has one of its own is read with its own, because the last of two counts.

The protected header is that of the wire format with the `typ` a2a-evt+jws, the answer's Content-Type as `cty`, and in
`a2a`: `st` and `req` as an answer has them, so that each event binds the status and the type in the head and the one
request; `sid`, 128 random bits for the stream; `seq`, from 0; `prev`, the SHA-256 of the JWS before (not in the first);
`evt` and `eid`, the event's own `event` and `id` where it has them; `last`, see below. `jti` is `sid`-`seq`.

The end is signed too, with `fin` true over an empty payload. For a reader it is a comment, and so no event:

    : a2a-evt+jws <JWS>

It is there also where there was no event, and nowhere else than at the end that the application itself has made: an
application that fails, a server that stops and a client that goes away leave a stream without an end.

A resubscription (SubscribeToTask) is a new request and so a new stream. Where that request has the header
Last-Event-ID with the `jti` of an event (`StreamTruncated.last_event_id`), each event of the new stream repeats it as
`last`: the server's word for what it was asked to go on from. It is NOT a word that nothing lies between: an A2A server
keeps no events, and begins with the task as it stands.

Every check is made for the time at which the event was received. An event lives for 300 s: what lies for longer on
its way, or in the connection, is refused. `retry` and the text of comments are not signed, and are not handed on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from trust.authorize import Authorizer
from trust.credentials import Credentials
from trust.errors import (
    HeaderMalformed,
    ResponseMismatch,
    ResponseNotSigned,
    StreamEventInserted,
    StreamEventLost,
    StreamEventRepeated,
    StreamEventsReordered,
    StreamNotSigned,
    StreamTruncated,
    TrustError,
)
from trust.extension import URI
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier
from trust.signing import envelope
from trust.signing.envelope import Binding, VerifiedMessage
from trust.signing.events import Comment, Event, EventReader, check_type, write_event
from trust.signing.exchange import RequestReference, SignedRequest, check_answerer, reference_to

EVENT_TYPE = "a2a-evt+jws"
LIFETIME = timedelta(seconds=envelope.MAX_LIFETIME_SECONDS)  # a reader may think about one event while others wait

_OPEN = f'{{"metadata":{{"{URI}":"'.encode()
_CLOSE = b'"}'
_END = f" {EVENT_TYPE} ".encode()
_KEEPALIVE = b":\n\n"
_EMPTY = re.compile(rb"\{[ \t\n]*\}")
# What some readers take for the end of a line, where alone JSON can have it: in a string.
_ESCAPED = {f"{end:c}".encode(): f"\\u{end:04x}".encode() for end in (0x85, 0x2028, 0x2029)}
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{22,100}-[0-9]{1,16}", re.ASCII)
_LEFT = frozenset({"req", "sid", "seq", "prev"})


def named_event(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one Last-Event-ID of a request, where it names an event of a signed stream and not something of others."""
    values = [value.strip(b" \t").decode("latin-1") for name, value in headers if name.lower() == b"last-event-id"]
    return values[0] if len(values) == 1 and _EVENT_ID.fullmatch(values[0]) else None


class StreamSigner:
    """Signs the events of one stream as the application sends them. It holds no more than one event.

    Args:
        request: the verified request that the stream answers.
        status, content_type: of the answer's head.
        stream_id: 128 random bits in base64url.
        resumes: `named_event` of the request.

    Raises:
        StreamNotSigned: the Content-Type is not that of a stream that everybody reads as UTF-8.
    """

    def __init__(
        self,
        *,
        request: VerifiedMessage | RequestReference,
        status: int,
        content_type: str,
        stream_id: str,
        resumes: str | None,
    ) -> None:
        check_type(content_type, StreamNotSigned)
        self._request = reference_to(request)
        self._content_type = content_type
        self._stream_id = stream_id
        self._head = {
            "st": status,
            "req": {"jti": self._request.jti, "s256": self._request.digest},
            "last": resumes,
            "sid": stream_id,
        }
        self._next = 0
        self._previous: str | None = None
        self._reader = EventReader()
        self._given_up = False

    def sign(self, chunk: bytes, *, credentials: Credentials, chain: bool, now: datetime) -> bytes:
        """What to send for a chunk of the application's: the signed events that end in it, and keepalives.

        After an error nothing more is signed: a later event must not stand where the refused one is missing.

        Raises:
            StreamNotSigned: an event whose data does not begin with `{` (NOT checked: that it is JSON), or one after an
                error.
            StreamMalformed, StreamEventTooLarge: as `EventReader` and `write_event`.
        """
        self._give_up()  # until it is known that there is no error
        signed = b"".join([self._signed(item, credentials, chain, now) for item in self._reader.feed(chunk)])
        self._given_up = False
        return signed

    def end(self, *, credentials: Credentials, chain: bool, now: datetime) -> bytes:
        """The signed end, behind everything else; nothing more is signed.

        Raises:
            StreamNotSigned: after an error.
        """
        self._give_up()
        jws = self._jws(b"", {"fin": True}, credentials, chain, now)
        return b":%b%b\n\n" % (_END, jws.encode())

    def _give_up(self) -> None:
        if self._given_up:
            raise StreamNotSigned("event stream has been given up", expected="nothing after an event that was refused")
        self._given_up = True

    def _signed(self, item: Event | Comment, credentials: Credentials, chain: bool, now: datetime) -> bytes:
        if isinstance(item, Comment):
            return _KEEPALIVE
        data = item.data
        if not data.isascii():
            for raw, escaped in _ESCAPED.items():
                data = data.replace(raw, escaped)
        if not data.startswith(b"{"):
            raise StreamNotSigned("event", got=data[:1], expected="a JSON object, where a signature has a place")
        jws = self._jws(data, {"evt": item.name, "eid": item.id}, credentials, chain, now)
        comma = b"" if _EMPTY.match(data) else b","
        signed = b"".join((_OPEN, jws.encode(), _CLOSE, comma, data[1:]))
        return write_event(Event(signed, item.name, item.id))

    def _jws(
        self, payload: bytes, members: dict[str, Any], credentials: Credentials, chain: bool, now: datetime
    ) -> str:
        members = {**self._head, "seq": self._next, "prev": self._previous, **members}
        jws = envelope.sign(
            payload,
            credentials=credentials,
            binding=Binding(
                typ=EVENT_TYPE, members=members, content_type=self._content_type, mismatch=ResponseMismatch
            ),
            audience=self._request.requester,
            now=now,
            jti=f"{self._stream_id}-{self._next}",
            lifetime=LIFETIME,
            chain=chain,
        )
        self._next, self._previous = self._next + 1, envelope.digest(jws)
        return jws


class StreamVerifier:
    """Verifies the events of one stream as they come. It holds no more than a chunk of the stream and two events.

    Args:
        request: what `sign_request` returned.
        status, content_type: of the answer's head, as received.
        resumes: `named_event` of the request.
        audience, signers, verifier, peer: as `verify_response`.

    Raises:
        ResponseMismatch: the Content-Type is not that of a stream that everybody reads as UTF-8.
    """

    def __init__(
        self,
        *,
        request: SignedRequest,
        status: int,
        content_type: str,
        resumes: str | None,
        audience: AgentID,
        signers: Authorizer,
        verifier: PeerVerifier,
        peer: PeerIdentity | None,
    ) -> None:
        check_type(content_type, ResponseMismatch)
        self._request = request
        self._content_type = content_type
        self._head = {"st": status, "last": resumes}
        self._audience = audience
        self._signers = signers
        self._verifier = verifier
        self._peer = peer
        self._reader = EventReader()
        self._last: VerifiedMessage | None = None
        self._failed: TrustError | None = None
        self.ended = False

    def verify(self, chunk: bytes, *, now: datetime) -> Iterator[tuple[VerifiedMessage, bytes]]:
        """The events that end in a chunk, each with its one text (`write_event`); the end with none.

        (0) to (8) as `envelope.verify`; (9) the signer as `verify_response`, and the same agent for all events
        (a) the stream, the number and the predecessor are those that must come next
        (b) nothing comes behind the end

        To be read to its end before the next chunk. What was returned before an error stays good; after it there is
        only that error again.

        Raises:
            ResponseNotSigned: the first event is not signed.
            ResponseMismatch: the stream belongs to another request, has another status or type, or is another agent's;
                or the event's name or id was changed.
            StreamEventLost: an event is missing; StreamEventsReordered: and it comes later in this chunk.
            StreamEventRepeated: an event that was there already.
            StreamEventInserted: an event that is not signed, of another stream, or behind the end.
            StreamMalformed, StreamEventTooLarge: no text/event-stream, or one beyond the bounds.
            SignatureError: its other leaf classes name the check that failed.
            PeerError: the certificate of the signer; PeerNotAllowed: it is not one of `signers`.
        """
        if self._failed is not None:
            raise self._failed
        try:
            yield from self._verified(chunk, now)
        except TrustError as error:
            self._failed = error
            raise

    def _verified(self, chunk: bytes, now: datetime) -> Iterator[tuple[VerifiedMessage, bytes]]:
        items = self._reader.feed(chunk)
        for item in items:
            if isinstance(item, Comment) and not item.text.startswith(_END):
                continue
            # (b)
            if self.ended:
                raise StreamEventInserted("event behind the end of the stream", expected="nothing")
            message = self._authentic(item, now)
            try:
                self._check_place(message)
            except StreamEventLost as error:
                if self._came_later(items, now):
                    raise StreamEventsReordered("events of the stream are not in their order", got=error) from None
                raise
            self._last = message
            self.ended = isinstance(item, Comment)
            text = b"" if isinstance(item, Comment) else write_event(item._replace(data=message.payload))
            yield message, text

    def finish(self) -> None:
        """To be asked when nothing more comes.

        Raises:
            StreamTruncated: the signed end was not there; after an error, that error again.
        """
        if self._failed is not None:
            raise self._failed
        if not self.ended:
            raise StreamTruncated(
                "event stream was cut",
                got=f"{self._expected} events",
                expected="its signed end",
                do="call again; for a task that goes on, subscribe to it",
                last_event_id=self._last.message_id if self._last else "",
            )

    @property
    def _expected(self) -> int:
        return self._last.header["a2a"]["seq"] + 1 if self._last else 0

    def _authentic(self, item: Event | Comment, now: datetime) -> VerifiedMessage:
        """Steps (0) to (9): who signed it, that it is this, and for this request's answer."""
        members: dict[str, Any]
        if isinstance(item, Comment):
            jws, payload, members = item.text.removeprefix(_END).decode("latin-1"), b"", {"fin": True}
        else:
            jws, payload = self._parts(item.data)
            members = {"evt": item.name, "eid": item.id}
        message = envelope.verify(
            jws,
            payload,
            binding=Binding(
                typ=EVENT_TYPE,
                members={**self._head, **members},
                content_type=self._content_type,
                mismatch=ResponseMismatch,
                left=_LEFT,
            ),
            audience=self._audience,
            verifier=self._verifier,
            peer=self._peer,
            usage="server",
            now=now,
        )
        check_answerer(message.signer.agent_id, self._request, self._signers)
        return message

    def _parts(self, data: bytes) -> tuple[str, bytes]:
        end = data.find(_CLOSE, len(_OPEN))
        if not data.startswith(_OPEN) or end < 0:
            if self._last:
                raise StreamEventInserted("event is not signed", expected="its signature first")
            raise ResponseNotSigned(
                "event stream is not signed",
                expected="a signature first in its first event",
                do="look at the server's log; to a server that signs no streams, call without a signer",
            )
        rest = end + len(_CLOSE)
        if data.startswith(b",", rest):
            rest += 1
        return data[len(_OPEN) : end].decode("latin-1"), b"{" + data[rest:]

    def _check_place(self, message: VerifiedMessage) -> None:
        """Step (a)."""
        claims, last, expected = message.header["a2a"], self._last, self._expected
        stream, number = claims.get("sid"), claims.get("seq")
        if number.__class__ is not int or number < 0 or claims["jti"] != f"{stream}-{number}":
            raise HeaderMalformed("a2a of an event", got=claims["jti"], expected="jti of the form sid-seq")
        other = ResponseMismatch if last is None else StreamEventInserted
        if claims.get("req") != {"jti": self._request.jti, "s256": self._request.digest}:
            raise other("event answers another request", expected="the request of this stream")
        if last is not None and stream != last.header["a2a"]["sid"]:
            raise StreamEventInserted("event of another stream", got=stream, expected=last.header["a2a"]["sid"])
        if number > expected:
            raise StreamEventLost("event of the stream is missing", got=f"number {number}", expected=str(expected))
        if number < expected:
            raise StreamEventRepeated("event of the stream came again", got=f"number {number}", expected=str(expected))
        if claims.get("prev") != (last.digest if last else None):
            raise StreamEventInserted("event does not follow the one before it", got=f"number {number}")
        if last is not None and message.signer.agent_id != last.signer.agent_id:
            raise StreamEventInserted(
                "event is another agent's", got=message.signer.agent_id, expected=str(last.signer.agent_id)
            )

    def _came_later(self, rest: Iterable[Event | Comment], now: datetime) -> bool:
        """Whether the missing event is among those behind it; only what has come already is looked at."""
        with contextlib.suppress(TrustError):
            for item in rest:
                if isinstance(item, Comment):
                    continue
                message = self._authentic(item, now)
                with contextlib.suppress(StreamEventLost):
                    self._check_place(message)
                    return True
        return False
