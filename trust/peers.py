"""Who is on the other end: a presented certificate chain becomes a `PeerIdentity`, or is refused.

Pure: bytes, trust bundles, CRLs and a time go in. `trust.paths` has the rules of every certificate, `trust.revocation`
those of CRLs; the rules of SPIFFE are checked here. Trust is looked up by trust domain: a chain is verified against
the roots of the domain that its leaf names and no others, so that the CA of one domain cannot speak for another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from trust.bundles import BundleSource, RevocationLists, RevocationSource, TrustBundles
from trust.certificates import Certificate
from trust.clock import utc
from trust.errors import (
    ChainTooLong,
    ConfigurationError,
    NoPeerCertificate,
    UnknownTrustDomain,
    UntrustedChain,
    WrongKeyUsage,
    must_have,
)
from trust.identity import AgentID, PeerIdentity, thumbprint
from trust.paths import PURPOSES, Root, build_path, check_end_entity
from trust.paths import Usage as Usage
from trust.revocation import RevocationAnswer, RevocationIndex

MAX_CERTIFICATES = 8  # presented: a leaf, its intermediates (one or two in practice) and perhaps the root
MAX_CACHED_CHAINS = 1024  # a chain that fell out is verified again in under a millisecond
MAX_CACHED_CHAIN_BYTES = 16_384  # two with ML-DSA-87 keys; the whole cache then pins no more than 16 MiB of DER


def verify_peer(
    chain_der: Sequence[bytes],
    *,
    bundles: TrustBundles,
    now: datetime,
    crls: RevocationLists | Iterable[x509.CertificateRevocationList] = (),
    usage: Usage,
) -> PeerIdentity:
    """Verify one chain, once. As `PeerVerifier.verify`, which is the one to keep where there is more than one chain."""
    lists = crls if isinstance(crls, RevocationLists) else RevocationLists.of(crls)
    return PeerVerifier(bundles, lists).verify(chain_der, now=now, usage=usage)


class PeerVerifier:
    """Verifies chains against the current bundles and CRLs; thread-safe, and cheap for a chain seen before.

    Both sources are asked at each call. When one has a new object, everything prepared and remembered is replaced as
    a whole, so no verdict mixes old with new; the first call after a change to large CRLs waits for their indexing.
    Paths depend on the bundles alone: other CRLs are asked about them anew, and no signature is verified again.

    Args:
        bundles: the roots of each trusted domain. A domain that is missing or has no roots is not trusted. A root is
            a self-signed CA certificate: a chain never ends at an intermediate or at a leaf in a bundle.
        crls: without any CRL, revocation is not checked. With one or more, every certificate below the root needs a
            current CRL of its issuer, but for a short-lived leaf with noRevAvail (RFC 9608), and but for domains in
            which the lists do not require one (`RevocationLists.required_in`).
        previous: what it remembers of the same bundles and CRLs is taken over.
    """

    def __init__(
        self,
        bundles: BundleSource,
        crls: RevocationSource = RevocationLists(),  # noqa: B008
        *,
        previous: PeerVerifier | None = None,
    ) -> None:
        must_have("bundles", bundles, "current", expected="TrustBundles", do="use TrustBundles.load(path)")
        must_have("crls", crls, "current", expected="RevocationLists", do="use RevocationLists.load(path)")
        self._bundles = bundles
        self._crls = crls
        self._lock = threading.Lock()
        known = None if previous is None else previous._snapshot
        self._snapshot: _Snapshot = _Snapshot.after(known, bundles.current(), crls.current())

    def verify(self, chain_der: Sequence[bytes], *, now: datetime, usage: Usage) -> PeerIdentity:
        """The identity that a presented chain proves at `now`.

        (1) There are 1 to 8 certificates, each of them small, whole, readable and cryptographically strong.
        (2) The first is the certificate of an agent: X509-SVID sections 2 to 4, RFC 5280 section 4.2.
        (3) The trust domain of its SPIFFE ID has roots.
        (4) A path leads to one of the roots of that domain: signatures, validity at `now`, CA flags, path lengths,
            name constraints, purposes (RFC 5280 section 6.1). The other certificates may come in any order, may
            include the root and may be superfluous; TLS 1.3 allows all three (RFC 8446 section 4.4.2).
        (5) No certificate of the path is revoked (RFC 5280 section 6.3).
        (6) Only then is there an identity.

        Not checked: that the peer holds the private key (TLS and signatures prove that), that it is allowed
        (`trust.authorize`), DNS names. A chain that passed (1) to (4) is remembered if it is small and
        all of it is used; validity and (5) are judged again at every call.

        Args:
            chain_der: DER certificates, the leaf first.
            now: an aware time.
            usage: what the peer is, "client" or "server".

        Raises:
            PeerError: its leaf classes name the check that failed.
            ConfigurationError: `usage` is neither, or the bundle of that trust domain cannot be used.
        """
        now = utc(now)
        path = self._path(chain_der, now, usage)
        # (5) Revocation.
        for answer in path.answers:
            answer.check(now)
        # (6) Every check has passed.
        return path.peer

    def revocation(self, peer: PeerIdentity, *, now: datetime, usage: Usage) -> RevocationFacts:
        """What the CRLs say about the path of a peer that was verified, whichever way. Nobody is refused for it.

        Raises:
            PeerError: checks (1) to (4) of `verify`.
        """
        now = utc(now)
        answers = self._path(peer.chain, now, usage).answers
        crls = {id(crl): crl for answer in answers for crl in answer.current(now)}
        since = [moment for answer in answers if (moment := answer.since()) is not None]
        known = all(answer.current(now) or not answer.required for answer in answers)
        return RevocationFacts(
            crls=tuple(crls.values()),
            known=known and bool(answers),
            revoked_since=min(since, default=None),
            heard=frozenset(id(indexed.crl) for answer in answers for indexed in (*answer.crls, *answer.listing)),
        )

    def _path(self, chain_der: Sequence[bytes], now: datetime, usage: Usage) -> _Path:
        """Checks (1) to (4) of `verify`, or what is remembered of them."""
        # (1) Bounds come before any work on the bytes.
        if not chain_der:
            raise NoPeerCertificate("peer presented no certificate", expected="a certificate chain, the leaf first")
        if len(chain_der) > MAX_CERTIFICATES:
            raise ChainTooLong(
                "certificate chain is too long", got=len(chain_der), expected=f"at most {MAX_CERTIFICATES} certificates"
            )
        snapshot = self._current_snapshot()
        # The key holds the bytes themselves, not a digest of them: nothing else compares equal.
        key = (usage, *chain_der)
        path = snapshot.paths.get(key)
        # A remembered path that is not valid now is built anew, for another path may be.
        if path is None or not path.valid_from <= now <= path.valid_until:
            path = snapshot.build(chain_der, now, usage)
            # With superfluous certificates, one agent could make any number of chains of any size out of its own,
            # and push everybody else's out.
            if path.uses_all and sum(map(len, chain_der)) <= MAX_CACHED_CHAIN_BYTES:
                self._remember(snapshot, key, path)
        return path

    def _current_snapshot(self) -> _Snapshot:
        bundles, lists = self._bundles.current(), self._crls.current()
        snapshot = self._snapshot
        if snapshot.bundles is bundles and snapshot.revocation.lists is lists:
            return snapshot
        with self._lock:
            # Another thread may have prepared it, or something newer: what counts is what the sources say now.
            bundles, lists = self._bundles.current(), self._crls.current()
            snapshot = self._snapshot
            if snapshot.bundles is not bundles or snapshot.revocation.lists is not lists:
                self._snapshot = snapshot = _Snapshot.after(snapshot, bundles, lists)
            return snapshot

    def _remember(self, snapshot: _Snapshot, key: tuple[str | bytes, ...], path: _Path) -> None:
        with self._lock:
            snapshot.paths.pop(key, None)
            while len(snapshot.paths) >= MAX_CACHED_CHAINS:
                del snapshot.paths[next(iter(snapshot.paths))]  # the one remembered first
            snapshot.paths[key] = path


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationFacts:
    """What CRLs say about a path."""

    crls: tuple[x509.CertificateRevocationList, ...]  # that are current, and cover one of its certificates
    known: bool  # there is one for each certificate that needs one
    revoked_since: datetime | None  # the earliest revocation of any of its certificates
    heard: frozenset[int]  # the id() of every CRL that said something about it, current or not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """A verified path, with all that must be judged again at the next use."""

    peer: PeerIdentity
    certificates: tuple[Certificate, ...]  # leaf first, root last
    valid_from: datetime  # within these two, every certificate of the path is valid, the root too
    valid_until: datetime
    answers: tuple[RevocationAnswer, ...]
    uses_all: bool  # each certificate that was presented is in the path, and was presented once


class _Snapshot:
    """One state of bundles and CRLs, and the paths that were verified in it."""

    __slots__ = ("_roots", "bundles", "paths", "revocation")

    def __init__(self, bundles: TrustBundles, revocation: RevocationIndex) -> None:
        self.bundles = bundles
        self.revocation = revocation
        self.paths: dict[tuple[str | bytes, ...], _Path] = {}
        self._roots: dict[str, tuple[Root, ...]] = {}

    @classmethod
    def after(cls, previous: _Snapshot | None, bundles: TrustBundles, lists: RevocationLists) -> _Snapshot:
        """A new state, with what the previous one found out that is true in it as well."""
        if previous is None:
            return cls(bundles, RevocationIndex(lists))
        known = previous.revocation
        snapshot = cls(bundles, known if known.lists is lists else RevocationIndex(lists, known))
        if previous.bundles is bundles:
            snapshot._roots = previous._roots
            snapshot.paths = {key: snapshot.ask(path) for key, path in list(previous.paths.items())}
        return snapshot

    def ask(self, path: _Path) -> _Path:
        """A path of the same bundles, with what the CRLs of this state say about it."""
        domain = path.peer.agent_id.trust_domain
        return replace(path, answers=self.revocation.answers(path.certificates, domain))

    def build(self, chain_der: Sequence[bytes], now: datetime, usage: Usage) -> _Path:
        """Checks (1) to (4) of `PeerVerifier.verify`."""
        if usage not in PURPOSES:
            raise ConfigurationError("usage of a peer certificate", got=usage, expected='"client" or "server"')
        # (1) Each certificate is readable, and strong.
        presented = [Certificate.read(der) for der in chain_der]
        # (2) The leaf is an agent's.
        leaf = presented[0]
        check_end_entity(leaf, usage)
        agent_id = _agent(leaf)
        # (3) Its trust domain is trusted.
        roots = self._roots_of(agent_id.trust_domain)
        # (4) A path leads to one of the roots of that domain.
        path = build_path(presented, roots, now=now, usage=usage)
        for intermediate in path[1:-1]:
            _check_belonging(intermediate, agent_id.trust_domain)
        return _Path(
            peer=PeerIdentity(
                agent_id=agent_id,
                thumbprint=thumbprint(leaf.der),
                serial=leaf.serial,
                not_before=leaf.not_before,
                not_after=leaf.not_after,
                chain=tuple(certificate.der for certificate in path[:-1]),
                public_key=leaf.public_key,
            ),
            certificates=path,
            valid_from=max(certificate.not_before for certificate in path),
            valid_until=min(certificate.not_after for certificate in path),
            answers=self.revocation.answers(path, agent_id.trust_domain),
            uses_all=len(presented) == len({c.der for c in presented} & {c.der for c in path}),
        )

    def _roots_of(self, domain: str) -> tuple[Root, ...]:
        roots = self._roots.get(domain)
        if roots is None:
            bundle = self.bundles.by_domain.get(domain)
            if bundle is None or not bundle.roots:
                raise UnknownTrustDomain(
                    "trust domain is not trusted",
                    got=domain,
                    expected=" or ".join(d for d, b in sorted(self.bundles.by_domain.items()) if b.roots) or "none",
                    do="add its bundle if it should be trusted",
                )
            roots = self._roots[domain] = tuple(Root.of(root, domain) for root in bundle.roots)
        return roots


def _agent(leaf: Certificate) -> AgentID:
    """Check (2): the SPIFFE ID of a leaf that has the profile of an X509-SVID."""
    # Section 2: exactly one URI SAN, which names an agent.
    agent_id = AgentID.of(leaf.parsed)
    # Section 4.3: keyUsage is critical and has digitalSignature.
    key_usage = leaf.extension(x509.KeyUsage)
    if key_usage is None or not leaf.extensions[ExtensionOID.KEY_USAGE].critical:
        raise WrongKeyUsage("peer certificate has no critical keyUsage", got=agent_id, expected="digitalSignature")
    if not key_usage.digital_signature:
        raise WrongKeyUsage("peer certificate has the wrong keyUsage", got=agent_id, expected="digitalSignature")
    return agent_id


def _check_belonging(intermediate: Certificate, trust_domain: str) -> None:
    """X509-SVID section 3.2: a signing certificate's SPIFFE ID has no path.

    Ours is also of the very trust domain, so a CA that another domain cross-signed does not bring its agents along.
    What a root is for, its bundle says.
    """
    if intermediate.uris not in ((), (f"spiffe://{trust_domain}",)):
        raise UntrustedChain(
            "intermediate belongs elsewhere", got=", ".join(intermediate.uris), expected=f"spiffe://{trust_domain}"
        )
