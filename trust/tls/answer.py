"""The answer to one HTTP/1.1 request, read by llhttp (httptools) in its strict mode, and stricter where it is not.

An answer that two readers could take for different answers is refused (RFC 9112 sections 2.2, 5.2 and 6.3): folded
lines, lines that end otherwise than with CRLF, a length that is given twice, a transfer coding besides chunked, the
status line of another protocol (llhttp reads those of RTSP and ICE, too).
"""

from __future__ import annotations

from typing import Any

import httptools
import httpx

MAX_HEAD_BYTES = 64 * 1024  # certificates and signatures in headers included; also what may stand between body bytes
MAX_INTERIM_ANSWERS = 16  # 1xx before an answer; none is of use here
_STATUS_LINE = b"HTTP/1."


class Answer:
    """Feed it what the server sends, until `complete`.

    Attributes:
        begun: whether any byte came.
        status, reason, version, headers: once `head` is True.
        parts: of the body; whoever takes them clears the list.
        complete: whether the answer is here to its end.
        again: once complete, whether the connection may carry another: nothing came behind it, and neither side ends.
        behind: of an answer without a body, whether something came behind its head.
    """

    def __init__(self, method: str) -> None:
        self.begun = self.head = self.complete = self.again = self.behind = False
        self.status = 0
        self.reason = b""
        self.version = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self._bodiless = method in ("HEAD", "CONNECT")  # a refusal of CONNECT may have one, which nobody reads
        self._heads: list[bytes] = []  # what came of interim answers and of the answer, to the end of its head at least
        self._interim = 0
        self._unfinished = 0  # bytes that made neither a head nor a body
        self._to_the_end = False  # the body ends with the connection
        self._fault = ""
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            httpx.RemoteProtocolError: this is no sound answer.
        """
        self.begun = True
        if self.complete:
            self.again = False
            return
        before = len(self.parts)
        reading = not self.head
        if reading:
            self._heads.append(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:  # after its end there is nothing to be misread, but the connection is of no use
                raise _unsound(self._fault or str(error)) from None
            self.again = False
        if reading and self.head:
            self._check_heads()
        if self._fault:
            raise _unsound(self._fault)
        self._unfinished = 0 if len(self.parts) > before else self._unfinished + len(data)
        if self.complete:
            self._parser = None  # it holds this object in turn: neither should wait for the garbage collector
        elif self._unfinished > MAX_HEAD_BYTES:
            raise _unsound(f"more than {MAX_HEAD_BYTES} bytes of head")

    def end(self) -> None:
        """The server has closed the connection.

        Raises:
            httpx.RemoteProtocolError: in the middle of the answer.
        """
        if not self.begun:
            raise httpx.RemoteProtocolError("server ended the connection before it answered")
        if not (self.head and self._to_the_end):
            raise httpx.RemoteProtocolError("server ended the connection in the middle of its answer")
        self.complete = True

    def _check_heads(self) -> None:
        """Look at what the parser does not tell: how each status line begins, and whether a head was the last word."""
        heads = b"".join(self._heads)
        self._heads.clear()
        if not (self._interim or self._bodiless):
            sound = heads.startswith(_STATUS_LINE)
        else:
            *each, behind = heads.split(b"\r\n\r\n", self._interim + 1)
            sound = all(head.startswith(_STATUS_LINE) for head in each)
            if self._bodiless and behind:
                self.behind, self.again = True, False
        if not sound:
            self._fault = self._fault or "the status line of another protocol"

    # Called by the parser. What is raised here would lose its words on the way, so a fault is noted.

    def on_message_begin(self) -> None:
        if self.complete:
            self.again = False

    def on_status(self, part: bytes) -> None:
        self.reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head:  # else a trailer, which nobody asked for
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.head:
            return
        self.status = self._parser.get_status_code()
        self.version = self._parser.get_http_version().encode()
        if not 100 <= self.status < 600 or self.version not in (b"1.0", b"1.1"):
            self._fault = f"status {self.status} of HTTP/{self.version.decode()}"
            return
        if self.status < 200:
            self._interim += 1
            # RFC 9110 section 8.6: it has no body, and what the parser would take for one is the next answer.
            if any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
                self._fault = f"status {self.status} with a body"
            if self.status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                self._fault = f"status {self.status} and no final answer"
            self.reason, self.headers = b"", []
            return
        self.head = True
        lengths = [name.lower() for name, _ in self.headers if name.lower() == b"content-length"]
        codings = [value.strip().lower() for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or lengths or self.version == b"1.0"):
            self._fault = "a body with two lengths or an unknown coding"
        self._bodiless = self._bodiless or self.status in (204, 304)
        self._to_the_end = not (lengths or codings or self._bodiless)
        if self._bodiless:
            self._completed()

    def on_body(self, part: bytes) -> None:
        if self.complete:
            self.again = False
        elif not self.head:
            self._fault = "a body before an answer"
        else:
            self.parts.append(part)

    def on_message_complete(self) -> None:
        if self.head and not self.complete:
            self._completed()

    def _completed(self) -> None:
        self.complete = True
        self.again = bool(self._parser.should_keep_alive())


def _unsound(why: str) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(f"answer is not sound HTTP/1.1: got {why}")
