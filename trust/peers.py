"""Who is on the other end: a presented certificate chain becomes a `PeerIdentity`, or is refused.

Pure: bytes, trust bundles, CRLs and a time go in. Paths are built and verified by OpenSSL's `X509Store`; the SPIFFE
rules, and what OpenSSL is lenient about, are checked here. Trust is looked up by trust domain: a chain is verified
against the roots of the domain that its leaf names and no others, so that the CA of one domain cannot speak for
another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import crypto
from OpenSSL.SSL import X509VerificationCodes as Codes

from trust.bundles import BundleSource, RevocationLists, RevocationSource, TrustBundles
from trust.certificates import Certificate
from trust.errors import (
    BundleError,
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    ChainTooLong,
    ConfigurationError,
    MalformedCertificate,
    NameConstraintViolated,
    NoPeerCertificate,
    NotAnAgentCertificate,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)
from trust.identity import AgentID, PeerIdentity, thumbprint, utc
from trust.revocation import RevocationAnswer, RevocationIndex

MAX_CERTIFICATES = 8  # presented: a leaf, its intermediates (one or two in practice) and perhaps the root
MAX_CACHED_CHAINS = 1024  # a chain that fell out is verified again in under a millisecond
MAX_CACHED_CHAIN_BYTES = 8192  # three certificates with RSA keys; the whole cache then pins no more than 8 MiB of DER

Usage = Literal["client", "server"]  # what the peer is: the side of the connection that it speaks for

_PURPOSES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}

# The critical extensions that are processed, by OpenSSL or here. OpenSSL alone lets more of them pass unprocessed.
_UNDERSTOOD = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.NAME_CONSTRAINTS,
)

_NAME_CONSTRAINT_CODES = (
    Codes.ERR_PERMITTED_VIOLATION,
    Codes.ERR_EXCLUDED_VIOLATION,
    Codes.ERR_SUBTREE_MINMAX,
    Codes.ERR_UNSUPPORTED_CONSTRAINT_TYPE,
    Codes.ERR_UNSUPPORTED_CONSTRAINT_SYNTAX,
    Codes.ERR_UNSUPPORTED_NAME_SYNTAX,
)


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

    Args:
        bundles: the roots of each trusted domain. A domain that is missing or has no roots is not trusted. A root is
            a self-signed CA certificate: a chain never ends at an intermediate or at a leaf in a bundle.
        crls: without any CRL, revocation is not checked. With one or more, every certificate below the root needs a
            current CRL of its issuer, but for a short-lived leaf with noRevAvail (RFC 9608).
    """

    def __init__(self, bundles: BundleSource, crls: RevocationSource = RevocationLists()) -> None:  # noqa: B008
        self._bundles = bundles
        self._crls = crls
        self._lock = threading.Lock()
        self._snapshot = _Snapshot(bundles.current(), RevocationIndex(crls.current()))

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
        # (5) Revocation.
        for answer in path.answers:
            answer.check(now)
        # (6) Every check has passed.
        return path.peer

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
                revocation = snapshot.revocation
                if revocation.lists is not lists:
                    revocation = RevocationIndex(lists, revocation)
                self._snapshot = snapshot = _Snapshot(bundles, revocation)
            return snapshot

    def _remember(self, snapshot: _Snapshot, key: tuple[str | bytes, ...], path: _Path) -> None:
        with self._lock:
            snapshot.paths.pop(key, None)
            while len(snapshot.paths) >= MAX_CACHED_CHAINS:
                del snapshot.paths[next(iter(snapshot.paths))]  # the one remembered first
            snapshot.paths[key] = path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """A verified path, with all that must be judged again at the next use."""

    peer: PeerIdentity
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
        self._roots: dict[str, tuple[crypto.X509, ...]] = {}

    def build(self, chain_der: Sequence[bytes], now: datetime, usage: Usage) -> _Path:
        """Checks (1) to (4) of `PeerVerifier.verify`."""
        if usage not in _PURPOSES:
            raise ConfigurationError("usage of a peer certificate", got=usage, expected='"client" or "server"')
        # (1) Each certificate is readable, and strong.
        presented = [Certificate.read(der) for der in chain_der]
        # (2) The leaf is an agent's.
        leaf = presented[0]
        agent_id = _agent(leaf, usage)
        # (3) Its trust domain is trusted.
        roots = self._roots_of(agent_id.trust_domain)
        # (4) A path leads to one of the roots of that domain.
        path = _path(presented, roots, now)
        for certificate in path[1:]:
            _check_authority(certificate, agent_id.trust_domain, usage, is_root=certificate is path[-1])
        for certificate in path:
            _check_validity(certificate, now)
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
            valid_from=max(certificate.not_before for certificate in path),
            valid_until=min(certificate.not_after for certificate in path),
            answers=self.revocation.answers(path),
            uses_all=len(presented) == len({c.der for c in presented} & {c.der for c in path}),
        )

    def _roots_of(self, domain: str) -> tuple[crypto.X509, ...]:
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
            try:
                roots = self._roots[domain] = tuple(crypto.X509.from_cryptography(root) for root in bundle.roots)
            except crypto.Error as error:
                raise BundleError(f"a root of {domain} cannot be read by OpenSSL", got=error) from None
        return roots


