"""The interface of `ssl.SSLObject` over our connection, for event loops and libraries that bring their own BIOs."""

from __future__ import annotations

import functools
import ssl
from datetime import datetime
from typing import Any, NoReturn

from trust.errors import PeerError, TrustError
from trust.identity import PeerIdentity
from trust.tls.connection import Connection


class SslObject:
    """What `TrustContext.wrap_bio` returns. Failures are `ssl.SSLError`, with our error as `__cause__`.

    Whether the peer is still trusted (expiry, and what the sources say now) is asked at each read and write. There is
    no timer here: an idle connection stays open until one of them. Servers and clients of this package have one.

    Attributes:
        connection: the TLS connection itself; `error` and `distrusted` are there.
    """

    server_side: bool
    session = None
    session_reused = False

    def __init__(
        self, context: ssl.SSLContext, connection: Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        self.context = context
        self.connection = connection
        self.server_side = connection.server_side
        self.server_hostname = connection.server_name
        self._incoming = incoming
        self._outgoing = outgoing
        self._eof_told = False
        self._alert_flushed = False

    # What ssl objects do.

    def do_handshake(self) -> None:
        """Go on with the handshake.

        After a failure the first call says "want read" and only the next one raises: event loops send what is in the
        outgoing BIO when they are told to wait, and drop it when they see an exception. Otherwise the refused peer
        would never get the alert that tells it why (CPython issue 98078). A peer that then stays silent is cut off
        by the handshake timeout of the event loop.
        """
        try:
            done = self._advance(self.connection.handshake)
        except TrustError as error:
            pending = self._flush()
            if pending and not self._alert_flushed and not self._eof_told:
                self._alert_flushed = True
                raise _want_read() from None
            raise_ssl(error)
        self._flush()
        if not done:
            if self._eof_told:
                self._raise_eof()
            raise _want_read()

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        """As `ssl.SSLObject.read`: bytes, or into `buffer` and how many."""
        if buffer is not None:
            size = min(size, len(buffer)) if size else len(buffer)
        try:
            data = self._advance(functools.partial(self.connection.read, size))
        except TrustError as error:
            self._flush()
            if self._eof_told and self.connection.error is error and not isinstance(error, PeerError):
                self._raise_eof(error)
            raise_ssl(error)
        if data is None:
            self._flush()
            raise _want_read()
        if buffer is None:
            return data
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self.connection.write(data)
        except TrustError as error:
            raise_ssl(error)
        finally:
            self._flush()

    def pending(self) -> int:
        """Never 0 while OpenSSL holds a whole record: uvloop reads only as long as this or the BIO has something."""
        return self.connection.pending()

    def unwrap(self) -> None:
        """Say close_notify; "want read" until the peer has said it."""
        self._feed()
        done = self.connection.close() or self.connection.close()
        self._flush()
        if not done and not self._eof_told:
            raise _want_read()

    # What ssl objects know.

    @property
    def peer(self) -> PeerIdentity | None:
        """The verified peer."""
        return self.connection.peer

    @property
    def presented(self) -> str | None:
        """The thumbprint of the certificate that we presented."""
        credentials = self.connection.credentials
        return None if credentials is None else credentials.thumbprint

    @property
    def group(self) -> str:
        """The key exchange group, e.g. X25519MLKEM768."""
        return self.connection.group

    def getpeercert(self, binary_form: bool = False) -> Any:
        return peer_certificate(self.connection.peer, binary_form)

    def version(self) -> str | None:
        return self.connection.version

    def cipher(self) -> tuple[str, str, int] | None:
        return self.connection.cipher

    def compression(self) -> None:
        return None

    def shared_ciphers(self) -> None:
        return None

    def selected_alpn_protocol(self) -> str | None:
        return self.connection.alpn

    def selected_npn_protocol(self) -> None:
        return None

    def get_channel_binding(self, cb_type: str = "tls-unique") -> None:
        """TLS 1.3 has no tls-unique (RFC 8446 appendix C.5)."""
        return None

    # Bytes between the BIOs and the connection.

    def _advance(self, step: Any) -> Any:
        """Do `step`, feeding the connection for as long as it wants more and there is more."""
        while True:
            result = step()
            if result or result == b"" or not self._feed():
                return result

    def _feed(self) -> bool:
        if self._incoming.pending:
            self.connection.receive(self._incoming.read())
            return True
        if self._incoming.eof and not self._eof_told:
            self._eof_told = True
            self.connection.receive_eof()
            return True
        return False

    def _flush(self) -> bool:
        data = self.connection.output()
        if data and not self._outgoing.eof:
            self._outgoing.write(data)
        return bool(data)

    def _raise_eof(self, cause: TrustError | None = None) -> NoReturn:
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "UNEXPECTED_EOF_WHILE_READING") from cause


def peer_certificate(peer: PeerIdentity | None, binary_form: bool) -> Any:
    """The answer of `ssl.SSLObject.getpeercert`, as far as a SPIFFE certificate has one."""
    if peer is None:
        return None if binary_form else {}
    if binary_form:
        return peer.chain[0]
    serial = f"{peer.serial:X}"
    return {
        "serialNumber": serial.zfill(len(serial) + len(serial) % 2),  # whole bytes
        "notBefore": _time(peer.not_before),
        "notAfter": _time(peer.not_after),
        "subjectAltName": (("URI", str(peer.agent_id)),),
    }


# Whatever the language of the machine.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _time(moment: datetime) -> str:
    return f"{_MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"


def _want_read() -> ssl.SSLWantReadError:
    return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)")


def raise_ssl(error: TrustError) -> NoReturn:
    """Raise an error of ours as users of `ssl` expect them, with ours as its cause."""
    if isinstance(error, PeerError):
        raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, str(error)) from error
    raise ssl.SSLError(ssl.SSL_ERROR_SSL, str(error)) from error
