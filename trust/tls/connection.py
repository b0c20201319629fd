"""One TLS 1.3 connection as a state machine without sockets: bytes in, bytes out, and a verified peer.

Whose certificate is acceptable is decided inside the handshake, by a `judge` that gets the chain the peer presented.
OpenSSL trusts nothing here (its store is empty): it checks that the peer holds the key of its certificate, and it
tells a refused peer why, with a TLS alert. The judge is the only one that can say yes.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

# The bindings that pyOpenSSL itself is written with.
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from trust.certificates import UNREADABLE
from trust.clock import Clock, shown, wall_clock
from trust.errors import (
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    NotPostQuantum,
    PeerError,
    TransportError,
    TrustError,
    UntrustedChain,
)
from trust.identity import AgentID, PeerIdentity
from trust.tls.snapshot import POST_QUANTUM_GROUPS, Snapshot, reason_of, running

RECORD_BYTES = 16 * 1024  # RFC 8446 section 5.1: no record holds more plaintext
_BUFFER_BYTES = 4 * RECORD_BYTES  # what one call moves out of OpenSSL

# What OpenSSL gets of the ciphertext at a time. It works through all that it has, and most slowly through messages of
# TLS itself: a KeyUpdate (RFC 8446 section 4.6.3) has 27 bytes and costs as much as a small request.
SLICE_BYTES = 16 * 1024

# Ciphertext in a row that holds no data, before the connection ends: one whole record, which is not data before its
# last byte, and nearly three hundred KeyUpdates. A server may send tickets besides; some hold our whole chain.
MAX_BARREN_BYTES = 24 * 1024
MAX_BARREN_BYTES_OF_A_SERVER = 64 * 1024

Judge = Callable[[list[bytes]], PeerIdentity]


class _Thread(threading.local):
    """What one thread uses for one connection after the other."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []  # at most one, and none while somebody reads into it
        self.start = _ffi.new("char **")  # of what a BIO holds; only how much that is matters


_thread = _Thread()


def _taken() -> Any:
    """A buffer for one call alone: a signal handler or a finalizer may use another connection in the middle of it."""
    return _thread.buffers.pop() if _thread.buffers else _ffi.new(f"char[{_BUFFER_BYTES}]")


def _given_back(buffer: Any) -> None:
    if not _thread.buffers:
        _thread.buffers.append(buffer)