def _agent(leaf: Certificate, usage: Usage) -> AgentID:
    """Check (2): the SPIFFE ID of a leaf that has the profile of an X509-SVID."""
    # X509-SVID section 4.1: a leaf is not a CA.
    constraints = leaf.extension(x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CertificateIsCA("peer presented a CA certificate", got=leaf.name, expected="an agent's certificate")
    # Section 2: exactly one URI SAN, which names an agent.
    agent_id = AgentID.of(leaf.parsed)
    # Section 4.3: keyUsage is critical, has digitalSignature, and neither keyCertSign nor cRLSign.
    key_usage = leaf.extension(x509.KeyUsage)
    if key_usage is None or not leaf.extensions[ExtensionOID.KEY_USAGE].critical:
        raise WrongKeyUsage("peer certificate has no critical keyUsage", got=agent_id, expected="digitalSignature")
    if not key_usage.digital_signature or key_usage.key_cert_sign or key_usage.crl_sign:
        raise WrongKeyUsage(
            "peer certificate has the wrong keyUsage",
            got=agent_id,
            expected="digitalSignature and neither keyCertSign nor cRLSign",
        )
    # Section 4.4 says SHOULD, but SPIRE, Istio and step-ca all issue with both purposes, and a certificate without
    # this extension is good for anything: it is required.
    purposes = leaf.extension(x509.ExtendedKeyUsage)
    if purposes is None or _PURPOSES[usage] not in purposes:
        raise WrongExtendedKeyUsage(
            f"peer certificate is not for a TLS {usage}", got=agent_id, expected=f"{usage}Auth in extendedKeyUsage"
        )
    # RFC 5280 section 4.2.1.10: only a CA certificate has name constraints. OpenSSL accepts them here.
    if leaf.extension(x509.NameConstraints) is not None:
        raise NameConstraintViolated("peer certificate has name constraints", got=agent_id, expected="none in a leaf")
    unknown = _unknown_critical(leaf)
    if unknown:
        raise NotAnAgentCertificate("peer certificate has an unknown critical extension", got=unknown, expected="none")
    return agent_id


def _path(presented: list[Certificate], roots: tuple[crypto.X509, ...], now: datetime) -> tuple[Certificate, ...]:
    """Check (4), OpenSSL's part: the path from the leaf to one of the roots, with the root."""
    try:
        leaf, *others = (crypto.X509.from_cryptography(certificate.parsed) for certificate in presented)
        store = crypto.X509Store()  # made for this call: its time must not be another thread's
        store.set_flags(crypto.X509StoreFlags.X509_STRICT)  # and no partial chains: a path ends at a self-signed root
        store.set_time(now)
        for root in roots:
            store.add_cert(root)
        verified = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        _drain_errors()
        _refuse(error, now)
    except crypto.Error as error:
        raise MalformedCertificate("certificate cannot be read by OpenSSL", got=error) from None
    if len(verified) < 2:
        raise UntrustedChain("peer certificate is its own root", expected="a certificate issued by a CA")
    by_der = {certificate.der: certificate for certificate in presented}
    ders = [crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in verified]
    return tuple(by_der.get(der) or Certificate.read(der) for der in ders)


def _check_authority(certificate: Certificate, trust_domain: str, usage: Usage, *, is_root: bool) -> None:
    """Check (4), our part, for each CA of the path; OpenSSL has checked that it is one."""
    unknown = _unknown_critical(certificate)
    if unknown:
        raise UntrustedChain("CA certificate has an unknown critical extension", got=unknown, expected="none")
    # A CA for other purposes issues for other purposes only, as all large implementations have it.
    purposes = certificate.extension(x509.ExtendedKeyUsage)
    if purposes is not None and not {_PURPOSES[usage], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
        raise WrongExtendedKeyUsage(
            f"CA certificate is not for TLS {usage}s", got=certificate.name, expected=f"{usage}Auth, or no such limit"
        )
    # X509-SVID section 3.2: a signing certificate's SPIFFE ID has no path. Ours is also of the very trust domain,
    # so a CA that another domain cross-signed does not bring its agents along. What a root is for, its bundle says.
    if not is_root and certificate.uris not in ((), (f"spiffe://{trust_domain}",)):
        raise UntrustedChain(
            "intermediate belongs elsewhere", got=", ".join(certificate.uris), expected=f"spiffe://{trust_domain}"
        )


def _check_validity(certificate: Certificate, now: datetime) -> None:
    clock = f"{now:%Y-%m-%d %H:%M:%S}Z by our clock"
    if now > certificate.not_after:
        raise CertificateExpired(
            "certificate has expired",
            got=f"{clock}, for {certificate.name}",
            expected=f"not after {certificate.not_after:%Y-%m-%d %H:%M:%S}Z",
            do="renew it; if it was renewed, compare the clocks of both sides",
        )
    if now < certificate.not_before:
        raise CertificateNotYetValid(
            "certificate is not valid yet",
            got=f"{clock}, for {certificate.name}",
            expected=f"not before {certificate.not_before:%Y-%m-%d %H:%M:%S}Z",
            do="compare the clocks of both sides",
        )


def _unknown_critical(certificate: Certificate) -> str:
    unknown = (e.oid.dotted_string for e in certificate.extensions.values() if e.critical and e.oid not in _UNDERSTOOD)
    return ", ".join(unknown)


def _refuse(error: crypto.X509StoreContextError, now: datetime) -> NoReturn:
    code, depth, message = error.errors
    if code in (Codes.ERR_CERT_HAS_EXPIRED, Codes.ERR_CERT_NOT_YET_VALID):
        _check_validity(Certificate.read(crypto.dump_certificate(crypto.FILETYPE_ASN1, error.certificate)), now)
    if code in _NAME_CONSTRAINT_CODES:
        raise NameConstraintViolated(
            "certificate is outside of what its CA may name", got=message, expected="names that every CA above permits"
        )
    raise UntrustedChain(
        "certificate chain is not trusted",
        got=f"{message}, at depth {depth}",
        expected="a path to a root of the leaf's own trust domain",
    )


def _drain_errors() -> None:
    """Empty this thread's OpenSSL error queue, which a failed verification leaves filled.

    What stays there is reported with the next failure of something else, and up to OpenSSL 3 a TLS operation on
    another connection takes it for its own failure (SSL_get_error(3)). A failing pyOpenSSL call reads the queue to
    its end; nothing public does only that.
    """
    with suppress(crypto.Error):
        crypto.load_certificate(crypto.FILETYPE_ASN1, b"")
