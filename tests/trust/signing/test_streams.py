"""Signed event streams: what goes over the wire, what a reader gets of it, and what is never signed."""

from __future__ import annotations

import json
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from jwcrypto import jwk
from jwcrypto import jws as jwcrypto_jws

from tests.event_streams import (
    BILLING,
    EVENTS,
    FORGE,
    PLANNER,
    REQUEST,
    TYPE,
    VERIFIER,
    ask,
    event,
    frames,
    read,
    signer,
    verifier,
)
from tests.forge import HOUR, NOW
from trust.errors import (
    ResponseMismatch,
    StreamError,
    StreamEventTooLarge,
    StreamMalformed,
    StreamNotSigned,
    StreamTruncated,
)
from trust.extension import URI
from trust.signing import envelope
from trust.signing.evidence import verify_evidence
from trust.signing.exchange import RequestReference
from trust.signing.http import new_message_id
from trust.signing.streams import named_event

SID = "0123456789abcdefABCDEF"
FACTS: dict[str, Any] = {"credentials": BILLING, "chain": False, "now": NOW}


def test_what_is_signed_and_where_it_stands() -> None:
    wire = frames(stream=signer(stream_id=SID))
    got = read(wire)
    previous = None
    for number, (message, text) in enumerate(got):
        ended = number == len(EVENTS)
        claims = message.header["a2a"]
        assert message.header["cty"] == TYPE
        assert claims == {
            "v": 1,
            "iss": str(BILLING.agent_id),
            "aud": str(PLANNER.agent_id),
            "iat": int(NOW.timestamp()),
            "exp": int((NOW + timedelta(seconds=300)).timestamp()),
            "jti": f"{SID}-{number}",
            "st": 200,
            "req": {"jti": REQUEST.jti, "s256": REQUEST.digest},
            "sid": SID,
            "seq": number,
            **({"prev": previous} if previous else {}),
            **({"fin": True} if ended else {}),
        }
        previous = envelope.digest(message.jws)
        if ended:
            assert (message.payload, text) == (b"", b"")
            assert wire[number] == f": a2a-evt+jws {message.jws}\n\n".encode()
        else:
            assert message.payload == EVENTS[number].encode()
            assert text == event(EVENTS[number])
            signed = f'{{"metadata":{{"{URI}":"{message.jws}"}},{EVENTS[number][1:]}'
            assert wire[number] == event(signed)
            assert json.loads(signed) == {"metadata": {URI: message.jws}, **json.loads(EVENTS[number])}
    assert message.signer.agent_id == BILLING.agent_id


