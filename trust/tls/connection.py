"""One TLS 1.3 connection as a state machine without sockets: bytes in, bytes out, and a verified peer.

Whose certificate is acceptable is decided inside the handshake, by a `judge` that gets the chain the peer presented.
OpenSSL trusts nothing here (its store is empty): it checks that the peer holds the key of its certificate, and it
tells a refused peer why, with a TLS alert. The judge is the only one that can say yes.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

# pyOpenSSL's own verification callback can neither name the reason of a refusal (the peer would see
# `internal_error`) nor see the chain as a whole, and it turns every "yes" into "no error at all". These are the
# bindings that pyOpenSSL itself is written with; without one of them nothing below works, and nothing is accepted.
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from trust.certificates import UNREADABLE
from trust.clock import Clock, shown, wall_clock
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ChainTooLong,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    NotPostQuantum,
    PeerError,
    PeerNotAllowed,
    RevocationUnknown,
    TransportError,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)
from trust.identity import AgentID, PeerIdentity

MAX_CHAIN = 8  # certificates that OpenSSL puts together; the judge's own limit is lower
RECORD_BYTES = 16 * 1024  # RFC 8446 section 5.1: no record holds more plaintext
_BUFFER_BYTES = 4 * RECORD_BYTES  # what one call moves out of OpenSSL

# The key exchanges that keep what is recorded today secret from a quantum computer of tomorrow (RFC 9794: hybrids of
# ML-KEM and an elliptic curve). By itself OpenSSL prefers the first of them to whatever the peer likes better.
POST_QUANTUM_GROUPS = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024")

# OpenSSL's own list and order, but for X448, P-521 and the finite fields: no client needs them, and with ffdhe3072 a
# stranger makes a handshake cost the server five times as much. A client sends the shares with "*"; names with "?" may
# be unknown.
_GROUPS = "?*X25519MLKEM768/?*X25519:?secp256r1/?secp384r1"

# The alert that tells a refused peer why (RFC 8446 section 6.2), by way of the X.509 error that OpenSSL turns into
# it. OpenSSL has no way to `access_denied`: a peer that is not on the list gets `handshake_failure`.
_X509_ERROR: dict[type[TrustError], int] = {
    CertificateExpired: SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED,  # certificate_expired
    CertificateRevoked: SSL.X509VerificationCodes.ERR_CERT_REVOKED,  # certificate_revoked
    CertificateNotYetValid: SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID,  # bad_certificate
    RevocationUnknown: SSL.X509VerificationCodes.ERR_CRL_PATH_VALIDATION_ERROR,  # certificate_unknown
    UnknownTrustDomain: SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,  # unknown_ca
    UntrustedChain: SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    ChainTooLong: SSL.X509VerificationCodes.ERR_CERT_CHAIN_TOO_LONG,
    WrongKeyUsage: SSL.X509VerificationCodes.ERR_INVALID_PURPOSE,  # unsupported_certificate
    WrongExtendedKeyUsage: SSL.X509VerificationCodes.ERR_INVALID_PURPOSE,
    PeerNotAllowed: SSL.X509VerificationCodes.ERR_APPLICATION_VERIFICATION,  # handshake_failure
}
_OTHER_ERROR: int = SSL.X509VerificationCodes.ERR_CERT_REJECTED  # bad_certificate

Judge = Callable[[list[bytes]], PeerIdentity]


class _Thread(threading.local):
    """What one thread uses for one connection after the other."""

    connection: Connection | None = None  # whose handshake runs, for the callback from C

    def __init__(self) -> None:
        self.buffer = _ffi.new(f"char[{_BUFFER_BYTES}]")  # to be read from at once: the next call writes over it


_thread = _Thread()


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What we present: credentials in an OpenSSL context that nothing changes any more."""

    credentials: Credentials | None  # None: a client that presents no certificate
    server_side: bool
    certificate_required: bool
    post_quantum: bool  # whether no other key exchange will do
    openssl: SSL.Context = field(repr=False)


