"""Attacks on signed event streams: one valid stream, one mutation a row, and the error that stops it.

The attacker holds the bytes on their way, as a proxy does, and has what the agents have signed at other times.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.event_streams import (
    BILLING,
    EVENTS,
    FORGE,
    PLANNER,
    REPORTS,
    REQUEST,
    ask,
    crafted,
    event,
    frames,
    read,
    signer,
    verifier,
)
from tests.forge import NOW
from trust.authorize import exactly
from trust.errors import (
    AudienceMismatch,
    CertificateRevoked,
    HeaderMalformed,
    MessageExpired,
    MessageFromTheFuture,
    PeerNotAllowed,
    ResponseMismatch,
    ResponseNotSigned,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    SignerUnknown,
    StreamEventInserted,
    StreamEventLost,
    StreamEventRepeated,
    StreamEventsReordered,
    StreamEventTooLarge,
    StreamMalformed,
    StreamTruncated,
    TrustError,
    TypeWrong,
    WrongExtendedKeyUsage,
)
from trust.peers import PeerVerifier
from trust.signing import events
from trust.signing.exchange import sign_response, verify_response
from trust.signing.streams import EVENT_TYPE

A, B, C, D, END = frames()  # of one stream, in their order
OTHER = frames()  # of the same request, another stream
ELSEWHERE = frames(stream=signer(request=ask()[1]))  # of another request
CLIENT_ONLY = FORGE.leaf("/billing", eku=[ExtendedKeyUsageOID.CLIENT_AUTH])
SID = "0123456789abcdefABCDEF"
UNSIGNED = event('{"jsonrpc":"2.0","id":"1","result":{}}')
SECOND = {"sid": SID, "seq": 1, "prev": "x" * 43}

WHOLE = [*(event(text) for text in EVENTS), b""]


def first(payload: str | None = "{}", *, jti: str = f"{SID}-0", **members: Any) -> bytes:
    """The first frame of a stream that the agent itself made, and made otherwise than it should."""
    return crafted(payload, {"sid": SID, "seq": 0, **members}, jti=jti)


def jws_of(frame: bytes) -> bytes:
    return frame.split(b'":"')[1].split(b'"')[0]


ROWS: dict[str, tuple[list[bytes], type[TrustError]]] = {
    # Loss
    "an event is lost": ([A, C, D, END], StreamEventLost),
    "the first event is lost": ([B, C, D, END], StreamEventLost),
    "the last event is lost": ([A, B, C, END], StreamEventLost),
    "all events are lost, the end came": ([END], StreamEventLost),
    "an event is lost, all in one chunk": ([A + C + D + END], StreamEventLost),
    "an event is replaced by a keepalive": ([A, b":\n\n", C, D, END], StreamEventLost),
    # Truncation
    "nothing came": ([], StreamTruncated),
    "keepalives only": ([b":\n\n" * 50], StreamTruncated),
    "the end is lost": ([A, B, C, D], StreamTruncated),
    "the end and an event are lost": ([A, B, C], StreamTruncated),
    "cut within an event": ([A, B[:200]], StreamTruncated),
    "cut within the end": ([A, B, C, D, END[:200]], StreamTruncated),
    "the end is not ended": ([A, B, C, D, END.rstrip(b"\n")], StreamTruncated),
    "a comment in the place of the end": ([A, B, C, D, b": " + EVENT_TYPE.encode() + b"\n\n"], StreamTruncated),
    # Reordering
    "two events change places": ([A + C + B + D + END], StreamEventsReordered),
    "the first two events change places": ([B + A + C + D + END], StreamEventsReordered),
    "an event comes late": ([A, C + D + b":\n\n" + B + END], StreamEventsReordered),
    "the end comes first": ([END + A + B + C + D], StreamEventsReordered),
    "an event comes later than can be known": ([A, C, B, D, END], StreamEventLost),
    "an event is missing, and another stream's comes behind": ([A + C + OTHER[1] + END], StreamEventLost),
    "an event is missing, and nonsense comes behind": ([A + C + b"data: \xff\n\n"], StreamEventLost),
    # Duplication
    "an event comes twice": ([A, B, B, C, D, END], StreamEventRepeated),
    "an early event comes again": ([A, B, C, A, D, END], StreamEventRepeated),
    "the stream begins again": ([A, B, A, B, C, D, END], StreamEventRepeated),
    # Insertion
    "an unsigned event": ([A, UNSIGNED, B, C, D, END], StreamEventInserted),
    "an event of another stream": ([A, OTHER[1], C, D, END], StreamEventInserted),
    "a later event of another stream": ([A, OTHER[2], C, D, END], StreamEventInserted),
    "the first event of another stream": ([A, B, OTHER[0], C, D, END], StreamEventInserted),
    "an event of another request": ([A, ELSEWHERE[1], C, D, END], StreamEventInserted),
    "the end of another stream": ([A, B, C, D, OTHER[-1]], StreamEventInserted),
    "an unsigned event behind the end": ([A, B, C, D, END, UNSIGNED], StreamEventInserted),
    "an event again behind the end": ([A, B, C, D, END, A], StreamEventInserted),
    "the end again": ([A, B, C, D, END, END], StreamEventInserted),
    "the right number behind another event": (
        [first(), crafted("{}", SECOND, jti=f"{SID}-1")],
        StreamEventInserted,
    ),
    "the right number behind no event": (
        [first(), crafted("{}", {"sid": SID, "seq": 1}, jti=f"{SID}-1")],
        StreamEventInserted,
    ),
    # Exchange
    "an unsigned stream": ([UNSIGNED], ResponseNotSigned),
    "a whole stream of another request": (ELSEWHERE, ResponseMismatch),
    "a certificate that is no server's": (frames(by=CLIENT_ONLY, chain=True), WrongExtendedKeyUsage),
    "another agent's stream": (frames(by=REPORTS, chain=True), ResponseMismatch),
    "a byte of an event": ([A.replace(b'"n":0', b'"n":1')], SignatureWrong),
    "a member more": ([A.replace(b'"},"jsonrpc"', b'"},"error":{},"jsonrpc"')], SignatureWrong),
    "two members metadata": ([A.replace(b'"},"jsonrpc"', b'"},"metadata":{},"jsonrpc"')], SignatureWrong),
    "a data line more": ([A.replace(b"\n\n", b"\ndata: {}\n\n")], SignatureWrong),
    "an event's name": ([b"event: error\n" + A], ResponseMismatch),
    "an event's id": ([b"id: 7\n" + A], ResponseMismatch),
    "an event's id, from a block without data": ([b"id: 7\n\n" + A], ResponseMismatch),
    "an event without its name": (frames(b"event: error\n" + event("{}"))[0].splitlines(True)[1:], ResponseMismatch),
    "an event's signature as the end": ([b": " + EVENT_TYPE.encode() + b" " + jws_of(A) + b"\n\n"], SignatureWrong),
    "the end's signature as an event": (
        [A, B, C, D, event('{"metadata":{"urn:a2a-trust:message-signature:v1":"' + END[14:-2].decode() + '"}}')],
        SignatureWrong,
    ),
    "the signature is not the first member": ([A.replace(b'{"metadata"', b'{"a":1,"metadata"')], ResponseNotSigned),
    "white space before the signature": ([A.replace(b'{"metadata"', b'{ "metadata"')], ResponseNotSigned),
    "a signature without an end": (
        [b'data: {"metadata":{"urn:a2a-trust:message-signature:v1":"x\n\n'],
        ResponseNotSigned,
    ),
    "no JWS": ([A.replace(jws_of(A), b"x")], SignatureMalformed),
    "a JWS outside ASCII": ([A.replace(jws_of(A), "é..x".encode())], SignatureMalformed),
    "an end outside ASCII": ([END.replace(b"..", b".\xff.")], SignatureMalformed),
    "a JWS without bounds": ([A.replace(jws_of(A), b"x" * 9000)], SignatureTooLarge),
    # A peer that signs what it should not
    "a request's kind": ([crafted("{}", {"sid": SID, "seq": 0}, jti=f"{SID}-0", typ="a2a-res+jws")], TypeWrong),
    "another receiver": (
        [crafted("{}", {"sid": SID, "seq": 0}, jti=f"{SID}-0", audience=REPORTS.agent_id)],
        AudienceMismatch,
    ),
    "an unknown member": ([first(x=1)], HeaderMalformed),
    "a number that is none": ([first(seq="0")], HeaderMalformed),
    "a number that is a truth": ([first(seq=True, jti=f"{SID}-1")], HeaderMalformed),
    "a number below zero": ([first(seq=-1, jti=f"{SID}--1")], HeaderMalformed),
    "no number": ([first(seq=None)], HeaderMalformed),
    "another stream's name": ([first(sid="1" * 22)], HeaderMalformed),
    "a stream's name that is none": ([first(sid=["x"])], HeaderMalformed),
    "a jti of its own": ([first(jti="1" * 22)], HeaderMalformed),
    "a predecessor of the first": ([first(prev="x" * 43)], StreamEventInserted),
    "another request": ([first(req={"jti": REQUEST.jti})], ResponseMismatch),
    "no request": ([first(req=None)], ResponseMismatch),
    "another status": ([first(st=403)], ResponseMismatch),
    "a status that is none": ([first(st=200.0)], ResponseMismatch),
    "a continuation that nobody asked for": ([first(last=f"{SID}-9")], ResponseMismatch),
    "an event that is an end, too": ([first(fin=True)], HeaderMalformed),
    "an end that is none": ([first(None, fin=False)], ResponseMismatch),
    "an end that does not say so": ([first(None)], ResponseMismatch),
    "a line end of some readers": ([first('{"a":"\u2028data: {}"}')], StreamMalformed),
    "a line end of some readers, in the name": ([b"event: a\x0bb\n" + first(evt="a\x0bb")], StreamMalformed),
    # Form and bounds
    "bytes that are not UTF-8": ([b"data: \xff\n\n"], StreamMalformed),
    "a name that is not UTF-8": ([b"event: \xff\n\n"], StreamMalformed),
    "a line without an end": ([b":" + b"x" * (events.MAX_FIELD_BYTES + 1)], StreamEventTooLarge),
    "a line beyond the bounds": ([b"x" * (events.MAX_FIELD_BYTES + 1) + b"\n"], StreamEventTooLarge),
    "a name in many chunks": ([b"event: ", *[b"x" * 1000] * 20], StreamEventTooLarge),
    "data in many chunks": ([b"data: ", *[b"x" * 10_000] * 7], StreamEventTooLarge),
    "data in many lines": ([(b"data: " + b"x" * 10_000 + b"\n") * 7], StreamEventTooLarge),
    "keepalives without end": ([A, *[b":\n\n" * 1000] * 30], StreamEventTooLarge),
    "empty lines without end": ([A, *[b"\n" * 1000] * 70], StreamEventTooLarge),
    "lines that begin like data, without end": ([A, *[b"datax\n" * 1000] * 20], StreamEventTooLarge),
    "events without data, without end": ([A, *[b"event: x\n\ndata:\n\n" * 1000] * 5], StreamEventTooLarge),
    "keepalives without end, behind the end": ([A, B, C, D, END, *[b":\n\n" * 1000] * 30], StreamEventTooLarge),
}


@pytest.mark.parametrize("row", ROWS)
def test_an_altered_stream_is_refused(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then a reader has a beginning of the very stream, and nothing else."""
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 1 << 16)
    monkeypatch.setattr(events, "MAX_IDLE_BYTES", 1 << 16)
    chunks, expected = ROWS[row]
    by, got = verifier(), []
    with pytest.raises(TrustError) as caught:
        for chunk in chunks:
            for _, text in by.verify(chunk, now=NOW):
                got.append(text)
        by.finish()
    assert type(caught.value) is expected
    assert got == WHOLE[: len(got)] or got == [event("{}")]
    if expected is not StreamTruncated:  # there is no going on behind it, and no end
        for again in (by.finish, lambda: list(by.verify(END, now=NOW))):
            with pytest.raises(expected) as same:
                again()
            assert same.value is caught.value