def test_another_library_verifies_an_event() -> None:
    """Take the member out of the text and put base64url of the rest between the dots: that is all that it takes."""
    text = frames()[1].decode().removeprefix("data: ").rstrip("\n")
    compact = json.loads(text)["metadata"][URI]
    payload = text.replace(f'"metadata":{{"{URI}":"{compact}"}},', "").encode()
    registry = {"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)}  # type: ignore[attr-defined]  # not in its stubs
    other = jwcrypto_jws.JWS(header_registry=registry)
    other.deserialize(compact)
    other.verify(jwk.JWK.from_pyca(BILLING.certificate.public_key()), detached_payload=payload)
    assert payload == EVENTS[1].encode()


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_chunks_mean_nothing(size: int) -> None:
    """Neither where the application makes them, nor where the network does."""
    sent = b"".join(event(text) for text in EVENTS)
    stream = signer()
    chunks = [sent[i : i + size] for i in range(0, len(sent), size)]
    wire = b"".join([*(stream.sign(chunk, **FACTS) for chunk in chunks), stream.end(**FACTS)])
    got = read([wire[i : i + size] for i in range(0, len(wire), size)])
    assert [text for _, text in got] == [*(event(text) for text in EVENTS), b""]


def test_a_stream_without_events_has_a_signed_end() -> None:
    stream = signer()
    got = read([stream.sign(b"", **FACTS), stream.end(**FACTS)])
    assert [(message.header["a2a"]["seq"], message.payload, text) for message, text in got] == [(0, b"", b"")]


@pytest.mark.parametrize(
    ("sent", "handed_on"),
    [
        (b"data: {}\r\n\r\n", b"data: {}\n\n"),
        (b"data: { \t}\n\n", b"data: { \t}\n\n"),
        (b"event: error\rid: 7\rdata: {}\r\r", b"event: error\nid: 7\ndata: {}\n\n"),
        (b"event: message\nid:\ndata: {}\n\n", b"id: \ndata: {}\n\n"),
        (b'data: {\ndata:\ndata:  "a":1}\n\n', b'data: {\ndata: \ndata:  "a":1}\n\n'),
        ('data: {"a":"\u2028\u2029\x85é"}\n\n'.encode(), 'data: {"a":"\\u2028\\u2029\\u0085é"}\n\n'.encode()),
        (b'data: {"metadata":{"a":1}}\n\n', b'data: {"metadata":{"a":1}}\n\n'),
        (b"data: {not JSON\n\n", b"data: {not JSON\n\n"),
        (b'retry: 9\nfoo: bar\ndata: {"a":1}\n\n', b'data: {"a":1}\n\n'),
        (b"\xef\xbb\xbfdata: {}\n\n", b"data: {}\n\n"),
    ],
    ids=["empty", "blank", "error", "message", "lines", "separators", "metadata", "text", "fields", "mark"],
)
def test_events_of_every_form(sent: bytes, handed_on: bytes) -> None:
    wire = frames(sent)
    assert [text for _, text in read(wire)] == [handed_on, b""]


def test_a_member_of_the_applications_own_is_what_other_readers_see() -> None:
    text = frames('{"metadata":{"a":1}}')[0].decode().removeprefix("data: ")
    assert json.loads(text) == {"metadata": {"a": 1}}


def test_keepalives_go_through_and_no_further() -> None:
    stream = signer()
    wire = [stream.sign(item, **FACTS) for item in (b": ping - 2026\r\n\r\n", event("{}"), b":\n", b"data: {")]
    assert wire[0] == wire[2] == b":\n\n"
    assert wire[3] == b""  # an event that never ends is none
    assert [text for _, text in read([*wire, b": something of a proxy\n\n", stream.end(**FACTS)])] == [event("{}"), b""]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"data: 1\n\n", StreamNotSigned),
        (b"data: [DONE]\n\n", StreamNotSigned),
        (b"data:  {}\n\n", StreamNotSigned),
        (b"data: \xff\n\n", StreamMalformed),
        (b'data: {"a":"\x0b"}\n\n', StreamMalformed),
        ("event: \u2028\ndata: {}\n\n".encode(), StreamMalformed),
        (b"x" * (1 << 15), StreamEventTooLarge),
    ],
    ids=["number", "word", "space", "utf-8", "control", "name", "size"],
)
def test_what_is_not_signed(sent: bytes, expected: type[StreamError]) -> None:
    """And nothing behind it: an application that catches the error cannot hide the gap."""
    stream = signer()
    stream.sign(event("{}"), **FACTS)
    with pytest.raises(StreamError) as caught:
        stream.sign(sent, **FACTS)
    assert type(caught.value) is expected
    with pytest.raises(StreamNotSigned, match="given up"):
        stream.sign(event("{}"), **FACTS)
    with pytest.raises(StreamNotSigned, match="given up"):
        stream.end(**FACTS)


def test_nothing_is_signed_behind_the_end() -> None:
    stream = signer()
    stream.end(**FACTS)
    for more in (lambda: stream.sign(b"", **FACTS), lambda: stream.end(**FACTS)):
        with pytest.raises(StreamNotSigned, match="given up"):
            more()


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream; charset=latin-1", ""])
def test_only_event_streams_are_signed_as_such(content_type: str) -> None:
    with pytest.raises(StreamNotSigned):
        signer(content_type=content_type)


