"""TLS contexts of an agent: what it presents, whom it trusts, who may connect - all of it replaceable while it runs.

`server_context` and `client_context` are `ssl.SSLContext` to whatever wants one (asyncio, uvloop, anyio, httpx,
uvicorn, websockets), but the work is done by pyOpenSSL, over an immutable snapshot of our credentials. TLS 1.3 only,
no sessions, no tickets. The other end is identified by its SPIFFE ID, verified inside the handshake; host names
identify nobody, so they are sent (SNI) and not checked.
"""

from __future__ import annotations

import logging
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn

from cryptography import x509

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource, TrustBundles
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials, CredentialSource
from trust.errors import ConfigurationError, TrustError
from trust.identity import PeerIdentity
from trust.peers import PeerVerifier
from trust.sources import Live, Source
from trust.tls.connection import Connection, Snapshot, as_trust_error, snapshot
from trust.tls.sslobject import SslObject

Address = tuple[str, int] | None
Refused = Callable[[TrustError, Address], None]
ClientCertificates = Literal["required", "optional"]

# A verdict on an open connection is good for this long, as long as no source has another value: what it cannot see is
# an authorizer that changed its mind by itself, and a revocation list that nobody replaced in time.
VERDICT_LIFETIME = timedelta(seconds=60)

# Before the end of a server's certificate, or a twentieth of its life: no further request on an old connection. Longer
# than nearly every answer takes; a new connection then costs a handshake.
LAST_REQUESTS = timedelta(minutes=5)

logger = logging.getLogger(__name__)


def server_context(
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    *,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    client_certificates: ClientCertificates = "required",
    on_refused: Refused | None = None,
    clock: Clock = wall_clock,
) -> TrustContext:
    """The server's side: every client proves that it is an agent which `authorize` allows, or is refused.

    Args:
        source: our certificate and key.
        bundles: the roots, by trust domain.
        authorize: which agents may connect.
        crls: revocation lists; none means that revocation is not checked.
        client_certificates: with "optional" a client may present no certificate, and has no identity then. One that
            is presented must still be right.
        on_refused: called with the error and the peer's address (None where the transport does not tell) for each
            handshake that fails. It runs in the event loop and must not block.
        clock: returns the aware time now.

    Raises:
        ConfigurationError: the credentials cannot be used, or `client_certificates` is neither of the two.
    """
    if client_certificates not in ("required", "optional"):
        raise ConfigurationError("client_certificates", got=client_certificates, expected='"required" or "optional"')
    return TrustContext(source, bundles, authorize, crls, True, client_certificates == "required", on_refused, clock)


def client_context(
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer,
    *,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    clock: Clock = wall_clock,
) -> TrustContext:
    """The client's side: the server proves that it is an agent which `authorize` allows, or is refused.

    The arguments are those of `server_context`. The host name is sent as SNI and is not compared with anything.

    Args:
        source: our certificate and key; None to present none. Only a server with `client_certificates="optional"` lets
            such a client in, and only to what it gives to anybody. The server is verified all the same.
    """
    return TrustContext(_NOBODY if source is None else source, bundles, authorize, crls, False, True, None, clock)


_NOBODY: Source[None] = Live(None)  # what a client that presents no certificate has for credentials


@dataclass(frozen=True, slots=True, eq=False)
class _Trust:
    """Whom we trust and who may connect, replaced as a whole. Its identity is the generation of the trust."""

    bundles: BundleSource
    crls: RevocationSource
    authorize: Authorizer
    verifier: PeerVerifier


