"""From a presented certificate to a root: certification paths as RFC 5280 has them, whoever the certificate is for.

Pure. OpenSSL verifies each path (signatures, validity, CA flags, path lengths, names); which paths there are is found
here, and so is what OpenSSL is lenient about. What makes a certificate an agent's stands in `trust.peers`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import crypto
from OpenSSL.SSL import X509VerificationCodes as Codes

from trust.certificates import UNREADABLE, Certificate
from trust.errors import (
    BundleError,
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    MalformedCertificate,
    NameConstraintViolated,
    NotAnAgentCertificate,
    PeerError,
    UntrustedChain,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)

Usage = Literal["client", "server"]  # what the peer is: the side of the connection that it speaks for

PURPOSES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}

# One path is the rule, two to four while CAs that signed one another are replaced. A peer chooses what it presents,
# and seven CAs of one name make 13,700 paths: the search ends after so many steps, and OpenSSL is asked so often.
MAX_STEPS = 64
MAX_PATHS = 16

# The critical extensions that are processed, by OpenSSL or here. OpenSSL alone lets more of them pass unprocessed.
_UNDERSTOOD = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.NAME_CONSTRAINTS,
)

# RFC 5280 sections 4.2.1.9 to 4.2.1.11 and 4.2.1.14: these are critical in every certificate of a CA.
_ALWAYS_CRITICAL = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.POLICY_CONSTRAINTS,
    ExtensionOID.INHIBIT_ANY_POLICY,
)

_NAME_CONSTRAINT_CODES = (
    Codes.ERR_PERMITTED_VIOLATION,
    Codes.ERR_EXCLUDED_VIOLATION,
    Codes.ERR_SUBTREE_MINMAX,
    Codes.ERR_UNSUPPORTED_CONSTRAINT_TYPE,
    Codes.ERR_UNSUPPORTED_CONSTRAINT_SYNTAX,
    Codes.ERR_UNSUPPORTED_NAME_SYNTAX,
)

# The preferred name syntax of RFC 1034 section 3.5 with RFC 1123 section 2.1, which RFC 5280 section 4.2.1.6 demands.
# A last label of digits would make it an address.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}", re.ASCII)
_LOCAL_PART = re.compile(r"[!-?A-~]{1,64}", re.ASCII)  # visible ASCII but the @
_MAX_DNS_NAME = 253  # RFC 1035 section 2.3.4, in text form


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Root:
    """A root of a bundle, prepared for many paths."""

    der: bytes = field(repr=False)
    subject: x509.Name
    key_id: bytes | None
    openssl: crypto.X509 = field(repr=False)

    @classmethod
    def of(cls, certificate: x509.Certificate, trust_domain: str) -> Root:
        """Prepare a root. Whether it is any good is judged in a path that ends at it.

        Raises:
            BundleError: a part that is needed to find paths to it cannot be read.
        """
        try:
            return cls(
                der=certificate.public_bytes(Encoding.DER),
                subject=certificate.subject,
                key_id=next(
                    (e.value.digest for e in certificate.extensions if isinstance(e.value, x509.SubjectKeyIdentifier)),
                    None,
                ),
                openssl=crypto.X509.from_cryptography(certificate),
            )
        except (*UNREADABLE, crypto.Error) as error:
            raise BundleError(f"a root of {trust_domain} cannot be read", got=error, expected="a certificate") from None


def check_end_entity(leaf: Certificate, usage: Usage) -> None:
    """Refuse a leaf that is none, or is not for TLS. Who it names is not looked at.

    Raises:
        NotAnAgentCertificate: its leaf classes name the rule.
        NameConstraintViolated: the leaf has name constraints.
        MalformedCertificate: a name or a key identifier is not in the form of RFC 5280.
    """
    constraints = leaf.extension(x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CertificateIsCA("peer presented a CA certificate", got=leaf.name, expected="an agent's certificate")
    # X509-SVID section 4.3. RFC 5280 section 4.2.1.3 has the first of the two for whatever is no CA.
    key_usage = leaf.extension(x509.KeyUsage)
    if key_usage is not None and (key_usage.key_cert_sign or key_usage.crl_sign):
        raise WrongKeyUsage(
            "peer certificate has the wrong keyUsage", got=leaf.name, expected="neither keyCertSign nor cRLSign"
        )
    # X509-SVID section 4.4 says SHOULD, but SPIRE, Istio and step-ca all issue with both purposes, and a certificate
    # without this extension is good for anything: it is required.
    purposes = leaf.extension(x509.ExtendedKeyUsage)
    if purposes is None or PURPOSES[usage] not in purposes:
        raise WrongExtendedKeyUsage(
            f"peer certificate is not for a TLS {usage}", got=leaf.name, expected=f"{usage}Auth in extendedKeyUsage"
        )
    # RFC 5280 section 4.2.1.10: only a CA certificate has name constraints. OpenSSL accepts them here.
    if leaf.extension(x509.NameConstraints) is not None:
        raise NameConstraintViolated("peer certificate has name constraints", got=leaf.name, expected="none in a leaf")
    unknown = _unknown_critical(leaf)
    if unknown:
        raise NotAnAgentCertificate("peer certificate has an unknown critical extension", got=unknown, expected="none")
    _check_form(leaf)


def build_path(
    presented: Sequence[Certificate], roots: Sequence[Root], *, now: datetime, usage: Usage
) -> tuple[Certificate, ...]:
    """A valid path from the first certificate to one of the roots, with the root (RFC 5280 section 6.1).

    (a) Issuer names and key identifiers lead from the leaf to a root. The other certificates may come in any order
        and may be superfluous. Where CAs have signed one another there are several paths: the shortest are tried
        first, and one that works is enough (RFC 4158).
    (b) OpenSSL verifies it: signatures, validity at `now`, CA flags and key usage, path lengths, name constraints.
    (c) Each CA is in the form of RFC 5280, is for this usage, and has no critical extension that is not processed.
    (d) No wildcard of the leaf reaches into what a CA excludes.
    (e) Each certificate is valid at `now`.

    Not checked: revocation, and the leaf by itself (`check_end_entity`).

    Args:
        presented: the leaf first.
        roots: trusted for this leaf. A path ends at one of them, and it is self-signed.
        now: an aware UTC time.
        usage: what the leaf is used for.

    Raises:
        PeerError: for the first of the paths, where none is valid; UntrustedChain where there is none.
    """
    first: PeerError | None = None
    # (a) One path after the other.
    for candidate, root in _candidates(presented, roots):
        try:
            # (b) OpenSSL's part.
            path = _verified(candidate, root, now)
            # (c) and (d) Ours.
            for authority in path[1:]:
                _check_authority(authority, usage)
                _check_wildcards(path[0], authority)
            # (e) OpenSSL has compared the times too; this is said again in our own words.
            for certificate in path:
                _check_validity(certificate, now)
            return path
        except PeerError as error:
            first = first or error
    raise first or UntrustedChain(
        "certificate chain is not trusted",
        got=f"no path to a root from {presented[0].name}",
        expected="a path to a root of the leaf's own trust domain",
        do="present the intermediate certificates with the leaf",
    )


def _candidates(
    presented: Sequence[Certificate], roots: Sequence[Root]
) -> Iterator[tuple[tuple[Certificate, ...], Root]]:
    leaf, *others = presented
    partial: deque[tuple[Certificate, ...]] = deque([(leaf,)])
    found = 0
    for _ in range(MAX_STEPS):
        if not partial:
            return
        path = partial.popleft()
        top = path[-1]
        authority = top.extension(x509.AuthorityKeyIdentifier)
        wanted = authority.key_identifier if authority else None
        for root in roots:
            if root.subject == top.issuer and _same(wanted, root.key_id) and root.der != top.der:
                yield path, root
                found += 1
                if found == MAX_PATHS:
                    return
        for other in others:
            own = other.extension(x509.SubjectKeyIdentifier)
            if (
                other.subject == top.issuer
                and _same(wanted, own.digest if own else None)
                # A CA stands in a path once, however many certificates it has.
                and all((c.subject, c.public_key_der) != (other.subject, other.public_key_der) for c in path)
            ):
                partial.append((*path, other))


def _same(wanted: bytes | None, key_id: bytes | None) -> bool:
    return wanted is None or key_id is None or wanted == key_id


def _verified(candidate: tuple[Certificate, ...], root: Root, now: datetime) -> tuple[Certificate, ...]:
    try:
        leaf, *others = (crypto.X509.from_cryptography(certificate.parsed) for certificate in candidate)
        store = crypto.X509Store()  # made for this call: its time must not be another thread's
        store.set_flags(crypto.X509StoreFlags.X509_STRICT)  # and no partial chains: a path ends at a self-signed root
        store.set_time(now)
        store.add_cert(root.openssl)
        verified = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        _drain_errors()
        _refuse(error, now)
    except crypto.Error as error:
        raise MalformedCertificate("certificate cannot be read by OpenSSL", got=error) from None
    by_der = {certificate.der: certificate for certificate in candidate}
    ders = [crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in verified]
    return tuple(by_der.get(der) or _read_root(der) for der in ders)


_read_root = lru_cache(maxsize=64)(Certificate.read)  # nothing but a root of ours was not presented, and they are few


def _check_authority(certificate: Certificate, usage: Usage) -> None:
    unknown = _unknown_critical(certificate)
    if unknown:
        raise UntrustedChain("CA certificate has an unknown critical extension", got=unknown, expected="none")
    for oid in _ALWAYS_CRITICAL:
        extension = certificate.extensions.get(oid)
        if extension is not None and not extension.critical:
            raise UntrustedChain(
                "CA certificate has an extension that has to be critical and is not",
                got=f"{oid.dotted_string} in the certificate of {certificate.name}",
                expected="a CA certificate in the form of RFC 5280 section 4.2.1",
            )
    # A CA for other purposes issues for other purposes only, as all large implementations have it.
    purposes = certificate.extension(x509.ExtendedKeyUsage)
    if purposes is not None and not {PURPOSES[usage], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
        raise WrongExtendedKeyUsage(
            f"CA certificate is not for TLS {usage}s", got=certificate.name, expected=f"{usage}Auth, or no such limit"
        )
    # RFC 5280 section 4.2.1.10 has the leading period for URIs only. OpenSSL takes it for "any host below", others
    # refuse it or ignore it: what a CA may name must not depend on who reads it.
    constraints = certificate.extension(x509.NameConstraints)
    if constraints is not None:
        for name in (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ())):
            if isinstance(name, x509.DNSName) and name.value and not _is_dns_name(name.value):
                raise UntrustedChain(
                    "name constraint is not a DNS name",
                    got=repr(name.value),
                    expected="a host, without wildcard or dot",
                )
    _check_form(certificate)


def _check_wildcards(leaf: Certificate, authority: Certificate) -> None:
    """A wildcard stands for names that it does not equal, so a constraint that it passes may exclude one of them.

    OpenSSL compares the wildcard itself (CVE-2025-61727 is about the same in Go).
    """
    constraints = authority.extension(x509.NameConstraints)
    names = leaf.extension(x509.SubjectAlternativeName)
    if constraints is None or names is None:
        return
    excluded = [n.value.lower() for n in constraints.excluded_subtrees or () if isinstance(n, x509.DNSName)]
    for name in names.get_values_for_type(x509.DNSName):
        if name.startswith("*.") and any(host.endswith(name[1:].lower()) for host in excluded):
            raise NameConstraintViolated(
                "certificate has a wildcard over names that its CA may not name",
                got=name,
                expected=f"no name in {', '.join(excluded)}",
            )


def _check_form(certificate: Certificate) -> None:
    """Rules of RFC 5280 about one certificate by itself that the parser and OpenSSL leave to others."""
    # Section 4.2.1.1. Without it, OpenSSL compares issuer and serial number at best.
    authority = certificate.extension(x509.AuthorityKeyIdentifier)
    if authority is not None and authority.key_identifier is None:
        raise MalformedCertificate(
            "certificate names its issuer without a key identifier", got=certificate.name, expected="keyIdentifier"
        )
    # Section 4.2.1.6: where the subject is empty, the names are critical; and each is in its proper form.
    extension = certificate.extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if extension is None:
        return
    if not extension.critical and not list(certificate.subject):
        raise MalformedCertificate(
            "certificate has no subject, and names that are not critical",
            got=certificate.name,
            expected="a critical subjectAltName",
        )
    assert isinstance(extension.value, x509.SubjectAlternativeName)  # noqa: S101 - what the parser makes of this OID
    for name in extension.value:
        if isinstance(name, x509.DNSName) and not _is_dns_name(name.value.removeprefix("*.")):
            raise MalformedCertificate("certificate has a malformed DNS name", got=repr(name.value), expected="a host")
        if isinstance(name, x509.RFC822Name) and not _is_mailbox(name.value):
            raise MalformedCertificate("certificate has a malformed e-mail name", got=repr(name.value), expected="a@b")


def _is_dns_name(text: str) -> bool:
    return len(text) <= _MAX_DNS_NAME and _DNS_NAME.fullmatch(text) is not None


def _is_mailbox(text: str) -> bool:
    local, _, host = text.partition("@")
    return _LOCAL_PART.fullmatch(local) is not None and _is_dns_name(host)


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