def test_a_stream_in_answer_to_a_request_that_was_only_referred_to() -> None:
    """On a public path: the channel's agent is whom it is for, and nothing of the request was verified."""
    reference = RequestReference(requester=PLANNER.agent_id, jti=REQUEST.jti, digest=REQUEST.digest)
    assert len(read(frames(stream=signer(request=reference)))) == 5


def test_a_certificate_that_was_renewed_comes_along() -> None:
    stream, renewed = signer(), FORGE.leaf("/billing")
    wire = [
        stream.sign(event("{}"), **FACTS),
        stream.sign(event("{}"), credentials=renewed, chain=True, now=NOW),
        stream.end(credentials=renewed, chain=True, now=NOW),
    ]
    thumbprints = [message.signer.thumbprint for message, _ in read(wire)]  # type: ignore[union-attr]
    assert thumbprints == [BILLING.thumbprint, renewed.thumbprint, renewed.thumbprint]


def test_a_resubscription_names_the_last_event_that_was_read() -> None:
    by = verifier()
    with pytest.raises(StreamTruncated, match="got 0 events") as cut:
        by.finish()
    assert cut.value.last_event_id == ""
    for frame in frames(stream=signer(stream_id=SID))[:2]:
        list(by.verify(frame, now=NOW))
    with pytest.raises(StreamTruncated, match="got 2 events") as cut:
        by.finish()
    last = cut.value.last_event_id
    assert last == f"{SID}-1"
    # It is a new request, and so another stream.
    signed, received = ask()
    resumes = named_event([(b"host", b"x"), (b"Last-Event-ID", b" " + last.encode())])
    assert resumes == last
    wire = frames(stream=signer(request=received, resumes=resumes))
    got = [message.header["a2a"] for message, _ in read(wire, verifier(request=signed, resumes=resumes))]
    assert {claims["last"] for claims in got} == {last}
    assert SID not in {claims["sid"] for claims in got}
    # A server that was told of none, or of another: the reader knows what it asked for.
    for other in (None, f"{SID}-0"):
        with pytest.raises(ResponseMismatch):
            read(frames(stream=signer(request=received, resumes=other)), verifier(request=signed, resumes=resumes))


LONG = b"x" * 22
NAMES_NO_EVENT: list[bytes] = [b"", b"17", LONG, LONG[1:] + b"-1", LONG + b"-", b"\xff" * 22 + b"-1", LONG + b"-1\n"]


@pytest.mark.parametrize("values", [[], *([name] for name in NAMES_NO_EVENT), [LONG + b"-1"] * 2], ids=str)
def test_ids_of_the_application_name_no_stream(values: list[bytes]) -> None:
    assert named_event([(b"last-event-id", value) for value in values]) is None


def test_evidence_of_an_event() -> None:
    """A year later, with no network, it is still known who said it and in answer to what."""
    got = read(frames(b"event: error\nid: 7\n" + event("{}")))
    for message, _ in got:
        bundle = message.evidence(credentials=PLANNER, verifier=VERIFIER, jti=new_message_id())
        verified = verify_evidence(bundle, FORGE.bundles, at=NOW + 24 * 365 * HOUR)
        assert verified.message.payload == message.payload
        assert verified.message.header["a2a"]["req"] == {"jti": REQUEST.jti, "s256": REQUEST.digest}
        assert verified.receiver.agent_id == PLANNER.agent_id


def test_a_reader_holds_no_more_as_the_stream_goes_on() -> None:
    big = '{"text":"' + "x" * 20_000 + '"}'
    stream, by = signer(), verifier()

    def go_on(count: int) -> int:
        for _ in range(count):
            for message, _ in by.verify(stream.sign(event(big), **FACTS), now=NOW):
                assert message.payload == big.encode()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        go_on(5)
        first = go_on(5)
        assert go_on(100) - first < 5 * len(big)  # all hundred are a hundred times that
    finally:
        tracemalloc.stop()