class TrustContext(ssl.SSLContext):
    """Made by `server_context` and `client_context`. Safe to use from several threads.

    The inherited `ssl.SSLContext` has no key and no trust, so whatever would get past the methods below could not
    complete a handshake.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> TrustContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(
        self,
        source: Source[Credentials | None],
        bundles: BundleSource,
        authorize: Authorizer,
        crls: RevocationSource,
        server_side: bool,
        certificate_required: bool,
        on_refused: Refused | None,
        clock: Clock,
    ) -> None:
        self.server_side = server_side
        self._required = certificate_required
        self._on_refused = on_refused
        self._clock = clock
        self._alpn: list[str] = []
        self._lock = threading.Lock()
        self._live: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._source = source
        self._snapshot = self._take(source.current())
        self._trust = _Trust(bundles, crls, authorize, PeerVerifier(bundles, crls))

    # Connections.

    def connection(self, server_name: str | bytes | None = None, address: Address = None) -> Connection:
        """A new connection with the credentials that are current now; for transports without `ssl` objects."""
        connection = _Judged(
            self,
            self._current(),
            server_name=server_name,
            alpn=self._alpn,
            on_failure=lambda error: self._refused(error, address),
        )
        with self._lock:
            self._live.add(connection)
        return connection

    def wrap_bio(  # type: ignore[override]
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: object = None,
    ) -> SslObject:
        """An object with the interface of `ssl.SSLObject`, and with `peer` and `group` besides."""
        if server_side != self.server_side:
            side = "a server" if self.server_side else "a client"
            raise ConfigurationError("TLS context used for the wrong side", expected=f"this context makes {side}")
        if session is not None:
            raise ConfigurationError("TLS sessions are not resumed", got="a session", expected="none")
        return SslObject(self, self.connection(server_hostname), incoming, outgoing)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Blocking sockets are not supported.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "blocking sockets are not supported", do="use asyncio, anyio or httpx.AsyncClient with this context"
        )

    def stale(self, connection: Connection) -> bool:
        """Whether a client should not send another request on this connection: trust lost, or about to end, or renewed.

        After a renewal our tokens are bound to the new certificate, which this connection does not present. And a
        server that was renewed shows its new certificate to new connections only: whoever stays with an old one must
        leave it before its certificate ends, or the answer that is then under way is lost.
        """
        connection.recheck()
        peer = connection.peer
        if connection.distrusted is not None or peer is None or connection.credentials is not self._source.current():
            return True
        return self.now() > peer.not_after - min(LAST_REQUESTS, (peer.not_after - peer.not_before) / 20)

    def now(self) -> datetime:
        return self._clock()

    # Reloading.

    def reload(
        self,
        source: CredentialSource | None = None,
        bundles: BundleSource | None = None,
        authorize: Authorizer | None = None,
        crls: RevocationSource | None = None,
    ) -> None:
        """Use what the sources hold now, or other sources, and drop every live connection that lost its trust.

        New connections see a source's new value without this, and open ones are judged by it within seconds; here
        they are judged at once. A peer that may no longer connect is disconnected; a server lets its request in
        flight finish.

        Raises:
            TrustError: the new sources cannot be used. Everything stays as it was.
        """
        with self._lock:
            old = self._trust
            # `is None` throughout: a source or a list that is empty for now may well be false.
            bundles, crls = old.bundles if bundles is None else bundles, old.crls if crls is None else crls
            authorize = old.authorize if authorize is None else authorize
            new = _Trust(bundles, crls, authorize, PeerVerifier(bundles, crls))
            presented = self._source if source is None else source
            credentials = presented.current()
            present = self._snapshot if self._snapshot.credentials is credentials else self._take(credentials)
            self._trust, self._snapshot, self._source = new, present, presented
            live = list(self._live)
        # A handshake that is judged from here on is judged by the new trust; one that was judged before shows its
        # peer here, or compares the trust itself when it completes.
        for connection in live:
            peer = connection.peer
            if peer is None or connection.distrusted:
                continue
            try:
                self.judge(peer.chain, new)
            except Exception as error:  # a defect or an outage on our side must refuse, never accept
                connection.distrust(as_trust_error(error))

    def judge(self, chain: Iterable[bytes], trust: _Trust) -> PeerIdentity:
        """The peer that a chain proves now, if it may connect."""
        peer = trust.verifier.verify(list(chain), now=self._clock(), usage="client" if self.server_side else "server")
        trust.authorize.check(peer.agent_id)
        return peer

    @property
    def trust(self) -> _Trust:
        """The trust that judges now."""
        return self._trust

    def _current(self) -> Snapshot:
        present = self._snapshot
        if present.credentials is self._source.current():
            return present
        with self._lock:
            credentials = self._source.current()
            if self._snapshot.credentials is not credentials:
                self._snapshot = self._take(credentials)
            return self._snapshot

    def _take(self, credentials: Credentials | None) -> Snapshot:
        return snapshot(credentials, server_side=self.server_side, certificate_required=self._required)

    def _refused(self, error: TrustError, address: Address) -> None:
        if self._on_refused is None:
            return
        try:
            self._on_refused(error, address)
        except Exception:  # a broken audit trail must not decide about connections
            logger.exception("on_refused failed")

    # What libraries read from, and do to, an ssl.SSLContext. Nothing of it can weaken a connection.

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Recorded for the connections to come; httpcore calls it before each one. A server speaks http/1.1."""
        self._alpn = list(alpn_protocols)

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        return ssl.CERT_REQUIRED if self._required else ssl.CERT_OPTIONAL

    @verify_mode.setter
    def verify_mode(self, value: object) -> None:
        """Ignored."""

    @property
    def check_hostname(self) -> bool:
        return False

    @check_hostname.setter
    def check_hostname(self, value: object) -> None:
        """Ignored."""

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        return ssl.TLSVersion.TLSv1_3

    @minimum_version.setter
    def minimum_version(self, value: object) -> None:
        """Ignored."""

    maximum_version = minimum_version

    @property
    def options(self) -> ssl.Options:
        return ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TLSv1_2

    @options.setter
    def options(self, value: object) -> None:
        """Ignored."""

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigurationError(
            "this TLS context takes its certificate, key and trust from its sources",
            do="give it other sources: context.reload(source=..., bundles=..., crls=...)",
        )

    load_cert_chain = _fixed
    load_verify_locations = _fixed
    load_default_certs = _fixed
    set_default_verify_paths = _fixed
    set_ciphers = _fixed
    set_ecdh_curve = _fixed
    load_dh_params = _fixed
    set_npn_protocols = _fixed
    set_servername_callback = _fixed


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    """What a peer was judged by, and until when that is good if none of it changes."""

    trust: _Trust
    bundles: TrustBundles
    crls: RevocationLists
    until: datetime

    def holds(self, trust: _Trust, now: datetime) -> bool:
        return (
            self.trust is trust
            and self.bundles is trust.bundles.current()
            and self.crls is trust.crls.current()
            and now <= self.until
        )


