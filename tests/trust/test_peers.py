"""`PeerVerifier`: what it returns, what it remembers, what it forgets. The attacks are in `tests/attacks`."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import crypto

import trust.peers
from tests.forge import HOUR, NOW, Forge, spiffe
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.errors import (
    BundleError,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ConfigurationError,
    IdentityError,
    MalformedCertificate,
    PeerError,
    RevocationUnknown,
    UnknownTrustDomain,
    UntrustedChain,
)
from trust.identity import AgentID, PeerIdentity
from trust.peers import MAX_CACHED_CHAIN_BYTES, MAX_CACHED_CHAINS, MAX_CERTIFICATES, PeerVerifier, verify_peer
from trust.sources import Live

FORGE = Forge()
AGENT = FORGE.leaf("/billing")
CHAIN = AGENT.chain_der
SECOND = timedelta(seconds=1)


def verified(verifier: PeerVerifier, *, now: datetime = NOW) -> PeerIdentity:
    return verifier.verify(CHAIN, now=now, usage="client")


# What is returned


def test_the_identity_is_that_of_the_leaf() -> None:
    root = FORGE.root.public_bytes(Encoding.DER)
    superfluous = Forge("other.example").intermediate.public_bytes(Encoding.DER)
    peer = verify_peer([CHAIN[0], root, superfluous, CHAIN[1]], bundles=FORGE.bundles, now=NOW, usage="server")
    leaf = AGENT.certificate
    assert peer == PeerIdentity(
        agent_id=AgentID.parse("spiffe://fleet.example/billing"),
        thumbprint=AGENT.thumbprint,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        chain=tuple(CHAIN),
        public_key=leaf.public_key(),
    )
    assert peer.public_key == AGENT.private_key.public_key()


def test_an_ed25519_agent_below_a_root_without_intermediate() -> None:
    agent = FORGE.leaf("/small", key=ed25519.Ed25519PrivateKey.generate(), issuer=FORGE.root, issuer_key=FORGE.root_key)
    peer = verify_peer(agent.chain_der, bundles=FORGE.bundles, now=NOW, usage="client")
    assert peer.chain == tuple(agent.chain_der)
    assert isinstance(peer.public_key, ed25519.Ed25519PublicKey)


def test_the_longest_chain_that_is_looked_at() -> None:
    peer = verify_peer([CHAIN[0]] + [CHAIN[1]] * (MAX_CERTIFICATES - 1), bundles=FORGE.bundles, now=NOW, usage="client")
    assert peer.chain == tuple(CHAIN)


def test_crls_may_come_as_any_iterable() -> None:
    with pytest.raises(CertificateRevoked):
        verify_peer(CHAIN, bundles=FORGE.bundles, now=NOW, crls=iter(FORGE.crls(AGENT).crls), usage="client")


def test_time_in_another_zone_is_the_same_instant() -> None:
    verifier = PeerVerifier(FORGE.bundles)
    end = AGENT.certificate.not_valid_after_utc.astimezone(timezone(timedelta(hours=9)))
    assert verified(verifier, now=end).serial == AGENT.certificate.serial_number
    with pytest.raises(CertificateExpired):
        verified(verifier, now=end + SECOND)


@pytest.mark.parametrize("remembered", [False, True])
def test_a_time_without_zone_is_refused(remembered: bool) -> None:
    verifier = PeerVerifier(FORGE.bundles)
    if remembered:
        verified(verifier)
    with pytest.raises(IdentityError):
        verified(verifier, now=NOW.replace(tzinfo=None))


def test_an_unknown_usage_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ConfigurationError):
        PeerVerifier(FORGE.bundles).verify(CHAIN, now=NOW, usage="any")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["fleet.json", {}, TrustBundles], ids=["path", "dict", "class"])
def test_what_are_no_bundles_and_no_lists_is_told_at_once(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^bundles: got .*, expected .*TrustBundles\.load\(path\)"):
        PeerVerifier(given)
    with pytest.raises(ConfigurationError, match=r"^crls: got .*, expected .*RevocationLists\.load\(path\)"):
        PeerVerifier(FORGE.bundles, given)


# What the messages say


def test_expiry_names_the_certificate_and_shows_both_clocks() -> None:
    now = datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    with pytest.raises(CertificateExpired) as caught:
        verified(PeerVerifier(FORGE.bundles), now=now)
    assert "2099-01-02 03:04:05Z by our clock" in str(caught.value)
    assert f"not after {NOW + 240 * HOUR:%Y-%m-%d %H:%M:%S}Z" in str(caught.value)  # the root is judged first
    assert "spiffe://fleet.example" in str(caught.value)


def test_a_clock_that_is_behind_is_shown() -> None:
    with pytest.raises(CertificateNotYetValid) as caught:
        verified(PeerVerifier(FORGE.bundles), now=NOW - 2 * HOUR)
    assert f"{NOW - 2 * HOUR:%Y-%m-%d %H:%M:%S}Z by our clock" in str(caught.value)
    assert f"not before {NOW - HOUR:%Y-%m-%d %H:%M:%S}Z" in str(caught.value)


def test_an_unknown_trust_domain_is_shown_beside_the_known_ones() -> None:
    empty = TrustBundle(trust_domain="empty.example", roots=())
    bundles = TrustBundles.of(Forge("a.example").bundle, Forge("b.example").bundle, empty)
    with pytest.raises(UnknownTrustDomain, match=r"got fleet\.example, expected a\.example or b\.example;"):
        verify_peer(CHAIN, bundles=bundles, now=NOW, usage="client")


def test_a_root_that_only_openssl_cannot_read_is_a_mistake_in_the_bundle() -> None:
    pattern = b"\x0c\x12fleet.example root"
    root = FORGE.root.public_bytes(Encoding.DER)
    assert pattern in root
    odd = x509.load_der_x509_certificate(root.replace(pattern, b"\x1a" + pattern[1:]))  # VisibleString
    bundles = TrustBundles.of(TrustBundle(trust_domain=FORGE.domain, roots=(odd,)))
    with pytest.raises(BundleError, match=r"a root of fleet\.example"):
        verify_peer(CHAIN, bundles=bundles, now=NOW, usage="client")


# What is remembered


def test_a_chain_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = PeerVerifier(FORGE.bundles, FORGE.crls())
    first = verified(verifier)
    monkeypatch.setattr(trust.peers.Certificate, "read", lambda der: pytest.fail("parsed again"))
    copies = [bytes(bytearray(der)) for der in CHAIN]
    assert verifier.verify(copies, now=NOW + HOUR, usage="client") is first


def test_a_remembered_chain_is_remembered_for_one_usage_and_exact_bytes() -> None:
    verifier = PeerVerifier(FORGE.bundles)
    client_only = FORGE.leaf("/client", eku=[x509.ExtendedKeyUsageOID.CLIENT_AUTH]).chain_der
    verifier.verify(client_only, now=NOW, usage="client")
    with pytest.raises(PeerError):
        verifier.verify(client_only, now=NOW, usage="server")
    with pytest.raises(MalformedCertificate):  # the same bytes, otherwise divided
        verifier.verify([b"".join(client_only)], now=NOW, usage="client")
    with pytest.raises(UntrustedChain):
        verifier.verify(client_only[:1], now=NOW, usage="client")


@pytest.mark.parametrize("part", ["leaf", "intermediate", "root"])
def test_validity_of_every_certificate_is_judged_again(part: str) -> None:
    start, end = NOW - HOUR / 2, NOW + 2 * HOUR

    def limits(of: str) -> dict[str, datetime]:
        return {"not_before": start, "not_after": end} if of == part else {}

    forge = Forge()
    root = forge.ca("r", forge.root_key, None, forge.root_key, pathlen=1, **limits("root"))
    middle = forge.ca("m", forge.key, root, forge.root_key, pathlen=0, **limits("intermediate"))
    agent = forge.leaf(issuer=middle, **limits("leaf"))
    chain = [agent.chain_der[0], middle.public_bytes(Encoding.DER)]
    verifier = PeerVerifier(TrustBundles.of(TrustBundle(trust_domain=forge.domain, roots=(root,))))
    peer = verifier.verify(chain, now=NOW, usage="client")
    assert verifier.verify(chain, now=start, usage="client") is peer
    assert verifier.verify(chain, now=end, usage="client") is peer
    with pytest.raises(CertificateExpired):
        verifier.verify(chain, now=end + SECOND, usage="client")
    with pytest.raises(CertificateNotYetValid):
        verifier.verify(chain, now=start - SECOND, usage="client")


def test_a_remembered_path_that_expired_gives_way_to_another() -> None:
    """A root was renewed with the same key: both are in the bundle, and the old one expires first."""
    old = FORGE.ca("fleet.example root", FORGE.root_key, None, FORGE.root_key, pathlen=1, not_after=NOW + HOUR)
    verifier = PeerVerifier(TrustBundles.of(TrustBundle(trust_domain=FORGE.domain, roots=(old, FORGE.root))))
    for minutes in (0, 59, 61, 300):
        assert verified(verifier, now=NOW + timedelta(minutes=minutes)).thumbprint == AGENT.thumbprint


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust.peers, "MAX_CACHED_CHAINS", 3)
    verifier = PeerVerifier(FORGE.bundles)
    chains = [FORGE.leaf(f"/agent-{n}").chain_der for n in range(5)]
    for chain in chains:
        verifier.verify(chain, now=NOW, usage="client")
    assert [key[1] for key in verifier._snapshot.paths] == [chain[0] for chain in chains[2:]]
    assert MAX_CACHED_CHAINS == 1024


def superfluous(count: int) -> list[bytes]:
    return [Forge(f"other-{n}.example").root.public_bytes(Encoding.DER) for n in range(count)]


def test_nobody_can_push_the_others_out_with_superfluous_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trust.peers.MAX_CACHED_CHAINS", 3)
    verifier = PeerVerifier(FORGE.bundles)
    verified(verifier)
    remembered = dict(verifier._snapshot.paths)
    other = FORGE.leaf("/other").chain_der
    root = FORGE.root.public_bytes(Encoding.DER)
    chains = [[*other, extra] for extra in superfluous(4)]
    chains += [[*other, *other], [*other, root, root], [*other, other[0]]]
    for chain in chains:
        assert verifier.verify(chain, now=NOW, usage="client").agent_id.path == "/other"
    assert verifier._snapshot.paths == remembered
    for chain in (other, [*other, root]):
        verifier.verify(chain, now=NOW, usage="client")
    assert len(verifier._snapshot.paths) == 3, "without any, also with the root, it is remembered as usual"


def test_a_large_chain_is_verified_and_not_remembered() -> None:
    def with_names(count: int) -> list[bytes]:
        names = [spiffe("spiffe://fleet.example/large"), *(x509.DNSName(f"{n:060}.example") for n in range(count))]
        return FORGE.leaf("/large", sans=names).chain_der

    verifier = PeerVerifier(FORGE.bundles)
    for count, remembered in ((210, 1), (222, 1)):
        chain = with_names(count)
        assert (sum(map(len, chain)) <= MAX_CACHED_CHAIN_BYTES) == (count == 210)
        verifier.verify(chain, now=NOW, usage="client")
        assert len(verifier._snapshot.paths) == remembered
    assert MAX_CACHED_CHAIN_BYTES * MAX_CACHED_CHAINS <= 16 << 20


# What is forgotten


def test_a_removed_root_and_a_removed_domain_are_noticed_at_once() -> None:
    bundles = Live(FORGE.bundles)
    verifier = PeerVerifier(bundles)
    verified(verifier)
    bundles.replace(Forge().bundles)  # another root for the same domain
    with pytest.raises(UntrustedChain):
        verified(verifier)
    bundles.replace(TrustBundles.of(TrustBundle(trust_domain=FORGE.domain, roots=())))
    with pytest.raises(UnknownTrustDomain):
        verified(verifier)
    bundles.replace(TrustBundles.of())
    with pytest.raises(UnknownTrustDomain):
        verified(verifier)
    bundles.replace(FORGE.bundles)
    verified(verifier)


def test_a_revocation_is_noticed_at_once_and_so_is_its_end() -> None:
    crls = Live(FORGE.crls())
    verifier = PeerVerifier(FORGE.bundles, crls)
    verified(verifier)
    crls.replace(FORGE.crls(AGENT))
    for _ in range(2):
        with pytest.raises(CertificateRevoked):
            verified(verifier)
    crls.replace(FORGE.crls())
    verified(verifier)
    crls.replace(RevocationLists())
    verified(verifier)


def test_a_remembered_chain_is_refused_once_its_crl_is_stale() -> None:
    verifier = PeerVerifier(FORGE.bundles, FORGE.crls(next_update=NOW + HOUR))
    verified(verifier, now=NOW + HOUR)
    with pytest.raises(RevocationUnknown) as caught:
        verified(verifier, now=NOW + HOUR + SECOND)
    assert f"to {NOW + HOUR:%Y-%m-%d %H:%M:%S}Z" in str(caught.value)
    verified(verifier, now=NOW + HOUR)


def test_nothing_is_prepared_anew_while_the_sources_stay_the_same() -> None:
    crls = Live(FORGE.crls())
    verifier = PeerVerifier(FORGE.bundles, crls)
    verified(verifier)
    before = verifier._snapshot
    verified(verifier)
    assert verifier._snapshot is before
    crls.replace(RevocationLists.of(crls.current().crls))  # equal, and another object
    verified(verifier)
    assert verifier._snapshot is not before


def test_threads_see_what_the_sources_say_when_they_ask() -> None:
    """One thread changes both sources and must see its own change; others keep preparing and remembering."""
    other = Forge()
    bundles, crls = Live(FORGE.bundles), Live(FORGE.crls())
    verifier = PeerVerifier(bundles, crls)
    stop = threading.Event()
    surprises: list[BaseException] = []

    def hammer() -> None:
        while not stop.is_set():
            try:
                verified(verifier)
            except (UntrustedChain, CertificateRevoked, RevocationUnknown):
                pass
            except BaseException as error:
                surprises.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            crls.replace(FORGE.crls(AGENT))
            with pytest.raises(CertificateRevoked):
                verified(verifier)
            bundles.replace(other.bundles)
            with pytest.raises(UntrustedChain):
                verified(verifier)
            bundles.replace(FORGE.bundles)
            crls.replace(FORGE.crls())
            verified(verifier)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert surprises == []


def test_a_snapshot_prepared_by_another_thread_meanwhile_is_taken() -> None:
    bundles = Live(FORGE.bundles)
    verifier = PeerVerifier(bundles)
    bundles.replace(Forge("other.example").bundles)
    prepared = verifier._current_snapshot()
    stale = PeerVerifier(FORGE.bundles)._snapshot

    class Racing:
        """The lock, taken after another thread has finished."""

        def __enter__(self) -> None:
            verifier._snapshot = prepared

        def __exit__(self, *_: object) -> None: ...

    verifier._snapshot, verifier._lock = stale, Racing()  # type: ignore[assignment]
    assert verifier._current_snapshot() is prepared


# Cost, and what is left behind


def test_a_remembered_verdict_builds_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = PeerVerifier(FORGE.bundles, FORGE.crls())
    built: list[object] = []
    build = trust.peers._Snapshot.build
    monkeypatch.setattr(trust.peers._Snapshot, "build", lambda *args: built.append(args) or build(*args))
    for _ in range(3):
        verified(verifier)
    assert len(built) == 1


def test_other_crls_are_asked_about_paths_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand open connections are judged anew when a list changes: without verifying a signature."""
    bundles, crls, leaf = Live(FORGE.bundles), Live(FORGE.crls()), FORGE.leaf()
    built: list[object] = []
    build = trust.peers._Snapshot.build
    monkeypatch.setattr(trust.peers._Snapshot, "build", lambda *args: built.append(args) or build(*args))
    verifier = PeerVerifier(bundles, crls)

    def judge(verifier: PeerVerifier) -> None:
        verifier.verify(leaf.chain_der, now=NOW, usage="client")

    judge(verifier)
    crls.replace(RevocationLists())
    judge(verifier)
    crls.replace(FORGE.crls(leaf))
    for _ in range(2):
        with pytest.raises(CertificateRevoked):
            judge(verifier)
    judge(PeerVerifier(bundles, FORGE.crls(), previous=verifier))
    assert len(built) == 1
    bundles.replace(TrustBundles.of(FORGE.bundle))  # other bundles: nothing is known any more
    crls.replace(FORGE.crls())
    judge(verifier)
    judge(PeerVerifier(FORGE.bundles, previous=verifier))
    assert len(built) == 3