def snapshot(
    credentials: Credentials | None, *, server_side: bool, certificate_required: bool, post_quantum: bool = False
) -> Snapshot:
    """A TLS 1.3 context that presents `credentials`. The key goes from memory to memory, never through a file.

    Args:
        credentials: None for a client that presents no certificate.
        certificate_required: whether the other side must present one.
        post_quantum: whether to agree on `POST_QUANTUM_GROUPS` only.

    Raises:
        ConfigurationError: OpenSSL refuses the certificate or the key, or a server has none; or it does not know these
            groups.
    """
    if credentials is None and server_side:
        raise ConfigurationError("server has no credentials", expected="a certificate and its key")
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server_side else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    # A resumed session skips certificate verification, and with it expiry and revocation: there are no sessions. What
    # OpenSSL still sends are two tickets that name a session which is kept nowhere.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_verify_depth(MAX_CHAIN)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection keeps no room for two records: 24 of its 90 KB
    groups = ":".join(POST_QUANTUM_GROUPS) if post_quantum else _GROUPS
    if not _lib.SSL_CTX_set1_curves_list(context._context, groups.encode()):
        _lib.ERR_clear_error()
        if post_quantum:  # else OpenSSL's own list does: one that is too old for this syntax has a shorter one
            raise ConfigurationError("no post-quantum key exchange in this OpenSSL", expected="OpenSSL 3.5 or newer")
    if credentials is not None:
        _present(context, credentials)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if certificate_required else 0)
    _lib.SSL_CTX_set_verify(context._context, mode, _verify)
    if server_side:
        context.set_alpn_select_callback(_choose_http)
    return Snapshot(credentials, server_side, certificate_required, post_quantum, context)


