"""What we present to a peer, and how OpenSSL asks about the peer's certificate: a context that nothing changes.

OpenSSL trusts nothing here (its store is empty). Whoever does a handshake with such a context is asked about the chain
that the peer presented; an error that is returned becomes the TLS alert which tells the peer why it is refused.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

from OpenSSL import SSL, crypto

# pyOpenSSL's own verification callback can neither name the reason of a refusal (the peer would see
# `internal_error`) nor see the chain as a whole, and it turns every "yes" into "no error at all". These are the
# bindings that pyOpenSSL itself is written with; without one of them nothing below works, and nothing is accepted.
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ChainTooLong,
    ConfigurationError,
    PeerNotAllowed,
    RevocationUnknown,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)
from trust.identity import PeerIdentity

MAX_CHAIN = 8  # certificates that OpenSSL puts together; the judge's own limit is lower

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


class Handshaking(Protocol):
    """Who is asked about the peer in the handshake that a thread does."""

    judged: bool  # whether it was asked already
    peer: PeerIdentity | None  # whom it accepted
    spoken: list[bytes]  # ALPN of a server, the first choice first

    def verify_chain(self, chain: list[bytes]) -> TrustError | None:
        """What speaks against a chain, DER and leaf first; None accepts it."""


class _Running(threading.local):
    connection: Handshaking | None = None


running = _Running()  # the handshake of this thread, for the callbacks from C


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
    # OpenSSL 4 still sends are two tickets that name a session which is kept nowhere.
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
            "TLS refuses the credentials", got=reason_of(error), expected="a certificate and its key"
        ) from None


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
    connection = running.connection
    if connection is None:
        return 0
    if not connection.judged:
        refusal = connection.verify_chain(_presented(store))
        error = 0 if refusal is None else _X509_ERROR.get(type(refusal), _OTHER_ERROR)
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
    spoken = running.connection.spoken if running.connection else []
    return next((name for name in spoken if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)


def reason_of(error: SSL.Error | crypto.Error) -> str:
    """OpenSSL's words for what went wrong."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[1])
    if isinstance(error, SSL.ZeroReturnError):
        return "closed by the peer"
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(str(entry[-1]) for entry in queue) or "unknown reason"
