"""TLS contexts of an agent: what it presents, whom it trusts, who may connect - all of it replaceable while it runs.

`server_context` and `client_context` are `ssl.SSLContext` to whatever wants one (asyncio, uvloop, anyio, httpx,
uvicorn, websockets), but the work is done by pyOpenSSL, over an immutable snapshot of our credentials. TLS 1.3 only,
and every handshake is a full one: nothing is resumed. (OpenSSL 4 sends two tickets whatever it is told; they name
sessions that are kept nowhere.) The other end is identified by its SPIFFE ID, verified inside the handshake; host names
identify nobody, so they are sent (SNI) and not checked.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn

from trust.authorize import Authorizer, a_rule, any_of
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials, CredentialSource, check_source
from trust.errors import ConfigurationError, TrustError
from trust.identity import PeerIdentity
from trust.peers import PeerVerifier
from trust.sources import Live, Source
from trust.tls.connection import Connection, as_trust_error
from trust.tls.judging import Judged, Trust
from trust.tls.snapshot import Snapshot, snapshot
from trust.tls.sockets import TlsSocket
from trust.tls.sslobject import SslObject

Address = tuple[str, int] | None
Refused = Callable[[TrustError, Address], None]
ClientCertificates = Literal["required", "optional"]
PostQuantum = Literal["preferred", "required"]

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
    post_quantum: PostQuantum = "preferred",
    proxies: Authorizer | None = None,
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
        post_quantum: a post-quantum key exchange (`snapshot.POST_QUANTUM_GROUPS`) is what both sides of this library
            agree on by themselves; with "required" a peer that has none is refused. `Connection.group` tells.
        proxies: which agents may connect besides, to forward the requests of others; `trust.tls.forwarded` has to take
            care of what they send. None: nobody.
        on_refused: called with the error and the peer's address (None where the transport does not tell) for each
            handshake that fails, and for each connection that breaks after it (a `TransportError` of no other type). It
            runs in the event loop and must not block.
        clock: returns the aware time now.

    Raises:
        ConfigurationError: the credentials cannot be used, `authorize` or `proxies` is no rule, or
            `client_certificates` or `post_quantum` is none of its two words.
    """
    if client_certificates not in ("required", "optional"):
        raise ConfigurationError("client_certificates", got=client_certificates, expected='"required" or "optional"')
    return TrustContext(
        source=source,
        bundles=bundles,
        authorize=authorize,
        crls=crls,
        server_side=True,
        certificate_required=client_certificates == "required",
        post_quantum=post_quantum,
        on_refused=on_refused,
        clock=clock,
        proxies=proxies,
    )


def client_context(
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer,
    *,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    post_quantum: PostQuantum = "preferred",
    on_refused: Refused | None = None,
    clock: Clock = wall_clock,
) -> TrustContext:
    """The client's side: the server proves that it is an agent which `authorize` allows, or is refused.

    The arguments are those of `server_context`. The host name is sent as SNI and is not compared with anything.

    Args:
        source: our certificate and key; None to present none. Only a server with `client_certificates="optional"` lets
            such a client in, and only to what it gives to anybody. The server is verified all the same.
        on_refused: called with the error, and None, for each connection that fails: for libraries which tell of it
            no more than that it was closed, such as websockets.
    """
    return TrustContext(
        source=_NOBODY if source is None else source,
        bundles=bundles,
        authorize=authorize,
        crls=crls,
        server_side=False,
        certificate_required=True,
        post_quantum=post_quantum,
        on_refused=on_refused,
        clock=clock,
    )


_NOBODY: Source[None] = Live(None)  # what a client that presents no certificate has for credentials


