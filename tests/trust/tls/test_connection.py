"""The state machine, two ends of it in memory: who is accepted, what the refused side is told, and failing closed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL._util import lib

from tests.forge import HOUR, NOW, Forge, spiffe
from tests.trust.tls.parts import AGENT, AGENT_ID, FORGE, OTHER, SERVER, SERVER_ID, KeyUpdates, shake
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    NoSpiffeID,
    PeerError,
    PeerNotAllowed,
    RevocationUnknown,
    SeveralSpiffeIDs,
    TransportError,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)
from trust.tls import client_context, server_context
from trust.tls import connection as connection_module
from trust.tls.connection import (
    MAX_BARREN_BYTES,
    MAX_BARREN_BYTES_OF_A_SERVER,
    RECORD_BYTES,
    SLICE_BYTES,
    Connection,
)
from trust.tls.snapshot import snapshot as take

ANY = unsafe_allow_any_peer()
BOTH = TrustBundles.of(FORGE.bundle, OTHER.bundle)
ADDRESS = ("192.0.2.7", 4242)
STRANGER = Forge()  # the same trust domain, by a CA that nobody trusts


def ends(
    client: Credentials = AGENT,
    server: Credentials = SERVER,
    *,
    bundles: TrustBundles = BOTH,
    server_options: dict[str, Any] | None = None,
    client_options: dict[str, Any] | None = None,
    allow: Any = ANY,
    name: str | None = None,
) -> tuple[Connection, Connection]:
    contexts = (
        client_context(client, bundles, allow, **(client_options or {})),
        server_context(server, bundles, allow, **(server_options or {})),
    )
    ours, theirs = contexts[0].connection(name), contexts[1].connection(address=ADDRESS)
    ours.contexts = theirs.contexts = contexts  # type: ignore[attr-defined]
    return ours, theirs


def established(**options: Any) -> tuple[Connection, Connection]:
    client, server = ends(**options)
    assert shake(client, server) == (None, None)
    assert client.established and server.established
    return client, server


def test_both_ends_know_each_other() -> None:
    client, server = established()
    assert str(client.peer.agent_id) == SERVER_ID and client.peer.thumbprint == SERVER.thumbprint
    assert str(server.peer.agent_id) == AGENT_ID and server.peer.thumbprint == AGENT.thumbprint
    assert list(server.peer.chain) == AGENT.chain_der
    assert client.version == server.version == "TLSv1.3"
    assert client.group == server.group == "X25519MLKEM768"  # post-quantum without being asked
    assert client.cipher == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    assert client.handshake()  # once more is no harm


@pytest.mark.parametrize("failure", [ValueError("a defect"), KeyboardInterrupt()], ids=["defect", "no Exception"])
def test_whoever_cannot_be_judged_again_is_trusted_no_longer(failure: BaseException) -> None:
    """A panic of a library in Rust is no Exception: it goes on its way, but not without that."""

    class Lists:
        fails = False

        def current(self) -> RevocationLists:
            if self.fails:
                raise failure
            return none

    none, lists = RevocationLists(), Lists()
    _, server = established(server_options={"crls": lists})
    server.on_distrust = lambda _: None
    lists.fails = True
    with contextlib.suppress(KeyboardInterrupt):
        server.recheck()
        assert isinstance(failure, Exception)
    assert type(server.distrusted) is HandshakeFailed and type(failure).__name__ in str(server.distrusted)


def test_nothing_is_known_before_the_handshake() -> None:
    client, _ = ends()
    assert (client.peer, client.version, client.cipher, client.group) == (None, None, None, "")
    with pytest.raises(HandshakeFailed):
        client.read()
    with pytest.raises(HandshakeFailed):
        client.write(b"too early")
    assert client.close()


Case = tuple[str, Callable[[], tuple[Credentials, dict[str, Any]]], type[TrustError], str]


def leaf(*args: Any, **changes: Any) -> Callable[[], tuple[Credentials, dict[str, Any]]]:
    return lambda: (FORGE.leaf(*args, **changes), {})


def revoked(**times: datetime) -> tuple[Credentials, dict[str, Any]]:
    credentials = FORGE.leaf()
    on_list = () if times else (credentials,)
    return credentials, {"crls": FORGE.crls(*on_list, **times)}


def self_signed() -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    own = FORGE.ca("agent", key, None, key, pathlen=None)
    return Credentials.of((FORGE.leaf(key=key, issuer=own, issuer_key=key).certificate,), key)


REFUSED: list[Case] = [
    ("by a CA that nobody trusts", lambda: (STRANGER.leaf(), {}), UntrustedChain, "unknown_ca"),
    (
        "of a trust domain that is not trusted",
        lambda: (Forge("far.example").leaf(), {}),
        UnknownTrustDomain,
        "unknown_ca",
    ),
    ("ID of one domain, CA of another", lambda: (OTHER.leaf(AGENT_ID), {}), UntrustedChain, "unknown_ca"),
    ("without its intermediate", lambda: (_alone(FORGE.leaf()), {}), UntrustedChain, "unknown_ca"),
    ("self-signed", lambda: (self_signed(), {}), UntrustedChain, "unknown_ca"),
    ("expired", leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), CertificateExpired, "certificate_expired"),
    ("not yet valid", leaf(not_before=NOW + HOUR), CertificateNotYetValid, "bad_certificate"),
    ("revoked", lambda: revoked(), CertificateRevoked, "certificate_revoked"),
    ("stale CRL", lambda: revoked(next_update=NOW - HOUR / 2), RevocationUnknown, "certificate_unknown"),
    ("CRL of another CA", lambda: (FORGE.leaf(), {"crls": OTHER.crls()}), RevocationUnknown, "certificate_unknown"),
    ("no SPIFFE ID", leaf(sans=[x509.DNSName("localhost")]), NoSpiffeID, "bad_certificate"),
    (
        "two SPIFFE IDs",
        leaf(sans=[spiffe(AGENT_ID), spiffe("spiffe://fleet.example/admin")]),
        SeveralSpiffeIDs,
        "bad_certificate",
    ),
    ("a CA certificate", leaf(is_ca=True), CertificateIsCA, "bad_certificate"),
    ("no keyUsage", leaf(usage=None), WrongKeyUsage, "unsupported_certificate"),
    (
        "for other purposes",
        leaf(eku=[ExtendedKeyUsageOID.CODE_SIGNING]),
        WrongExtendedKeyUsage,
        "unsupported_certificate",
    ),
    (
        "not on the list",
        lambda: (FORGE.leaf("/intruder"), {"authorize": exactly(AGENT_ID, SERVER_ID)}),
        PeerNotAllowed,
        "handshake_failure",
    ),
]


def _alone(credentials: Credentials) -> Credentials:
    return Credentials.of(credentials.chain[:1], credentials.private_key)


@pytest.mark.parametrize(("case", "make", "expected", "alert"), REFUSED, ids=[c[0] for c in REFUSED])
@pytest.mark.parametrize("refused", ["client", "server"])
def test_refused(refused: str, case: str, make: Any, expected: type[TrustError], alert: str) -> None:
    """Whoever presents this certificate is refused, and told why; the other side knows which check refused it."""
    told: list[Any] = []
    credentials, options = make()
    authorize = options.pop("authorize", ANY)
    if refused == "client":
        server_options = {**options, "on_refused": lambda error, address: told.append((error, address))}
        client, server = ends(credentials, server_options=server_options, allow=authorize)
        shake(client, server)
        judging, judged = server, client
    else:
        client, server = ends(server=credentials, client_options=options, allow=authorize, name="server.example")
        shake(client, server)
        judging, judged = client, server
    assert type(judging.error) is expected
    assert judging.peer is None and not judging.established
    assert type(judged.error) is HandshakeRefused
    assert f"alert {alert}" in str(judged.error) and "check this agent's certificate" in str(judged.error)
    assert told == ([(server.error, ADDRESS)] if refused == "client" else [])
    # The line says who it was, as far as anybody can tell, and which clocks to compare where it is about time.
    address = "192.0.2.7:4242" if refused == "client" else "server.example"
    claimed = "" if "SPIFFE ID" in case else str(credentials.agent_id)
    assert (judging.error.address, judging.error.claimed) == (address, claimed)
    assert str(judging.error).endswith(f"(peer {address}, claims {claimed})" if claimed else f"(peer {address})")
    if expected in (CertificateExpired, CertificateNotYetValid) or case == "stale CRL":
        assert " by our clock" in str(judging.error)
    if expected is CertificateExpired:
        assert f"{NOW - HOUR:%Y-%m-%d %H:%M:%S}" in str(judging.error)
        assert f"before {NOW - HOUR:%Y-%m-%d %H:%M:%S} UTC, when our certificate ends; ours says " in str(judged.error)
    with pytest.raises(expected):
        judging.handshake()  # it stays refused
    with pytest.raises(expected):
        judging.read()
    with pytest.raises(expected):
        judging.write(b"x")


def test_both_domains_are_trusted_for_themselves() -> None:
    """The other half of "ID of one domain, CA of another": each domain's own CA is fine."""
    _, server = established(client=OTHER.leaf("/partner"))
    assert str(server.peer.agent_id) == "spiffe://other.example/partner"