def test_a_failed_verification_leaves_no_error_behind_in_openssl() -> None:
    def errors_of_a_failure() -> list[object]:
        """What pyOpenSSL reports for one small mistake: all that is in this thread's error queue then."""
        with pytest.raises(crypto.Error) as caught:
            crypto.load_certificate(crypto.FILETYPE_ASN1, b"")
        return list(caught.value.args[0])

    usual = errors_of_a_failure()
    altered = CHAIN[0][:-1] + bytes([CHAIN[0][-1] ^ 1])
    with pytest.raises(UntrustedChain):
        verify_peer([altered, CHAIN[1]], bundles=FORGE.bundles, now=NOW, usage="client")
    assert errors_of_a_failure() == usual


# Hostile bytes

KNOWN_EXTENSIONS = [
    *("2.5.29.9", "2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.18", "2.5.29.19", "2.5.29.20", "2.5.29.30"),
    *("2.5.29.31", "2.5.29.32", "2.5.29.33", "2.5.29.35", "2.5.29.36", "2.5.29.37", "2.5.29.46", "2.5.29.54"),
    *("2.5.29.56", "1.3.6.1.5.5.7.1.1", "1.3.6.1.5.5.7.1.11", "1.3.6.1.5.5.7.1.24", "1.3.6.1.4.1.11129.2.4.2"),
    *("1.3.6.1.5.5.7.1.14", "1.3.6.1.5.5.7.48.1.5", "2.16.840.1.113730.1.1", "1.3.6.1.4.1.311.21.7"),
]