class Connection:
    """One end of a TLS connection.

    Feed it with `receive`, send what `output` returns, and drive `handshake` until it returns True. It is used by
    one thread at a time.

    Each step begins by clearing this thread's OpenSSL error queue: what another connection or a failed signature
    check left there would make OpenSSL report a sound connection as broken (SSL_get_error(3)).

    Attributes:
        peer: the verified peer; None before the handshake, and for a client without a certificate where certificates
            are optional.
        error: why the connection failed; whatever is tried on it afterwards raises it again.
        distrusted: set when the peer lost its trust after the handshake.
        credentials: what we presented; None for a client that presents no certificate.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        judge: Judge,
        *,
        server_name: str | bytes | None = None,
        alpn: list[str] | None = None,
        address: str = "",
        on_failure: Callable[[TrustError], None] = lambda _: None,
        clock: Clock = wall_clock,
    ) -> None:
        self.peer: PeerIdentity | None = None
        self.error: TrustError | None = None
        self.distrusted: TrustError | None = None
        self.on_distrust: Callable[[TrustError], None] | None = None
        self.established = False
        self.heard = False  # whether any application data came; a refusal in TLS 1.3 comes before the first of it
        self.drained = True  # whether OpenSSL has no complete record left
        self.server_side = snapshot.server_side
        self.server_name = server_name.decode() if isinstance(server_name, bytes) else server_name
        self.credentials = snapshot.credentials
        self._judge = judge
        self._required = snapshot.certificate_required
        self._post_quantum = snapshot.post_quantum
        self._address = address or self.server_name or ""
        self._leaf = b""  # what the peer presented, right or wrong
        self._on_failure = on_failure
        self._clock = clock
        self.judged = False  # whether the judge was asked about the chain that the peer presented
        self._verdict: TrustError | None = None  # what the judge said against the peer
        self._eof = False
        self._waiting = bytearray()  # ciphertext that OpenSSL has not got yet
        self._barren = 0  # bytes that OpenSSL got since it had data for us
        self._may_be_barren = MAX_BARREN_BYTES if snapshot.server_side else MAX_BARREN_BYTES_OF_A_SERVER
        self.spoken = [name.encode() for name in alpn or ["http/1.1"]]  # ALPN of a server, the first choice first
        self._ssl: Any = SSL.Connection(snapshot.openssl, None)  # until `release`
        if snapshot.server_side:
            self._ssl.set_accept_state()
        else:
            self._ssl.set_connect_state()
            name = _sni(self.server_name)
            if name:
                self._ssl.set_tlsext_host_name(name)
            if alpn:
                self._ssl.set_alpn_protos([p.encode() for p in alpn])

    # Ciphertext.

    def receive(self, data: bytes) -> None:
        """Take ciphertext that came from the peer."""
        if not data:
            return
        if self.drained and len(data) <= SLICE_BYTES:
            self._give(data)
        else:
            self._waiting += data
        self.drained = False

    def receive_eof(self) -> None:
        """The peer will send no more."""
        self._eof = True
        if not self._waiting:
            self._ssl.bio_shutdown()
        self.drained = False

    def _feed(self) -> bool:
        """Give OpenSSL the next slice of what waits; False when nothing does."""
        if not self._waiting:
            return False
        self._give(self._waiting[:SLICE_BYTES])
        del self._waiting[:SLICE_BYTES]
        if self._eof and not self._waiting:
            self._ssl.bio_shutdown()
        return True

    def _give(self, data: bytes | bytearray) -> None:
        # A BIO in memory takes all of it. If it could not, what comes after the gap would not decrypt.
        _lib.BIO_write(self._ssl._into_ssl, _ffi.from_buffer(data), len(data))
        self._barren += len(data)

    def output(self) -> bytes:
        """Ciphertext to send to the peer. It may hold an alert after a failure, so it is sent then, too."""
        buffer = _taken()
        try:
            size = _lib.BIO_read(self._ssl._from_ssl, buffer, _BUFFER_BYTES)
            if size < _BUFFER_BYTES:
                return bytes(_ffi.buffer(buffer, size)) if size > 0 else b""
            parts = []
            while size > 0:
                parts.append(bytes(_ffi.buffer(buffer, size)))
                size = _lib.BIO_read(self._ssl._from_ssl, buffer, _BUFFER_BYTES)
            return b"".join(parts)
        finally:
            _given_back(buffer)

    # The handshake.

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is complete and the peer verified, False when more must come.

        Raises:
            PeerError: (the leaf that says why) the peer is not acceptable.
            HandshakeRefused: the peer refused us.
            HandshakeFailed: no TLS 1.3, no TLS at all, or the peer went away.
        """
        if self.error:
            raise self.error
        if self.established:
            return True
        while not self._shake_hands():
            if not self._feed():
                self.drained = True
                return False
        self.assert_identified()
        self.established, self._barren = True, 0
        return True

    def _shake_hands(self) -> bool:
        before, running.connection = running.connection, self  # a signal handler may be in a handshake of its own
        _lib.ERR_clear_error()
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise self.fail(self._verdict or self._explain(error)) from None
        finally:
            running.connection = before
        return True

    def fail(self, error: TrustError) -> TrustError:
        """Give the connection up because of `error`; returns it. The first error stays, and is told once."""
        if self.error is None:
            error.of_connection(address=self._address, claimed=_claimed(self._leaf))
            self.error, self.peer = error, None
            self._on_failure(error)
        return self.error

    def distrust(self, error: TrustError) -> None:
        """The peer may no longer connect. Without a hook the connection is dead at once. Any thread may call this."""
        error.of_connection(address=self._address, claimed=_claimed(self._leaf))
        self.distrusted = error
        if self.on_distrust:
            self.on_distrust(error)

    def verify_chain(self, chain: list[bytes]) -> TrustError | None:
        """What the judge says against a presented chain; None accepts it. Runs inside OpenSSL's handshake."""
        self.judged, self._leaf = True, chain[0] if chain else b""
        try:
            self.peer = self._judge(chain)
        except Exception as error:  # a defect or an outage on our side must refuse, never accept
            self.peer, self._verdict = None, as_trust_error(error)
            return self._verdict
        return None

    def judge_again(self) -> None:
        """Ask the judge about the peer once more, at the end of the handshake."""
        if self.peer is not None and (refusal := self.verify_chain(list(self.peer.chain))) is not None:
            raise self.fail(refusal)

    def assert_identified(self) -> None:
        """Fail closed: whatever OpenSSL let through, there is a judged peer, or there rightly is none."""
        certificate = self._ssl.get_peer_certificate(as_cryptography=True)
        leaf = certificate.public_bytes(Encoding.DER) if certificate else None
        if _lib.SSL_session_reused(self._ssl._ssl):
            raise self.fail(HandshakeFailed("TLS session was resumed", expected="a full handshake"))
        if self._post_quantum and self._ssl.get_group_name() not in POST_QUANTUM_GROUPS:
            raise self.fail(_not_post_quantum(str(self._ssl.get_group_name())))
        if leaf is None and (self._required or self.peer):
            raise self.fail(NoPeerCertificate("peer presented no certificate", expected="an agent certificate"))
        if leaf is not None and (self.peer is None or self.peer.chain[0] != leaf):
            raise self.fail(UntrustedChain("peer certificate was not verified", do="report this as a defect"))

    # Plaintext.

    def read(self, size: int = RECORD_BYTES) -> bytes | None:
        """Decrypted bytes; None when more must come; b"" when the peer has closed the connection properly.

        Raises:
            HandshakeRefused: (client) the server refused us after our side of the handshake was complete.
            TransportError: the connection was cut short or tampered with, or the peer keeps TLS busy without data.
            TrustError: as `error` or `distrusted` say.
        """
        self._check_alive()
        buffer = _taken()
        try:
            return self._read(buffer, size)
        finally:
            _given_back(buffer)

    def _read(self, buffer: Any, size: int) -> bytes | None:
        _lib.ERR_clear_error()
        # Most reads find nothing more: what `SSL.Connection.recv` does, without an exception for that.
        handle = self._ssl._ssl
        while (got := _lib.SSL_read(handle, buffer, min(size, _BUFFER_BYTES))) <= 0:
            error = _lib.SSL_get_error(handle, got)
            if error == _lib.SSL_ERROR_ZERO_RETURN:
                return b""
            if error != _lib.SSL_ERROR_WANT_READ:
                raise self._broken(got)
            if self._barren > self._may_be_barren:
                raise self.fail(_barren(self._barren, self._may_be_barren))
            if not self._feed():
                self.drained = True
                return None
        self.heard, self._barren = True, 0
        # Whether anything is left is asked for: to find it out by reading again costs three times as much.
        self.drained = not (
            self._eof
            or self._waiting
            or _lib.SSL_pending(handle)
            or _lib.BIO_get_mem_data(self._ssl._into_ssl, _thread.start)
        )
        return bytes(_ffi.buffer(buffer, got))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt all of `data` into `output`."""
        self._check_alive()
        _lib.ERR_clear_error()
        # What `SSL.Connection.sendall` does, for less. One call would stop at one record.
        with _ffi.from_buffer(data) as start:
            done, size = 0, len(start)
            while done < size:
                written = _lib.SSL_write(self._ssl._ssl, start + done, min(size - done, _BUFFER_BYTES))
                if written <= 0:
                    raise self._broken(written)
                done += written
        return size

    def _broken(self, result: int) -> TrustError:
        """Why OpenSSL could not read or write; the end of this connection."""
        try:
            self._ssl._raise_ssl_error(self._ssl._ssl, result)
        except SSL.Error as error:
            return self.fail(self._explain(error))
        return self.fail(TransportError("TLS connection is broken", got="no data and no error"))

    def close(self) -> bool:
        """Say close_notify; True when the peer has said it, too."""
        _lib.ERR_clear_error()
        while True:
            try:
                done = bool(self._ssl.shutdown())
            except SSL.WantReadError:
                if self._feed():
                    continue
                done = False
            except SSL.Error:  # nothing to close: the handshake is not done, or the connection is broken
                return True
            self.drained = not self._waiting
            return done

    def release(self) -> None:
        """The connection is over: give OpenSSL's memory back now. What an error's traceback holds may stay for long."""
        self.error = self.error or TransportError("connection is closed")
        self.established = False
        self._ssl = None
        self._waiting.clear()

    def pending(self) -> int:
        """At least this many decrypted bytes can be read; 1 when that cannot be known before reading."""
        return self._ssl.pending() or (0 if self.drained else 1)

    def recheck(self) -> None:
        """Judge the peer again where its trust may have ended since; `distrust` says the result. Cheap."""

    def _check_alive(self) -> None:
        if self.error:
            raise self.error
        if self.on_distrust is None:  # nobody else watches over this connection
            self.recheck()
            if self.distrusted:
                raise self.distrusted
        if not self.established:
            raise HandshakeFailed("handshake is not complete")

    def _explain(self, error: SSL.Error) -> TrustError:
        """Our error for one of OpenSSL's."""
        reason = reason_of(error)
        if self._post_quantum and not self.established and _nothing_agreed(reason, self._ssl.get_group_name()):
            return _not_post_quantum(reason)
        if " alert " in reason:
            alert = reason.partition(" alert ")[2].replace(" ", "_")
            if self.established and self.heard:
                return TransportError("peer ended the connection", got=f"alert {alert}")
            refused = HandshakeRefused(
                "peer refused the connection",
                got=f"alert {alert}",
                expected=self._in_time() if alert == "certificate_expired" else "",
                do="check this agent's certificate and the peer's list of who may connect",
            )
            # A server tells what it thinks of our certificate after the handshake; an alert before that is unsigned.
            refused.by_verified_peer = self.established
            return refused
        if "peer did not return a certificate" in reason:
            return NoPeerCertificate("peer presented no certificate", expected="an agent certificate")
        if not self.established:
            return HandshakeFailed("TLS handshake failed", got=reason, expected="TLS 1.3")
        if self._eof:
            return TransportError("connection was cut", got=reason, expected="close_notify before the end")
        return TransportError("TLS connection is broken", got=reason)

    def _in_time(self) -> str:
        """What a peer for which our certificate has expired should compare."""
        if self.credentials is None:
            return ""
        end = self.credentials.certificate.not_valid_after_utc
        return f"a clock before {shown(end)}, when our certificate ends; ours says {shown(self._clock())}"

    # What the handshake agreed on.

    @property
    def group(self) -> str:
        """The key exchange group, e.g. X25519MLKEM768; empty before the handshake."""
        return self._ssl.get_group_name() or "" if self.established else ""

    @property
    def version(self) -> str | None:
        return self._ssl.get_protocol_version_name() if self.established else None

    @property
    def cipher(self) -> tuple[str, str, int] | None:
        """Name, protocol and secret bits, as `ssl.SSLObject.cipher` has them."""
        if not self.established:
            return None
        return str(self._ssl.get_cipher_name()), str(self._ssl.get_cipher_version()), self._ssl.get_cipher_bits() or 0

    @property
    def alpn(self) -> str | None:
        return (self._ssl.get_alpn_proto_negotiated().decode() or None) if self.established else None