def test_a_domain_removed_is_refused() -> None:
    client, server = ends(OTHER.leaf("/partner"), bundles=FORGE.bundles)
    shake(client, server)
    assert type(server.error) is UnknownTrustDomain


def test_unrevoked_is_accepted_with_crls() -> None:
    established(server_options={"crls": FORGE.crls(FORGE.leaf())}, client_options={"crls": FORGE.crls()})


def test_the_root_may_be_sent() -> None:
    sent = Credentials.of((*AGENT.chain, FORGE.root), AGENT.private_key)
    _, server = established(client=sent)
    assert list(server.peer.chain) == AGENT.chain_der  # the root is left out


def test_ed25519() -> None:
    _, server = established(client=FORGE.leaf(key=ed25519.Ed25519PrivateKey.generate()))
    assert isinstance(server.peer.public_key, ed25519.Ed25519PublicKey)


# Certificates of clients.


class Foreign:
    """A client that is not ours: plain OpenSSL, trusting anybody."""

    error: TrustError | None = None

    def __init__(self, credentials: Credentials | None, *, version: int = SSL.TLS1_3_VERSION) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(version)
        if credentials:
            context.use_certificate(credentials.certificate)
            for certificate in credentials.chain[1:]:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(credentials.private_key)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.reason = ""

    def talk(self, server: Connection) -> None:
        for _ in range(6):
            try:
                self.tls.do_handshake()
                self.tls.recv(100)
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                self.reason = self.reason or error.args[0][0][-1]
            with contextlib.suppress(SSL.WantReadError):
                server.receive(self.tls.bio_read(65536))
            with contextlib.suppress(TrustError):
                server.handshake()
            data = server.output()
            if data:
                self.tls.bio_write(data)


