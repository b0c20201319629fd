"""Answers that two readers could take for different answers, and the end of those that are sound."""

from __future__ import annotations

import httpx
import pytest

from trust.tls.answer import MAX_HEAD_BYTES, MAX_INTERIM_ANSWERS, Answer

OK = b"HTTP/1.1 200 OK\r\n"


def read(data: bytes, *, method: str = "GET", piece: int = 0, end: bool = False) -> Answer:
    answer = Answer(method)
    for start in range(0, len(data), piece or len(data) or 1):
        answer.feed(data[start : start + (piece or len(data))])
    if end:
        answer.end()
    return answer


SOUND: list[tuple[str, str, bytes, bytes, bool]] = [
    ("a length", "GET", OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
    ("no body", "GET", OK + b"content-length: 0\r\n\r\n", b"", True),
    ("chunks", "GET", OK + b"transfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde", True),
    ("a trailer", "GET", OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-late: 1\r\n\r\n", b"a", True),
    ("HEAD", "HEAD", OK + b"content-length: 3\r\n\r\n", b"", True),
    ("204", "DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    ("304 with the length of what it does not send", "GET", b"HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n", b"", True),
    ("no reason", "GET", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", b"", True),
    (
        "interim answers",
        "GET",
        b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 3 + OK + b"content-length: 1\r\n\r\na",
        b"a",
        True,
    ),
    ("an offer", "GET", OK + b"connection: upgrade\r\nupgrade: h2\r\ncontent-length: 1\r\n\r\na", b"a", True),
    ("the server ends", "GET", OK + b"connection: close\r\ncontent-length: 1\r\n\r\na", b"a", False),
    ("HTTP/1.0", "GET", b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", b"a", False),
    ("another answer behind it", "GET", OK + b"content-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n", b"a", False),
    ("garbage behind it", "GET", OK + b"content-length: 1\r\n\r\na\x00\x01", b"a", False),
    ("a body of HEAD", "HEAD", OK + b"content-length: 3\r\n\r\nabc", b"", False),
    ("HEAD of chunks", "HEAD", OK + b"transfer-encoding: chunked\r\n\r\n", b"", True),
    ("HEAD after an interim answer", "HEAD", b"HTTP/1.1 103 x\r\n\r\n" + OK + b"content-length: 3\r\n\r\n", b"", True),
    ("HEAD and the size of a chunk", "HEAD", OK + b"transfer-encoding: chunked\r\n\r\n5\r\n", b"", False),
    ("HEAD and the last chunk", "HEAD", OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"", False),
    ("HEAD and an empty line", "HEAD", OK + b"content-length: 0\r\n\r\n\r\n", b"", False),
    ("204 and the size of a chunk", "GET", b"HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n", b"", False),
    ("a body of 204", "GET", b"HTTP/1.1 204 x\r\ncontent-length: 3\r\n\r\nabc", b"", False),
]


@pytest.mark.parametrize("piece", [0, 1, 7])
@pytest.mark.parametrize(("case", "method", "data", "body", "again"), SOUND, ids=[c[0] for c in SOUND])
def test_sound_answers(case: str, method: str, data: bytes, body: bytes, again: bool, piece: int) -> None:
    answer = read(data, method=method, piece=piece)
    assert (answer.complete, b"".join(answer.parts), answer.again) == (True, body, again)
    assert (b"x-late", b"1") not in answer.headers and (b"link", b"x") not in answer.headers


LENGTH = b"content-length: 3\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
UNSOUND: list[tuple[str, bytes]] = [
    (
        "an interim answer with a body",
        b"HTTP/1.1 150 x\r\ncontent-length: 6\r\n\r\nFORGED" + OK + LENGTH + b"\r\nabc",
    ),
    (
        "an interim answer in chunks",
        b"HTTP/1.1 104 x\r\ntransfer-encoding: chunked\r\n\r\n6\r\nFORGED\r\n0\r\n\r\n"
        + OK
        + b"content-length: 1\r\n\r\na",
    ),
    ("a length and chunks", OK + LENGTH + CHUNKED + b"\r\n0\r\n\r\n"),
    ("chunks and a length", OK + CHUNKED + LENGTH + b"\r\n0\r\n\r\n"),
    ("two lengths", OK + LENGTH + b"content-length: 4\r\n\r\nabcd"),
    ("the same length twice", OK + LENGTH + LENGTH + b"\r\nabc"),
    ("a list of lengths", OK + b"content-length: 3, 3\r\n\r\nabc"),
    ("a negative length", OK + b"content-length: -3\r\n\r\nabc"),
    ("a length with a sign", OK + b"content-length: +3\r\n\r\nabc"),
    ("a length in hexadecimal", OK + b"content-length: 0x3\r\n\r\nabc"),
    ("a length beyond 64 bits", OK + b"content-length: 99999999999999999999999\r\n\r\nabc"),
    ("a coding besides chunked", OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("an unknown coding", OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("chunked twice", OK + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n"),
    ("chunks of HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
    ("a folded line", OK + b"x: a\r\n b\r\n" + LENGTH + b"\r\nabc"),
    ("a space before the colon", OK + b"content-length : 3\r\n\r\nabc"),
    ("a line without a colon", OK + b"content-length\r\n\r\nabc"),
    ("lines that end with LF", b"HTTP/1.1 200 OK\ncontent-length: 3\n\nabc"),
    ("one line that ends with LF", OK + b"x: a\n" + LENGTH + b"\r\nabc"),
    ("one line that ends with CR", OK + b"x: a\r" + LENGTH + b"\r\nabc"),
    ("NUL in a header", OK + b"x: a\0b\r\n" + LENGTH + b"\r\nabc"),
    ("no number of a chunk", OK + CHUNKED + b"\r\nx\r\n"),
    ("a chunk with a sign", OK + CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than it says", OK + CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n"),
    ("a chunk that ends with LF", OK + CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n"),
    ("a chunk beyond 64 bits", OK + CHUNKED + b"\r\nffffffffffffffffff\r\n"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\nabc"),
    ("HTTP/0.9", b"HTTP/0.9 200 OK\r\n" + LENGTH + b"\r\nabc"),
    ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("RTSP", b"RTSP/1.1 200 OK\r\n" + LENGTH + b"\r\nabc"),
    ("ICE", b"ICE/1.1 200 OK\r\n" + LENGTH + b"\r\nabc"),
    ("RTSP after an interim answer", b"HTTP/1.1 100 x\r\n\r\nRTSP/1.1 200 OK\r\n" + LENGTH + b"\r\nabc"),
    ("an interim answer of RTSP", b"RTSP/1.1 100 x\r\n\r\n" + OK + LENGTH + b"\r\nabc"),
    ("an empty line before it", b"\r\n" + OK + LENGTH + b"\r\nabc"),
    ("status 99", b"HTTP/1.1 099 x\r\n" + LENGTH + b"\r\nabc"),
    ("status 999", b"HTTP/1.1 999 x\r\n" + LENGTH + b"\r\nabc"),
    ("status of four digits", b"HTTP/1.1 2000 x\r\n" + LENGTH + b"\r\nabc"),
    ("another protocol asked for", b"HTTP/1.1 101 x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    ("interim answers without end", b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1)),
    ("a head without end", OK + b"x: y\r\n" * (MAX_HEAD_BYTES // 5)),
    ("a header without end", OK + b"x: " + b"y" * (MAX_HEAD_BYTES + 10)),
    ("a trailer without end", OK + CHUNKED + b"\r\n0\r\nx: " + b"y" * (MAX_HEAD_BYTES + 10)),
    ("a chunk's extension without end", OK + CHUNKED + b"\r\n3;x=" + b"y" * (MAX_HEAD_BYTES + 10)),
]


@pytest.mark.parametrize("piece", [0, 1000])
@pytest.mark.parametrize(("case", "data"), UNSOUND, ids=[c[0] for c in UNSOUND])
def test_unsound_answers(case: str, data: bytes, piece: int) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="not sound"):
        read(data, piece=piece)


CUT: list[tuple[str, bytes, str]] = [
    ("before it began", b"", "before it answered"),
    ("in the head", OK + b"content-le", "in the middle"),
    ("in the body", OK + LENGTH + b"\r\nab", "in the middle"),
    ("in a chunk", OK + CHUNKED + b"\r\n3\r\nab", "in the middle"),
    ("before the last chunk", OK + CHUNKED + b"\r\n3\r\nabc\r\n", "in the middle"),
    ("after an interim answer", b"HTTP/1.1 100 x\r\n\r\n", "in the middle"),
]


@pytest.mark.parametrize(("case", "data", "words"), CUT, ids=[c[0] for c in CUT])
def test_an_answer_that_is_cut(case: str, data: bytes, words: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=words):
        read(data, end=True)


def test_a_body_up_to_the_end_of_the_connection() -> None:
    answer = read(OK + b"\r\nabc")
    assert not answer.complete
    answer.end()
    assert (answer.complete, answer.parts, answer.again) == (True, [b"abc"], False)


def test_what_comes_after_the_end_costs_the_connection() -> None:
    answer = read(OK + LENGTH + b"\r\nabc")
    assert answer.again
    answer.feed(b"x")
    assert (answer.again, answer.parts) == (False, [b"abc"])


@pytest.mark.parametrize("piece", [0, 1])
def test_what_comes_behind_the_answer_of_a_proxy(piece: int) -> None:
    head = OK + b"content-length: 3\r\n\r\n"
    assert not read(head, method="CONNECT", piece=piece).behind
    answer = read(head + b"\x16", method="CONNECT", piece=piece)
    assert (answer.behind, answer.again) == (piece == 0, False)  # what comes in another piece is no part of it


def test_what_it_says() -> None:
    answer = read(b"HTTP/1.1 418 I'm a teapot\r\nX-A: 1\r\nx-a:  2 \r\n" + LENGTH + b"\r\nabc", piece=2)
    assert (answer.status, answer.reason, answer.version) == (418, b"I'm a teapot", b"1.1")
    assert answer.headers[:2] == [(b"X-A", b"1"), (b"x-a", b"2")]