def _claimed(leaf: bytes) -> str:
    """The SPIFFE ID in a certificate, which may be anything; empty where there is not exactly one."""
    try:
        return str(AgentID.of(x509.load_der_x509_certificate(leaf)))
    except (*UNREADABLE, PeerError):
        return ""


def as_trust_error(error: BaseException) -> TrustError:
    """An error of ours as it is; any other as the failure to verify that it is."""
    if isinstance(error, TrustError):
        return error
    return HandshakeFailed("peer cannot be verified", got=f"{type(error).__name__}: {error}")


def _barren(got: int, allowed: int) -> TransportError:
    return TransportError(
        "peer sends messages of TLS itself, and no data",
        got=f"{got} bytes of them",
        expected=f"at most {allowed} in a row",
        do="find out why this peer renews its keys again and again",
    )


def _nothing_agreed(reason: str, group: str | None) -> bool:
    """Whether a handshake failed because one side has no key exchange that will do for the other.

    A client learns only that the server could not go on from its first message (RFC 8446 section 4.1.1).
    """
    return "no suitable key share" in reason or (group is None and "alert handshake failure" in reason)


def _not_post_quantum(got: str) -> NotPostQuantum:
    return NotPostQuantum(
        "key exchange is not post-quantum",
        got=got,
        expected=" or ".join(POST_QUANTUM_GROUPS),
        do="give the peer a newer TLS library, or let post-quantum be preferred and not required",
    )


def _sni(name: str | None) -> bytes | None:
    """The host name to ask for; none for an address (RFC 6066 section 3)."""
    if not name:
        return None
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.encode("idna")
    return None