def test_no_certificate_where_one_is_required() -> None:
    _, server = ends()
    client = Foreign(None)
    client.talk(server)
    assert type(server.error) is NoPeerCertificate and not server.established
    assert client.reason == "tlsv13 alert certificate required"


def test_no_certificate_where_it_is_optional() -> None:
    _, server = ends(server_options={"client_certificates": "optional"})
    client = Foreign(None)
    client.talk(server)
    assert server.established and server.peer is None and server.error is None


def test_optional_does_not_mean_any() -> None:
    """A certificate that is presented must be right, also where none would do."""
    _, server = ends(server_options={"client_certificates": "optional"})
    client = Foreign(STRANGER.leaf())
    client.talk(server)
    assert type(server.error) is UntrustedChain and not server.established
    assert client.reason == "tlsv1 alert unknown ca"


def test_only_required_or_optional() -> None:
    with pytest.raises(ConfigurationError):
        server_context(SERVER, BOTH, ANY, client_certificates="none")  # type: ignore[arg-type]


def test_tls_1_2_is_refused() -> None:
    _, server = ends()
    client = Foreign(AGENT, version=SSL.TLS1_2_VERSION)
    client.talk(server)
    assert type(server.error) is HandshakeFailed and "unsupported protocol" in str(server.error)
    assert client.reason == "tlsv1 alert protocol version"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "http request"),
        (b"\x16\x03\x01\x00\x05hello", ""),
        (b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000, ""),
        (b"\x00" * 100, ""),
        (bytes(range(256)) * 300, ""),
    ],
    ids=["plain HTTP", "no ClientHello", "a record too long", "zeros", "noise"],
)
@pytest.mark.parametrize("side", [0, 1])
def test_garbage(side: int, data: bytes, says: str) -> None:
    connection = ends()[side]
    with pytest.raises(TrustError):
        connection.handshake()
        connection.output()
        connection.receive(data)
        connection.handshake()
    assert type(connection.error) in (HandshakeFailed, HandshakeRefused)
    if side == 1:
        assert says in str(connection.error)


