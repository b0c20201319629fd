"""TLS for asyncio servers: a protocol that does the handshake on a plain TCP transport, then runs another inside.

Why not `loop.create_server(ssl=...)`: that never sends the alert of a refused handshake by itself, cannot tell whom
it refused, lets a silent client stay for a minute, and has no way to end a connection whose peer lost its trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from trust.errors import HandshakeFailed, TooManyConnections, TrustError
from trust.identity import AgentID
from trust.tls.connection import RECORD_BYTES, Connection
from trust.tls.engine import Address, TrustContext
from trust.tls.inner import TlsTransport
from trust.tls.register import TRIFLE_SECONDS, Register


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a client may take, in seconds."""

    handshake: float = 10.0  # TCP accept to a verified peer; three round trips and one signature
    request_head: float = 10.0  # the first byte of a request (or the handshake) to the end of its header
    linger: float = 1.0  # after a refusal, for the alert to be read before the socket is closed
    grace: float = 30.0  # for requests in flight, once the peer's certificate expired or lost its trust
    close: float = 5.0  # to take what is still to be sent, before the connection is cut
    stall: float = 30.0  # without a byte more of a request body that is not whole, or of an answer being taken
    trust_check: float = 0.5  # between two looks whether the peers of the open connections are still trusted


PIECE_BYTES = 64 * 1024

# What is handed to an application that took long over what it was given before. A record of frames of a few bytes takes
# a WebSocket or HTTP/2 twenty milliseconds, in which the clock is not looked at.
SMALL_BYTES = 2048

# What TLS itself may say (answers to KeyUpdate, RFC 8446 section 4.6.3) to a client that takes nothing at present. Each
# has some 30 bytes, and an honest client asks for one in millions of records.
MAX_UNTAKEN_BYTES = 16 * 1024

# What somebody who speaks HTTP to this port without TLS says first, and is told.
_PLAIN_HTTP = re.compile(rb"[A-Z]{3,16} [/*a-z]")
_USE_TLS = b"this port speaks HTTPS only, with TLS 1.3 and client certificates\n"
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_USE_TLS), _USE_TLS)
)
# What a verified peer is told for whom there is no place. It may retry: a connection is free in a moment.
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
# The same in HTTP/2: SETTINGS, as a server begins, then GOAWAY. No request was looked at (RFC 9113 section 6.8), and
# there were too many connections (ENHANCE_YOUR_CALM).
_GO_AWAY = bytes.fromhex("000000 04 00 00000000000008 07 00 00000000 00000000 0000000b")


