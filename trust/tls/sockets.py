"""TLS over a blocking socket, for threads: what `TrustContext.wrap_socket` returns."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from trust.errors import ConfigurationError, HandshakeFailed, TrustError
from trust.identity import PeerIdentity
from trust.tls.connection import RECORD_BYTES, Connection
from trust.tls.sslobject import SslObject, peer_certificate, raise_ssl

if TYPE_CHECKING:
    from trust.tls.engine import TrustContext

HANDSHAKE_SECONDS = 10.0  # in all, where the socket has no timeout or a longer one
LINGER_SECONDS = 1.0  # for a refused client to read why, before the socket is closed
WRITE_BYTES = 4 * RECORD_BYTES  # encrypted at once
_HEADER_BYTES = 5  # of a TLS record: type, version, length of what follows (RFC 8446 section 5.1)

TCP = socket.socket
T = TypeVar("T")


class TlsSocket(ssl.SSLSocket):
    """A connected TCP socket whose bytes are TLS, or a listening one whose connections are.

    One thread may read while another writes. The socket's timeout is that of each wait for the network. After one of a
    writer the connection can go on; how much of that data the peer gets is not known, as with any socket. Failures are
    `ssl.SSLError`, with our error as `__cause__`. Whether the peer is still trusted is asked at each read and write; a
    `reload()` that takes its trust away ends a read that waits, too.

    It is an `ssl.SSLSocket` to those who ask. Of that class nothing is used: each method that moves bytes is replaced,
    and what may come in a later Python finds an object in `_sslobj` that leads nowhere.

    Not supported: sockets that do not block (use asyncio), and whatever would pass bytes by TLS.

    Attributes:
        connection: the TLS connection itself; None of a listening socket.
    """

    def __init__(
        self,
        context: TrustContext,
        plain: socket.socket,
        connection: Connection | None,
        *,
        suppress_ragged_eofs: bool = True,
    ) -> None:
        timeout = plain.gettimeout()
        if timeout == 0:
            raise ConfigurationError("TLS socket does not block", expected="a blocking one", do="use asyncio or anyio")
        TCP.__init__(self, plain.family, plain.type, plain.proto, fileno=plain.detach())
        TCP.settimeout(self, timeout)
        self._context = context
        self.connection = connection
        self._sslobj = connection and SslObject(context, connection, ssl.MemoryBIO(), ssl.MemoryBIO())
        self.server_side = context.server_side
        self.server_hostname = None if connection is None else connection.server_name
        self._header, self._left = b"", 0  # of the record that is being received: how much is still to come
        self._ragged = suppress_ragged_eofs
        self._unsent = b""  # the rest of what was being sent when a wait ran out: without it nothing more decrypts
        self._reading = threading.RLock()  # is taken before `_writing`, and that before `_state`
        self._writing = threading.RLock()
        self._state = threading.RLock()  # a connection is used by one thread at a time; never held over the network
        if connection is not None:
            connection.on_distrust = self._cut

    # Connections.

    def accept(self) -> tuple[TlsSocket, Any]:
        """As `socket.accept`. The first read or write does the handshake, in the thread of the client."""
        plain, address = TCP.accept(self)
        return self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def do_handshake(self, block: bool = False) -> None:
        """Complete the handshake, in ten seconds at most.

        Raises:
            ssl.SSLError: it failed; the cause says why.
            TimeoutError: it took too long.
        """
        before = self.gettimeout()
        limit = HANDSHAKE_SECONDS if before is None else min(before, HANDSHAKE_SECONDS)
        deadline = time.monotonic() + limit
        with self._reading:
            try:
                while not self._tried(self._tls.handshake):
                    self._flush()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    TCP.settimeout(self, left)
                    self._fill()
                self._flush()
            except TimeoutError:
                self._tls.fail(HandshakeFailed("handshake took too long", expected=f"<= {limit:g} s"))
                raise TimeoutError("TLS handshake took too long") from self._tls.error
            except ssl.SSLError:
                if self._tls.server_side:
                    self._linger()
                raise
            finally:
                if self.fileno() >= 0:
                    TCP.settimeout(self, before)

    # Reading.

    def recv(self, size: int = RECORD_BYTES, flags: int = 0) -> bytes:
        _no(flags)
        self._ensure()
        if size == 0:
            return b""
        with self._reading:
            while True:
                data = self._tried(lambda: self._tls.read(size))
                self._flush(wait=False)  # reading may have made TLS answer
                if data is not None:
                    return data
                if not self._fill() and self._ragged and (self._tls.heard or self._tls.server_side):
                    self._tried(lambda: None)  # it may be we who ended it
                    return b""  # without close_notify; whether a message is whole is seen from its own framing

    def read(self, len: int = RECORD_BYTES, buffer: Any = None) -> Any:
        return self.recv(len) if buffer is None else self.recv_into(buffer, len)

    def recv_into(self, buffer: Any, size: int | None = None, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(min(size or len(view), len(view)), flags)
        view[: len(data)] = data
        return len(data)

    def pending(self) -> int:
        """At least this many bytes can be read without waiting."""
        with self._state:
            return self._tls.pending()

    # Writing.

    def sendall(self, data: Any, flags: int = 0) -> None:
        _no(flags)
        self._ensure()
        view = memoryview(data).cast("B")
        with self._writing:
            self._flush()  # what an earlier call could not send
            for start in range(0, len(view), WRITE_BYTES):
                piece = view[start : start + WRITE_BYTES]
                self._tried(lambda piece=piece: self._tls.write(piece))  # type: ignore[misc]
                self._flush()

    def send(self, data: Any, flags: int = 0) -> int:
        """All of it, as `sendall`."""
        self.sendall(data, flags)
        return memoryview(data).nbytes

    write = send

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    # The end.

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._say_goodbye()
        TCP.shutdown(self, how)

    def _real_close(self, *args: Any) -> None:  # what `close` does once no file of `makefile` is open any more
        with contextlib.suppress(OSError):
            TCP.settimeout(self, 0)
            self._say_goodbye()
        TCP._real_close(self, *args)  # type: ignore[attr-defined]

    def _say_goodbye(self) -> None:
        if self.connection is None or not self._writing.acquire(blocking=False):
            return
        try:
            with self._state:
                self.connection.close()
            with contextlib.suppress(OSError):
                self._flush()
        finally:
            self._writing.release()

    def _linger(self) -> None:
        """Wait for a refused client to go: closing a socket with unread bytes may overtake the alert."""
        with contextlib.suppress(OSError):
            TCP.shutdown(self, socket.SHUT_WR)
            until = time.monotonic() + LINGER_SECONDS
            while (left := until - time.monotonic()) > 0:
                TCP.settimeout(self, left)
                if not TCP.recv(self, RECORD_BYTES):
                    return

    def _cut(self, _: TrustError) -> None:
        with contextlib.suppress(OSError):
            TCP.shutdown(self, socket.SHUT_RDWR)

    # What `ssl.SSLSocket` knows.

    @property
    def peer(self) -> PeerIdentity | None:
        """The verified peer; None before the handshake."""
        return self._tls.peer

    def getpeercert(self, binary_form: bool = False) -> Any:
        return peer_certificate(self._tls.peer, binary_form)

    def version(self) -> str | None:
        return self._tls.version

    def cipher(self) -> tuple[str, str, int] | None:
        return self._tls.cipher

    def selected_alpn_protocol(self) -> str | None:
        return self._tls.alpn

    # Refused, because it would pass by TLS or not block.

    def settimeout(self, value: float | None) -> None:
        if value == 0:
            raise ConfigurationError("TLS socket must block", got="timeout 0", do="use asyncio or anyio")
        TCP.settimeout(self, value)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0)

    def _refused(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigurationError("not for a TLS socket", expected="recv, recv_into, send, sendall or makefile")

    recvfrom = recvfrom_into = recvmsg = recvmsg_into = sendto = sendmsg = dup = _refused
    connect = connect_ex = unwrap = _refused

    # Between TLS and the network.

    @property
    def _tls(self) -> Connection:
        if self.connection is None:
            raise OSError("socket listens; it is not connected")
        return self.connection

    def _ensure(self) -> None:
        if not self._tls.established:
            self.do_handshake()

    def _tried(self, step: Callable[[], T]) -> T:
        try:
            with self._state:
                self._tls.recheck()
                if self._tls.distrusted:
                    raise self._tls.distrusted
                return step()
        except TrustError as error:
            with contextlib.suppress(OSError):
                self._flush()  # the alert
            raise_ssl(error)

    def _fill(self) -> bool:
        """Take some of the next record from the network, and nothing behind it; False at the end.

        Programs ask the operating system (`select`) whether there is more to read: what we took ahead it does not know.
        """
        if self._left:
            data = TCP.recv(self, self._left)
            self._left -= len(data)
        else:
            data = TCP.recv(self, _HEADER_BYTES - len(self._header))
            self._header += data
            if len(self._header) == _HEADER_BYTES:
                self._left, self._header = int.from_bytes(self._header[3:]), b""
        with self._state:
            if data:
                self._tls.receive(data)
            else:
                self._tls.receive_eof()
        return bool(data)

    def _flush(self, wait: bool = True) -> None:
        """Send what TLS has to send. A reader does not wait for a writer that waits for the peer: that one sends it."""
        if not self._writing.acquire(blocking=wait):
            return
        try:
            while True:
                if not self._unsent:
                    with self._state:
                        self._unsent = self._tls.output()
                if not self._unsent:
                    return
                self._unsent = self._unsent[TCP.send(self, self._unsent) :]
        finally:
            self._writing.release()


def _no(flags: int) -> None:
    if flags:
        raise ValueError("a TLS socket has no flags")