def test_eof_in_the_handshake() -> None:
    client, server = ends()
    client.handshake()
    server.receive(client.output()[:100])
    assert server.handshake() is False
    server.receive_eof()
    with pytest.raises(HandshakeFailed):
        server.handshake()


# Failing closed.


def test_a_judge_that_breaks_refuses() -> None:
    def judge(_: list[bytes]) -> Any:
        raise ZeroDivisionError("a defect")

    client, _ = ends()
    server = Connection(take(SERVER, server_side=True, certificate_required=True), judge)
    shake(client, server)
    assert type(server.error) is HandshakeFailed and "ZeroDivisionError" in str(server.error)
    assert type(client.error) is HandshakeRefused


def test_a_judge_that_was_not_asked_refuses() -> None:
    """Whatever may go wrong in OpenSSL or in the binding: a certificate that was not judged is not accepted."""
    present = take(SERVER, server_side=True, certificate_required=True)
    present.openssl.set_verify(SSL.VERIFY_PEER, lambda *_: True)  # OpenSSL accepts whatever comes
    for judged in (None, "another"):
        client, _ = ends()
        server = Connection(present, lambda _: pytest.fail("asked"))
        if judged:
            server.peer = established(client=FORGE.leaf("/second"))[1].peer
        shake(client, server)
        assert type(server.error) is UntrustedChain and not server.established
        assert server.peer is None


def test_a_required_certificate_that_openssl_forgot_refuses() -> None:
    present = take(SERVER, server_side=True, certificate_required=True)
    present.openssl.set_verify(SSL.VERIFY_NONE)
    client, _ = ends()
    server = Connection(present, lambda _: pytest.fail("asked"))
    shake(client, server)
    assert type(server.error) is NoPeerCertificate and not server.established


def test_errors_of_others_do_not_break_a_connection() -> None:
    """An OpenSSL error that somebody left on this thread is not this connection's (SSL_get_error(3))."""

    def poison() -> None:
        assert lib.BIO_new_file(b"/nowhere", b"r") == connection_module._ffi.NULL
        assert lib.ERR_peek_error() != 0

    client, server = ends()
    poison()
    assert client.handshake() is False
    server.receive(client.output())
    poison()
    assert server.handshake() is False
    assert shake(client, server) == (None, None)
    poison()
    assert server.read() is None
    poison()
    assert client.write(b"hello") == 5
    server.receive(client.output())
    poison()
    assert server.read() == b"hello"
    poison()
    assert server.close() is False


def test_reload_in_the_middle_of_a_handshake() -> None:
    """A peer that was judged by the old trust does not slip through between the sweep and the end."""
    client, server = ends()
    client.handshake()
    server.receive(client.output())
    server.handshake()
    client.receive(server.output())
    client.handshake()
    finished = client.output()
    context = server.contexts[1]  # type: ignore[attr-defined]
    judge = context.judge

    def slow(chain: Any, trust: Any) -> Any:
        peer = judge(chain, trust)
        context.judge = judge
        context.reload(authorize=exactly("spiffe://fleet.example/nobody"))  # between the judgement and its record
        return peer

    context.judge = slow
    server.receive(finished)
    with pytest.raises(PeerNotAllowed):
        server.handshake()
    assert not server.established and server.peer is None
    with pytest.raises(PeerNotAllowed):
        server.read()