class TlsProtocol(asyncio.Protocol):
    """One accepted connection: handshake, then `application(protocol by ALPN)` over a `TlsTransport`.

    It stays in `live` until the application's protocol takes its own place there, so that a shutting down server
    reaches handshakes, too. In `register` it stays for as long as it is open.
    """

    def __init__(
        self,
        context: TrustContext,
        application: Callable[[str | None], asyncio.Protocol],
        *,
        live: set[Any],
        register: Register,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
    ) -> None:
        self._context = context
        self._application = application
        self._live = live
        self._register = register
        self._loop = loop
        self._deadlines = deadlines
        self._raw: asyncio.Transport
        self.tls: Connection
        self._timer: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None  # there once the peer is trusted no longer
        self._stall_timer: asyncio.TimerHandle | None = None  # there while the client takes less than we send
        self._untaken = 0  # bytes of TLS's own in the meantime
        self._plain = bytearray()  # written by the application in this turn of the loop
        self._spoke = False  # a connection without a byte is a probe of the port, not a handshake that failed
        self._ended = False  # nothing that still comes is looked at
        self._behind = False  # what came is not worked through: it goes on in the next turn of the loop
        self._piece = RECORD_BYTES  # what the application is given at once, at most
        self.app: asyncio.Protocol | None = None
        self.paused = False

    # From the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._live.add(self)
        self.tls = self._context.connection(address=_address(transport))
        self.tls.on_distrust = self._distrusted
        self._register.enter(self)
        self._after(self._deadlines.handshake, self._handshake_too_slow)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if not self._spoke:
            self._spoke = True
            self._register.spoke(self)
            if _PLAIN_HTTP.match(data):
                self.tls.fail(HandshakeFailed("client speaks HTTP without TLS", expected="https://"))
                self._raw.write(_BAD_REQUEST)
                self._refuse()
                return
        self.tls.receive(data)
        if self.tls.established or self._handshake():
            self.pump()

    def eof_received(self) -> bool:
        if not self._ended and self.app is not None:
            # Many clients never say close_notify. Whether a request is whole is seen from its own framing.
            self.app.eof_received()
            self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._spoke and not self._ended and not self.tls.established:
            self.tls.fail(HandshakeFailed("client went away in the handshake"))
        self._ended = True
        self._cancel()
        self._stop_waiting()
        if self._grace is not None:
            self._grace.cancel()
        self._live.discard(self)
        self._register.leave(self)
        if self.app is not None:
            app, self.app = self.app, None
            app.connection_lost(exc)
        self.tls.release()

    def pause_writing(self) -> None:
        self._untaken = 0
        self._expect_taking(self._deadlines.stall)
        if self.app is not None:
            self.app.pause_writing()

    def resume_writing(self) -> None:
        if not self._ended:
            self._stop_waiting()
        if self.app is not None:
            self.app.resume_writing()

    # The handshake.

    def _handshake(self) -> bool:
        try:
            done = self.tls.handshake()
        except TrustError:
            self._refuse()
            return False
        self.flush()
        if done:
            try:
                self._register.admit(self, self.peer)
            except TooManyConnections as error:
                self._turn_away(error)
                return False
            self._cancel()
            self._live.discard(self)
            self.app = self._application(self.tls.alpn)
            self.app.connection_made(TlsTransport(self, self._raw))
        return done

    def _refuse(self) -> None:
        """Send the alert, end our side, and give the client a moment to read why before the socket is closed.

        A socket that is closed with unread bytes is reset, and the reset may overtake the alert.
        """
        self._ended = True
        self._register.refuse(self)
        self.flush()
        self._after(self._deadlines.linger, self._raw.abort)
        self._write_eof()

    def _write_eof(self) -> None:
        if self._raw.can_write_eof():
            with contextlib.suppress(OSError):  # the client has reset the connection, which nobody has read yet
                self._raw.write_eof()

    def _turn_away(self, error: TooManyConnections) -> None:
        """Answer before there is a request: it will be read as the answer to the first."""
        self.tls.write(_GO_AWAY if self.tls.alpn == "h2" else _UNAVAILABLE)
        self.tls.close()
        self.tls.fail(error)
        self._refuse()

    def give_way(self, error: TrustError) -> None:
        """The place of this handshake is needed for another."""
        if not self._ended:
            self.tls.fail(error)
        self._ended = True
        self._raw.abort()

    def _handshake_too_slow(self) -> None:
        self.tls.fail(HandshakeFailed("handshake took too long", expected=f"<= {self._deadlines.handshake:g} s"))
        self._raw.abort()

    def shutdown(self) -> None:
        """The server stops: a handshake is no request in flight."""
        self._raw.abort()

    # Data.

    def flush(self) -> int:
        """Send what TLS has to send, and say how much that was."""
        data = self.tls.output()
        if data:
            self._raw.write(data)
        return len(data)

    def pump(self) -> None:
        """Hand decrypted data to the application for as long as it wants some, and there is time in this turn."""
        left = self._register.turns.left()
        if left > 0:
            self._work(left)
        else:
            self._fall_behind()

    def _work(self, seconds: float) -> None:
        began = now = self._loop.time()
        until = began + seconds
        size = 1
        while size and not self._ended:
            try:
                size = self._hand_over()
            except BaseException:  # a defect: the loop tells of it, and does not always end the connection
                self.abort()
                raise
            before, now = now, self._loop.time()
            if now - before > TRIFLE_SECONDS:
                self._piece = SMALL_BYTES
            elif size == self._piece < RECORD_BYTES:
                self._piece *= 2
            if self.tls.drained:
                break
            if size and now > until:
                self._fall_behind()
                break
        self._register.turns.spend(now - began)
        if self._ended:
            return
        sent = self.flush()  # reading may have made TLS answer
        if sent and self._stall_timer is not None:
            self._untaken += sent
            if self._untaken > MAX_UNTAKEN_BYTES:
                self.abort()

    def _hand_over(self) -> int:
        """One piece to the application, and how large it is; 0 where there is none, or the application wants none."""
        if self.paused:
            return 0
        try:
            data = self.tls.read(self._piece)
        except TrustError:
            self.flush()
            self.abort()
            return 0
        if data is None or self.app is None:
            return 0
        if not data:
            self.app.eof_received()
            self.close()
            return 0
        self.app.data_received(data)
        return len(data)

    def _fall_behind(self) -> None:
        if not (self._behind or self._ended):
            self._behind = True
            self._raw.pause_reading()
            self._register.turns.put_off(self)

    def catch_up(self) -> None:
        """Read at least once, however little time there is."""
        self._behind = False
        if not self._ended:
            self._work(self._register.turns.left())
            self.read_on()

    def read_on(self) -> None:
        """Take from the network again, unless there is enough to do."""
        if not (self._behind or self.paused or self._ended or self._raw.is_closing()):
            self._raw.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`; the small parts of one turn of the loop, such as a head and its body, in one record."""
        if self._ended or not data:
            return
        if len(self._plain) + len(data) > RECORD_BYTES:
            self._send_waiting()
            self._encrypt(data)
            return
        if not self._plain:
            self._loop.call_soon(self._send_waiting)
        self._plain += data

    def _send_waiting(self) -> None:
        if self._plain:
            plain, self._plain = self._plain, bytearray()
            self._encrypt(plain)

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended:
            return
        # In pieces: OpenSSL's buffer of what is to be sent keeps the largest size that it ever had.
        for start in range(0, len(data), PIECE_BYTES):
            try:
                self.tls.write(data[start : start + PIECE_BYTES])
            except TrustError:
                self.abort()
                return
            self.flush()

    def unsent(self) -> int:
        return len(self._plain) + self._raw.get_write_buffer_size()

    def close(self, *, whole: bool = True) -> None:
        """Send what is waiting and close_notify, then close. A client that does not take it is cut off.

        Args:
            whole: False where what was sent is not all that there was. It must not look so: there is no close_notify
                then (RFC 8446 section 6.1; RFC 9112 section 8).
        """
        self._send_waiting()
        if self._ended:
            return
        self._ended = True
        if whole:
            self.tls.close()
        self.flush()
        self._cancel()
        self._expect_taking(self._deadlines.close)
        if (self.tls.drained and self._raw.is_reading()) or not self._raw.can_write_eof():
            self._raw.close()
        else:
            # What is not read would reset the connection, and that may overtake what was sent: it is read, by nobody.
            self._write_eof()
            self._raw.resume_reading()

    def _expect_taking(self, seconds: float, before: int | None = None) -> None:
        """Cut the connection once the client has taken nothing for so long. `before`: what waited at the last look."""
        waiting = self._raw.get_write_buffer_size()
        if before is not None and waiting >= before:
            self._raw.abort()
            return
        self._stop_waiting()
        self._stall_timer = self._loop.call_later(seconds, self._expect_taking, seconds, waiting)

    def _stop_waiting(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def abort(self) -> None:
        """Nothing is read or written any more; the application hears of it by `connection_lost`."""
        self._ended = True
        self._raw.abort()

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def peer(self) -> AgentID | None:
        return None if self.tls.peer is None else self.tls.peer.agent_id

    # The end of trust.

    def _distrusted(self, _: TrustError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._wind_up)

    def check_trust(self) -> None:
        """Wind up when the peer's certificate has expired, by the wall clock, or when a source took its trust away."""
        self.tls.recheck()

    def _wind_up(self) -> None:
        """No further request; those in flight may finish within the grace."""
        if self.app is None or self._grace is not None:
            return
        # However slowly it takes what was handed over already.
        self._grace = self._loop.call_later(self._deadlines.grace, self._raw.abort)
        # Every protocol of uvicorn has `shutdown`: close when idle, or after the response that is under way.
        shutdown: Callable[[], None] = getattr(self.app, "shutdown", self.close)
        if not self._ended:
            shutdown()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._loop.call_later(seconds, action)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(transport: asyncio.BaseTransport) -> Address:
    name = transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if isinstance(name, (tuple, list)) and len(name) >= 2 else None