def judge(chain: list[bytes]) -> None:
    """A verdict, or a `PeerError`; any other exception is a way to crash a receiver."""
    with contextlib.suppress(PeerError):
        verify_peer(chain, bundles=FORGE.bundles, now=NOW, crls=FORGE.crls(), usage="client")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data())
def test_altered_bytes_are_judged(data: st.DataObject) -> None:
    chain = [bytearray(der) for der in CHAIN]
    for _ in range(data.draw(st.integers(1, 3))):
        victim = chain[data.draw(st.integers(0, 1))]
        position = data.draw(st.integers(0, len(victim) - 1))
        replaced = data.draw(st.integers(0, 4))
        victim[position : position + replaced] = data.draw(st.binary(max_size=4))
    judge([bytes(der) for der in chain])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.sampled_from(KNOWN_EXTENSIONS), st.binary(max_size=40), st.booleans(), st.booleans())
def test_extensions_of_any_content_under_a_true_signature_are_judged(
    oid: str, content: bytes, critical: bool, in_leaf: bool
) -> None:
    fuzzed = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content)
    if in_leaf:
        judge([with_extension(AGENT.certificate, FORGE.key, fuzzed, critical), CHAIN[1]])
    else:
        judge([CHAIN[0], with_extension(FORGE.intermediate, FORGE.root_key, fuzzed, critical)])


def with_extension(
    model: x509.Certificate, key: ec.EllipticCurvePrivateKey, extension: x509.UnrecognizedExtension, critical: bool
) -> bytes:
    """The same certificate with one extension more, or another in its place."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(model.subject)
        .issuer_name(model.issuer)
        .public_key(model.public_key())
        .serial_number(model.serial_number)
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
        .add_extension(extension, critical)
    )
    for other in model.extensions:
        if other.oid != extension.oid:
            builder = builder.add_extension(other.value, other.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_are_judged(chain: list[bytes]) -> None:
    judge(chain)