def test_a_resumed_session_is_refused() -> None:
    """Nothing offers a session; should OpenSSL resume one all the same, the connection is killed."""
    present = take(SERVER, server_side=True, certificate_required=True)
    context = server_context(SERVER, BOTH, ANY)
    server = Connection(present, lambda chain: context.judge(chain, context.trust))
    client, _ = ends()
    original = connection_module._lib
    try:
        connection_module._lib = _Resumed(original)
        shake(client, server)
    finally:
        connection_module._lib = original
    assert type(server.error) is HandshakeFailed and "resumed" in str(server.error)


class _Resumed:
    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return (lambda _: 1) if name == "SSL_session_reused" else getattr(self._lib, name)


# Data.


def test_large_data_both_ways() -> None:
    client, server = established()
    sent = bytes(range(256)) * 4096 * 3
    for here, there in ((client, server), (server, client)):
        assert here.write(memoryview(sent)) == len(sent)
        there.receive(here.output())
        got = bytearray()
        while (part := there.read(65536)) is not None:
            got += part
        assert bytes(got) == sent
        assert there.pending() == 0 and there.drained


def test_pending_is_never_zero_while_a_record_waits() -> None:
    """uvloop stops reading when this is 0: a record that OpenSSL holds must not wait for the next packet."""
    client, server = established()
    for _ in range(5):
        client.write(b"x" * 10)
    server.receive(client.output())
    for _ in range(5):
        assert server.pending() > 0
        assert server.read() == b"x" * 10
    assert server.read() is None
    assert server.pending() == 0


def test_after_a_read_it_is_known_whether_more_waits() -> None:
    client, server = established()
    for text in (b"one", b"two", b"three"):
        client.write(text)
    data = client.output()
    server.receive(data[:-5])
    assert (server.read(), server.drained) == (b"one", False)
    assert (server.read(), server.drained) == (b"two", False)  # there is a part of the next
    assert (server.read(), server.drained) == (None, True)
    server.receive(data[-5:])
    assert (server.read(3), server.drained) == (b"thr", False)
    assert (server.read(), server.drained) == (b"ee", True)
    client.write(b"last")
    server.receive(client.output())
    server.receive_eof()
    assert (server.read(), server.drained) == (b"last", False)  # the end, too, is to be read
    with pytest.raises(TransportError):
        server.read()


@contextlib.contextmanager
def updating(server_side: bool) -> Iterator[tuple[Connection, Connection, KeyUpdates]]:
    """Two ends; the first sends KeyUpdates to the second."""
    contexts = server_context(SERVER, BOTH, ANY), client_context(AGENT, BOTH, ANY)
    sender, receiver = contexts if server_side else contexts[::-1]
    updates = KeyUpdates(sender)
    here, there = sender.connection(), receiver.connection()
    assert shake(*((there, here) if server_side else (here, there))) == (None, None)
    there.read()  # a server's tickets
    updates.records(0, before=2 if server_side else 0)
    yield here, there, updates


FROM = pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])


@FROM
@pytest.mark.parametrize("asking", [True, False], ids=["asking", "telling"])
def test_a_flood_of_key_updates_ends_the_connection(server_side: bool, asking: bool) -> None:
    """However much comes at once, OpenSSL is not given more of it than the bound and a slice."""
    bound = MAX_BARREN_BYTES_OF_A_SERVER if server_side else MAX_BARREN_BYTES
    with updating(server_side) as (_, there, updates):
        there.receive(updates.records(10_000, asking=asking))
        with pytest.raises(TransportError, match=f"at most {bound} in a row") as caught:
            there.read()
        assert type(caught.value) is TransportError and there.error is caught.value
        answered = len(there.output()) // 27
        assert answered <= (bound + SLICE_BYTES) // 27 if asking else not answered
        with pytest.raises(TransportError):
            there.read()


@FROM
def test_key_updates_between_data_are_welcome(server_side: bool) -> None:
    """Each after the other, and in all more than would be borne without data; with a large record behind them."""
    with updating(server_side) as (_, there, updates):
        got = b""
        for data in (b"a", b"b" * RECORD_BYTES) * 4:
            there.receive(updates.records(200, asking=False) + updates.records(1, data=data))
            while (part := there.read()) is not None:
                got += part
        assert got == (b"a" + b"b" * RECORD_BYTES) * 4