Changes = Callable[[], dict[str, Any]]
FACTS: dict[str, tuple[Changes, type[TrustError]]] = {
    "another status": (lambda: {"status": 202}, ResponseMismatch),
    "another type": (lambda: {"content_type": "text/event-stream; charset=utf-8"}, ResponseMismatch),
    "a type that readers decode otherwise": (
        lambda: {"content_type": "text/event-stream; charset=utf-16"},
        ResponseMismatch,
    ),
    "a type with more to it": (lambda: {"content_type": "text/event-stream; v=1"}, ResponseMismatch),
    "a stream that does not say what it goes on from": (lambda: {"resumes": f"{SID}-3"}, ResponseMismatch),
    "another receiver": (lambda: {"audience": REPORTS.agent_id}, AudienceMismatch),
    "a signer who may not answer": (lambda: {"signers": exactly(REPORTS.agent_id)}, PeerNotAllowed),
    "a signer without a certificate": (lambda: {"peer": None}, SignerUnknown),
    "a revoked signer": (
        lambda: {"verifier": PeerVerifier(FORGE.bundles, FORGE.crls(BILLING))},
        CertificateRevoked,
    ),
}


@pytest.mark.parametrize("row", FACTS)
def test_a_stream_in_other_surroundings_is_refused(row: str) -> None:
    changes, expected = FACTS[row]
    with pytest.raises(TrustError) as caught:
        read([A, B, C, D, END], verifier(**changes()))
    assert type(caught.value) is expected