class _Judged(Connection):
    """A connection that is judged by its context's trust: the one of the moment, at the end as at the start."""

    def __init__(self, context: TrustContext, snapshot: Snapshot, **options: Any) -> None:
        self._context = context
        self._judged_by: _Verdict | None = None
        super().__init__(snapshot, self._ask, **options)

    def assert_identified(self) -> None:
        super().assert_identified()
        # The trust was reloaded in the middle of this handshake, perhaps too early for the sweep to see the peer.
        if self.peer is not None and (self._judged_by is None or self._judged_by.trust is not self._context.trust):
            self.judge_again()

    def recheck(self) -> None:
        peer, verdict = self.peer, self._judged_by
        if peer is None or verdict is None or self.distrusted:
            return
        try:
            if not verdict.holds(self._context.trust, self._context.now()):
                self._ask(list(peer.chain))
        except Exception as error:  # a defect or an outage on our side must refuse, never accept
            self.distrust(as_trust_error(error))

    def _ask(self, chain: list[bytes]) -> PeerIdentity:
        trust, now = self._context.trust, self._context.now()
        # The values are read before they are used: one that changes in between is noticed at the next check.
        bundles, crls = trust.bundles.current(), trust.crls.current()
        peer = self._context.judge(chain, trust)
        ends = [x509.load_der_x509_certificate(der).not_valid_after_utc for der in peer.chain]
        self._judged_by = _Verdict(trust, bundles, crls, min(now + VERDICT_LIFETIME, *ends))
        return peer