def _present(context: SSL.Context, credentials: Credentials) -> None:
    try:
        context.use_certificate(credentials.certificate)
        for certificate in credentials.chain[1:]:
            context.add_extra_chain_cert(certificate)
        # What `use_privatekey` does, which refuses ML-DSA keys by their type. One that OpenSSL refuses is missing when
        # it comes to the check.
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, credentials.key_pem())
        _lib.SSL_CTX_use_PrivateKey(context._context, key._pkey)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise ConfigurationError(
            "TLS refuses the credentials", got=_reason(error), expected="a certificate and its key"
        ) from None


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
        if data:
            # A BIO in memory takes all of it. If it could not, what comes after the gap would not decrypt.
            _lib.BIO_write(self._ssl._into_ssl, _ffi.from_buffer(data), len(data))
            self.drained = False

    def receive_eof(self) -> None:
        """The peer will send no more."""
        self._eof = True
        self._ssl.bio_shutdown()
        self.drained = False

    def output(self) -> bytes:
        """Ciphertext to send to the peer. It may hold an alert after a failure, so it is sent then, too."""
        buffer = _thread.buffer
        size = _lib.BIO_read(self._ssl._from_ssl, buffer, _BUFFER_BYTES)
        if size < _BUFFER_BYTES:
            return bytes(_ffi.buffer(buffer, size)) if size > 0 else b""
        parts = []
        while size > 0:
            parts.append(bytes(_ffi.buffer(buffer, size)))
            size = _lib.BIO_read(self._ssl._from_ssl, buffer, _BUFFER_BYTES)
        return b"".join(parts)

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
        _thread.connection = self
        _lib.ERR_clear_error()
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            self.drained = True
            return False
        except SSL.Error as error:
            raise self.fail(self._verdict or self._explain(error)) from None
        finally:
            _thread.connection = None
        self.assert_identified()
        self.established = True
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

    def verify_chain(self, chain: list[bytes]) -> int:
        """The X.509 error of a presented chain, 0 when the judge accepts it. Runs inside OpenSSL's handshake."""
        self.judged, self._leaf = True, chain[0] if chain else b""
        try:
            self.peer = self._judge(chain)
        except Exception as error:  # a defect or an outage on our side must refuse, never accept
            self.peer, self._verdict = None, as_trust_error(error)
            return _X509_ERROR.get(type(self._verdict), _OTHER_ERROR)
        return 0

    def judge_again(self) -> None:
        """Ask the judge about the peer once more, at the end of the handshake."""
        if self.peer is not None and self.verify_chain(list(self.peer.chain)) and self._verdict:
            raise self.fail(self._verdict)

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
            TransportError: the connection was cut short or tampered with.
            TrustError: as `error` or `distrusted` say.
        """
        self._check_alive()
        _lib.ERR_clear_error()
        # Most reads find nothing more: what `SSL.Connection.recv` does, without an exception for that.
        buffer, handle = _thread.buffer, self._ssl._ssl
        got = _lib.SSL_read(handle, buffer, min(size, _BUFFER_BYTES))
        if got > 0:
            self.heard = True
            return bytes(_ffi.buffer(buffer, got))
        error = _lib.SSL_get_error(handle, got)
        if error == _lib.SSL_ERROR_WANT_READ:
            self.drained = True
            return None
        if error == _lib.SSL_ERROR_ZERO_RETURN:
            return b""
        raise self._broken(got)

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
        try:
            done = bool(self._ssl.shutdown())
            self.drained = True
            return done
        except SSL.WantReadError:
            self.drained = True
            return False
        except SSL.Error:  # nothing to close: the handshake is not done, or the connection is broken
            return True

    def release(self) -> None:
        """The connection is over: give OpenSSL's memory back now. What an error's traceback holds may stay for long."""
        self.error = self.error or TransportError("connection is closed")
        self.established = False
        self._ssl = None

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
        reason = _reason(error)
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


@_ffi.callback("int (*)(int, X509_STORE_CTX *)", error=0)  # type: ignore[untyped-decorator]
def _verify(ok: int, store: Any) -> int:
    """OpenSSL's verification callback: 1 goes on, 0 refuses. An exception refuses (`error=0`).

    OpenSSL has nothing to trust, so it complains about every chain: first that there is no root, when the chain is
    put together and before any signature of it is verified. Then the judge speaks, once. What it refuses costs no
    more work: a stranger could present keys that take long to verify with. What it accepts is walked to the end, and
    the complaints on the way are passed over: each of these checks is the judge's. (About a key that OpenSSL finds
    too short it complains earlier, of the leaf alone, and the leaf alone is judged then.)

    If OpenSSL never asks, nobody is accepted, because no peer was judged.
    """
    connection = _thread.connection
    if connection is None:
        return 0
    if not connection.judged:
        error = connection.verify_chain(_presented(store))
        _lib.ERR_clear_error()
    else:
        error = 0 if connection.peer else _OTHER_ERROR
    _lib.X509_STORE_CTX_set_error(store, error)
    return 0 if error else 1


def _presented(store: Any) -> list[bytes]:
    """The chain that OpenSSL put together from what the peer sent, as DER, leaf first."""
    stack = _lib.X509_STORE_CTX_get1_chain(store)
    count = _lib.sk_X509_num(stack)
    certificates = [crypto.X509._from_raw_x509_ptr(_lib.sk_X509_value(stack, i)) for i in range(count)]
    _lib.sk_X509_free(stack)  # the certificates are freed by their objects
    return [crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in certificates]


def _choose_http(_: SSL.Connection, offered: list[bytes]) -> bytes | Any:
    spoken = _thread.connection.spoken if _thread.connection else []
    return next((name for name in spoken if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)


def _claimed(leaf: bytes) -> str:
    """The SPIFFE ID in a certificate, which may be anything; empty where there is not exactly one."""
    try:
        return str(AgentID.of(x509.load_der_x509_certificate(leaf)))
    except (*UNREADABLE, PeerError):
        return ""


def as_trust_error(error: Exception) -> TrustError:
    """An error of ours as it is; any other as the failure to verify that it is."""
    if isinstance(error, TrustError):
        return error
    return HandshakeFailed("peer cannot be verified", got=f"{type(error).__name__}: {error}")


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


def _reason(error: SSL.Error | crypto.Error) -> str:
    """OpenSSL's words for what went wrong."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[1])
    if isinstance(error, SSL.ZeroReturnError):
        return "closed by the peer"
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(str(entry[-1]) for entry in queue) or "unknown reason"