def written(address: Address) -> str:
    """An address as people and the audit trail read it; empty where there is none."""
    if address is None:
        return ""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TrustContext(ssl.SSLContext):
    """Made by `server_context` and `client_context`. Safe to use from several threads.

    The inherited `ssl.SSLContext` has no key and no trust, so whatever would get past the methods below could not
    complete a handshake.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> TrustContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(
        self,
        *,
        source: Source[Credentials | None],
        bundles: BundleSource,
        authorize: Authorizer,
        crls: RevocationSource,
        server_side: bool,
        certificate_required: bool,
        post_quantum: PostQuantum,
        on_refused: Refused | None,
        clock: Clock,
        proxies: Authorizer | None = None,
    ) -> None:
        self.server_side = server_side
        self.proxies = None if proxies is None else a_rule(proxies)
        a_rule(authorize)
        check_source(source)
        if post_quantum not in ("preferred", "required"):
            raise ConfigurationError("post_quantum", got=post_quantum, expected='"preferred" or "required"')
        self._required = certificate_required
        self._post_quantum = post_quantum == "required"
        self._on_refused = on_refused
        self._clock = clock
        self._alpn: list[str] = []
        self._lock = threading.Lock()
        self._live: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._source = source
        self._snapshot = self._take(source.current())
        self._trust = Trust(bundles, crls, authorize, PeerVerifier(bundles, crls))

    # Connections.

    def connection(
        self, server_name: str | bytes | None = None, address: Address = None, rule: Authorizer | None = None
    ) -> Connection:
        """A new connection with the credentials that are current now; for transports without `ssl` objects.

        Args:
            rule: what the peer of this connection has to pass besides, for its whole life.
        """
        refusal: TrustError | None = None
        try:
            present = self._current()
        except Exception as error:  # we have no identity at present: the connection is there to say so
            present, refusal = self._snapshot, as_trust_error(error)
        connection = Judged(
            self,
            present,
            rule,
            server_name=server_name,
            alpn=self._alpn,
            address=written(address),
            clock=self._clock,
            on_failure=lambda error: self._refused(error, address),
        )
        if refusal is not None:
            connection.fail(refusal)
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
        self._check_use(server_side, session)
        return SslObject(self, self.connection(server_hostname), incoming, outgoing)

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: object = None,
    ) -> TlsSocket:
        """For threads: TLS over a blocking socket, with the interface of `ssl.SSLSocket`.

        Libraries that take an `ssl.SSLContext` call this: `http.client`, `http.server`, `urllib`, `httpx.Client`,
        `websockets.sync`. A listening socket gives connections whose handshake is done when they are first used.

        Raises:
            ConfigurationError: the wrong side, a session, or a socket that does not block.
            ssl.SSLError: the handshake failed; the cause says why.
        """
        self._check_use(server_side, session)
        try:
            address = sock.getpeername()
        except OSError:  # it listens
            return TlsSocket(self, sock, None, suppress_ragged_eofs=suppress_ragged_eofs)
        where = (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
        connection = self.connection(server_hostname, where)
        wrapped = TlsSocket(self, sock, connection, suppress_ragged_eofs=suppress_ragged_eofs)
        if do_handshake_on_connect:
            try:
                wrapped.do_handshake()
            except BaseException:
                wrapped.close()
                raise
        return wrapped

    def _check_use(self, server_side: bool, session: object) -> None:
        if server_side != self.server_side:
            side = "a server" if self.server_side else "a client"
            raise ConfigurationError("TLS context used for the wrong side", expected=f"this context makes {side}")
        if session is not None:
            raise ConfigurationError("TLS sessions are not resumed", got="a session", expected="none")

    def stale(self, connection: Connection) -> bool:
        """Whether a client should not send another request on this connection: trust lost, or about to end, or renewed.

        After a renewal our tokens are bound to the new certificate, which this connection does not present. And a
        server that was renewed shows its new certificate to new connections only: whoever stays with an old one must
        leave it before its certificate ends, or the answer that is then under way is lost.
        """
        connection.recheck()
        peer = connection.peer
        try:
            renewed = connection.credentials is not self._source.current()
        except Exception:  # we have no identity at present, as a new connection will say
            renewed = True
        if connection.distrusted is not None or peer is None or renewed:
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

        New connections see a source's new value without this, and a server looks over its open ones twice a second;
        here they are judged at once. A peer that may no longer connect is disconnected; a server lets its request in
        flight finish, but no event stream. It takes some 50 us for each connection, and ten times that where the
        bundles are others; a program with thousands of them may call it from a thread.

        Raises:
            TrustError: the new sources cannot be used. Everything stays as it was.
        """
        with self._lock:
            old = self._trust
            # `is None` throughout: a source or a list that is empty for now may well be false.
            bundles, crls = old.bundles if bundles is None else bundles, old.crls if crls is None else crls
            authorize = old.authorize if authorize is None else a_rule(authorize)
            verifier = PeerVerifier(bundles, crls, previous=old.verifier)
            new = Trust(bundles, crls, authorize, verifier)
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

    def judge(self, chain: Iterable[bytes], trust: Trust) -> PeerIdentity:
        """The peer that a chain proves now, if it may connect."""
        peer = trust.verifier.verify(list(chain), now=self._clock(), usage="client" if self.server_side else "server")
        admitted = trust.authorize if self.proxies is None else any_of(trust.authorize, self.proxies)
        admitted.check(peer.agent_id)
        return peer

    @property
    def trust(self) -> Trust:
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
        return snapshot(
            credentials,
            server_side=self.server_side,
            certificate_required=self._required,
            post_quantum=self._post_quantum,
        )

    def _refused(self, error: TrustError, address: Address) -> None:
        if self._on_refused is None:
            return
        try:
            self._on_refused(error, address)
        except Exception:  # a broken audit trail must not decide about connections
            logger.exception("on_refused failed")

    # What libraries read from, and do to, an ssl.SSLContext. Nothing of it can weaken a connection.

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """For the connections to come; httpcore calls it before each one. A server speaks http/1.1 without it."""
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