@pytest.mark.parametrize("polite", [True, False])
def test_what_came_before_the_end_is_read_before_it(polite: bool) -> None:
    client, server = established()
    client.write(b"x" * 300_000)
    if polite:
        client.close()
    server.receive(client.output())
    server.receive_eof()
    got = b""
    while len(got) < 300_000:
        got += server.read(1000) or pytest.fail("nothing")
    if polite:
        assert server.read() == b"" and server.close()
    else:
        with pytest.raises(TransportError, match="cut"):
            server.read()


def test_what_comes_behind_our_goodbye_is_worked_through() -> None:
    with updating(server_side=False) as (_, there, updates):
        there.receive(updates.records(500, asking=False) + b"\x17\x03\x03\x00\x13")
        assert there.close() is False  # says its own
        assert there.close() is False and there.drained


def test_tampered_record() -> None:
    client, server = established()
    client.write(b"pay 10")
    data = bytearray(client.output())
    data[-1] ^= 1
    server.receive(bytes(data))
    with pytest.raises(TransportError, match="broken"):
        server.read()
    client.receive(server.output())
    with pytest.raises(HandshakeRefused, match="bad_record_mac"):
        client.read()


def test_an_alert_in_the_middle_is_no_refusal() -> None:
    """Only before the first byte does an alert mean that our certificate was refused."""
    client, server = established()
    server.write(b"answer")
    client.receive(server.output())
    assert client.read() == b"answer"
    server.receive(b"\x17\x03\x03\x00\x20" + b"\x00" * 32)
    with pytest.raises(TransportError):
        server.read()
    client.receive(server.output())
    with pytest.raises(TransportError) as caught:
        client.read()
    assert type(caught.value) is TransportError and "bad_record_mac" in str(caught.value)


def test_close_is_seen_as_such_and_a_cut_is_not() -> None:
    client, server = established()
    assert client.close() is False
    server.receive(client.output())
    assert server.read() == b""
    assert server.close() is True
    client, server = established()
    server.receive_eof()
    with pytest.raises(TransportError, match="cut"):
        server.read()


def test_distrusted_without_a_hook_is_dead() -> None:
    _, server = established()
    server.distrust(CertificateRevoked("revoked"))
    with pytest.raises(CertificateRevoked):
        server.read()
    with pytest.raises(CertificateRevoked):
        server.write(b"x")


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("localhost", b"localhost"),
        (b"agent.example", b"agent.example"),
        ("b\u00fccher.example", b"xn--bcher-kva.example"),
        ("127.0.0.1", None),
        ("::1", None),
        (None, None),
    ],
)
def test_server_name(name: Any, sent: bytes | None) -> None:
    client, server = established(name=name)
    assert server._ssl.get_servername() == sent
    assert client.server_name == (name.decode() if isinstance(name, bytes) else name)


def test_certificates_are_verified_at_the_time_of_the_clock() -> None:
    later = datetime.now(UTC) + 48 * HOUR
    client, server = ends(server_options={"clock": lambda: later})
    shake(client, server)
    assert type(server.error) is CertificateExpired


def test_no_crls_is_no_revocation_check() -> None:
    established(server_options={"crls": RevocationLists()})


@pytest.mark.parametrize("server_judges", [True, False])
def test_the_judge_speaks_first_and_once(server_judges: bool) -> None:
    """Of the whole chain, before OpenSSL has spent anything on its signatures."""
    asked: list[list[bytes]] = []
    client, server = ends()
    judging, judged = (server, client) if server_judges else (client, server)
    judge = judging._judge

    def record(chain: list[bytes]) -> Any:
        asked.append(chain)
        return judge(chain)

    judging._judge = record
    assert shake(client, server) == (None, None)
    assert asked == [judged.credentials.chain_der] and len(asked[0]) == 2