def test_a_type_that_readers_decode_otherwise_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ResponseMismatch):
        verifier(content_type="text/event-stream; charset=utf-16")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(300, MessageExpired), (-11, MessageFromTheFuture)], ids=["late", "early"]
)
def test_an_event_that_was_held_back_is_refused(seconds: int, expected: type[TrustError]) -> None:
    by = verifier()
    read_in_time = [text for _, text in by.verify(A, now=NOW)]
    assert read_in_time == [event(EVENTS[0])]
    with pytest.raises(TrustError) as caught:
        list(by.verify(B, now=NOW + timedelta(seconds=seconds)))
    assert type(caught.value) is expected


def test_one_agent_makes_the_whole_stream() -> None:
    """Where several agents may answer for a URL, none of them goes on with another's stream."""
    signed, received = ask("https://billing.example")
    stream = signer(request=received)
    by_one = stream.sign(event("{}"), credentials=BILLING, chain=True, now=NOW)
    by_another = stream.sign(event("{}"), credentials=REPORTS, chain=True, now=NOW)
    both = exactly(BILLING.agent_id, REPORTS.agent_id)
    by = verifier(request=signed, signers=both, peer=None)
    assert len(list(by.verify(by_one, now=NOW))) == 1
    with pytest.raises(StreamEventInserted, match="another agent's"):
        list(by.verify(by_another, now=NOW))


def test_a_whole_answer_is_no_stream_and_no_stream_is_a_whole_answer() -> None:
    """The kinds are told apart by `typ`, whoever signed them."""
    whole = sign_response(
        BILLING, request=ask()[1], status=200, body=b"{}", now=NOW, jti=SID, content_type="text/event-stream"
    )
    with pytest.raises(TypeWrong):
        read([event('{"metadata":{"urn:a2a-trust:message-signature:v1":"' + whole + '"}}')])
    with pytest.raises(TypeWrong):
        verify_response(
            jws_of(A).decode(),
            request=REQUEST,
            status=200,
            body=EVENTS[0].encode(),
            audience=PLANNER.agent_id,
            signers=exactly(BILLING.agent_id),
            verifier=PeerVerifier(FORGE.bundles),
            peer=None,
            now=NOW,
            content_type="text/event-stream",
        )