def test_a_strangers_chain_is_not_verified_before_it_is_refused() -> None:
    """RSA keys with huge exponents: 11 KB that would keep OpenSSL busy for the time of fifty handshakes."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = rsa.generate_private_key(65537, 3072)
    heavy = rsa.RSAPublicNumbers((1 << 2999) | 1, signer.public_key().public_numbers().n).public_key()

    def certificate(name: str, issuer: str, public_key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key,
            4711,
            NOW - HOUR,
            NOW + HOUR,
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(signer, hashes.SHA256())

    authority = x509.BasicConstraints(ca=True, path_length=None)
    chain = [certificate("0", "0", heavy, authority)]
    chain += [certificate(str(n), str(n - 1), heavy, authority) for n in range(1, 7)]
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(AGENT_ID)])
    chain.append(certificate("agent", "6", key.public_key(), uri))

    def refused_in(credentials: tuple[x509.Certificate, ...]) -> float:
        present = SSL.Context(SSL.TLS_CLIENT_METHOD)
        present.use_certificate(credentials[0])
        for other in credentials[1:]:
            present.add_extra_chain_cert(other)
        present.use_privatekey(key)
        client = SSL.Connection(present, None)
        client.set_connect_state()
        server = ends()[1]
        with pytest.raises(SSL.WantReadError):
            client.do_handshake()
        server.receive(client.bio_read(65536))
        server.handshake()
        client.bio_write(server.output())
        client.do_handshake()
        server.receive(client.bio_read(65536))
        started = time.thread_time()
        with pytest.raises(PeerError):
            server.handshake()
        return time.thread_time() - started

    light = min(refused_in((chain[-1],)) for _ in range(3))
    assert min(refused_in(tuple(reversed(chain))) for _ in range(3)) < light + 0.01


GROUPS = {
    "X25519MLKEM768": True,
    "X25519": True,
    "secp256r1": True,
    "secp384r1": True,
    "secp521r1": False,
    "X448": False,
    "ffdhe2048": False,
    "ffdhe3072": False,
    "X448:X25519": True,
}


@pytest.mark.parametrize("offered", GROUPS)
def test_a_client_cannot_choose_a_key_exchange_that_costs_the_server_much(offered: str) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate(AGENT.certificate)
    for certificate in AGENT.chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(AGENT.private_key)
    assert lib.SSL_CTX_set1_curves_list(context._context, offered.encode())
    client, server = SSL.Connection(context, None), ends()[1]
    client.set_connect_state()
    for _ in range(4):
        with contextlib.suppress(SSL.WantReadError, SSL.Error):
            client.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            server.receive(client.bio_read(65536))
        with contextlib.suppress(TrustError):
            server.handshake()
        if answer := server.output():
            client.bio_write(answer)
    assert server.established == GROUPS[offered]
    if GROUPS[offered]:
        assert server.group.lower() == offered.split(":")[-1].lower()
    else:
        assert type(server.error) is HandshakeFailed and "no suitable key share" in str(server.error)


def test_another_connection_in_the_middle_of_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a signal handler or a finalizer: what one connection has decrypted is never another's."""
    (client, server), (other_client, other_server) = established(), established()
    server.write(b"ours")
    other_server.write(b"another agent's")
    client.receive(server.output())
    other_client.receive(other_server.output())
    inside: list[bytes | None] = []

    class Library:
        """OpenSSL, but that somebody comes in between once a call has come back."""

        def __getattr__(self, name: str) -> Any:
            real = getattr(real_lib, name)
            if name not in ("SSL_read", "BIO_read"):
                return real

            def call(*arguments: Any) -> Any:
                result = real(*arguments)
                if name == "SSL_read" and not inside:
                    inside.append(None)
                    inside.append(other_client.read())
                if name == "BIO_read" and len(inside) == 2:
                    inside.append(None)
                    other_server.write(b"more of another's")
                    inside.append(other_server.output())
                return result

            return call

    real_lib = connection_module._lib
    monkeypatch.setattr(connection_module, "_lib", Library())
    assert client.read() == b"ours"
    client.write(b"answer")
    server.receive(client.output())
    assert server.read() == b"answer"
    assert inside[1] == b"another agent's"
    other_client.receive(inside[3])  # type: ignore[arg-type]
    assert other_client.read() == b"more of another's"
