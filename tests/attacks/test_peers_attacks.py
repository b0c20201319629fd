"""Attacks on the peer's certificate chain: one valid chain, one mutation a row, the error that must refuse it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from tests.forge import HOUR, NOW, Forge, _usage, spiffe
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    CertificateRevoked,
    ChainTooLong,
    MalformedCertificate,
    NameConstraintViolated,
    NoPeerCertificate,
    NoSpiffeID,
    NotAnAgentCertificate,
    PeerError,
    RevocationUnknown,
    SeveralSpiffeIDs,
    UnknownTrustDomain,
    UntrustedChain,
    WeakKey,
    WrongExtendedKeyUsage,
    WrongKeyUsage,
)
from trust.peers import PeerVerifier, Usage, verify_peer

HERE = Forge("fleet.example")
THERE = Forge("other.example")
BOTH = TrustBundles.of(HERE.bundle, THERE.bundle)
DAY = timedelta(days=1)

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
ENDED = {"this_update": NOW - DAY, "next_update": NOW - timedelta(seconds=1)}
DISTRIBUTION_POINT = x509.CRLDistributionPoints(
    [x509.DistributionPoint([spiffe("http://ca.fleet.example/crl")], None, None, None)]
)
NO_REV_AVAIL = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")

Extensions = list[tuple[x509.ExtensionType, bool]]


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


VALID = HERE.leaf("/billing")
LEAF, INTERMEDIATE = VALID.chain_der
ROOT = der(HERE.root)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the verifier is given; each default is part of the one valid case."""

    chain: list[bytes] = field(default_factory=lambda: [LEAF, INTERMEDIATE])
    bundles: TrustBundles = BOTH
    crls: RevocationLists = field(default_factory=RevocationLists)
    now: datetime = NOW
    usage: Usage = "client"


def certificate(
    name: str | None,
    key: Any,
    extensions: Extensions,
    *,
    issuer: x509.Certificate | None = None,
    signer: Any,
    algorithm: hashes.HashAlgorithm | None = None,
    lifetime: timedelta = DAY,
    key_identifiers: bool = True,
) -> x509.Certificate:
    """A certificate with exactly these extensions beside the key identifiers, with this common name or no subject."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if key_identifiers:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    own_hash = isinstance(signer, ed25519.Ed25519PrivateKey)
    return builder.sign(signer, None if own_hash else algorithm or hashes.SHA256())


CA: Extensions = [(x509.BasicConstraints(True, 0), True), (_usage(key_cert_sign=True, crl_sign=True), True)]


def leaf(agent: str = "/billing", **changes: object) -> Case:
    return Case(chain=HERE.leaf(agent, **changes).chain_der)  # type: ignore[arg-type]


def below(
    extensions: Extensions = CA,
    *,
    algorithm: hashes.HashAlgorithm | None = None,
    names: tuple[x509.GeneralName, ...] = (x509.DNSName("localhost"),),
    key: Any = None,
    key_identifiers: bool = True,
) -> Case:
    """A leaf, with these names beside its SPIFFE ID, below another intermediate, which has these extensions."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = certificate(
        "ca",
        key,
        extensions,
        issuer=HERE.root,
        signer=HERE.root_key,
        algorithm=algorithm,
        key_identifiers=key_identifiers,
    )
    sans = [spiffe("spiffe://fleet.example/billing"), *names]
    agent: Extensions = [
        (x509.SubjectAlternativeName(sans), False),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([CLIENT_AUTH]), False),
    ]
    made = certificate("agent", ec.generate_private_key(ec.SECP256R1()), agent, issuer=issuer, signer=key)
    return Case(chain=[der(made), der(issuer)])


def unknown(critical: bool) -> Extensions:
    return [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"), critical)]


def with_root(**changes: object) -> Case:
    """Another trusted root of the domain, an intermediate and a leaf below it."""
    forge = Forge()
    root = forge.ca("root", forge.root_key, None, forge.root_key, **({"pathlen": 1} | changes))  # type: ignore[arg-type]
    middle = forge.ca("middle", forge.key, root, forge.root_key, pathlen=0)
    return Case(
        chain=[forge.leaf(issuer=middle).chain_der[0], der(middle)],
        bundles=TrustBundles.of(TrustBundle(trust_domain=forge.domain, roots=(root,))),
    )


def below_expired_intermediate() -> Case:
    key = ec.generate_private_key(ec.SECP256R1())
    old = HERE.ca("old", key, HERE.root, HERE.root_key, pathlen=0, not_before=NOW - 9 * DAY, not_after=NOW - HOUR)
    return Case(chain=[HERE.leaf(issuer=old, issuer_key=key).chain_der[0], der(old)])


def below_a_leaf() -> Case:
    """An agent uses its own certificate as a CA, in the name of another agent of its domain."""
    attacker = HERE.leaf("/attacker")
    forged = HERE.leaf("/billing", issuer=attacker.certificate, issuer_key=attacker.private_key)
    return Case(chain=[forged.chain_der[0], *attacker.chain_der])


def self_signed(*, in_bundle: bool = False) -> Case:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([spiffe("spiffe://fleet.example/billing")])
    purposes = x509.ExtendedKeyUsage([CLIENT_AUTH])
    usage = _usage(digital_signature=True)
    own = certificate("me", key, [(names, False), (usage, True), (purposes, False)], signer=key)
    roots = (HERE.root, own) if in_bundle else (HERE.root,)
    return Case(chain=[der(own)], bundles=TrustBundles.of(TrustBundle(trust_domain="fleet.example", roots=roots)))


def cross_signed(agent: str) -> Case:
    """The intermediate of fleet.example, cross-signed by the root of other.example; both domains are trusted."""
    own_id = x509.SubjectAlternativeName([spiffe("spiffe://fleet.example")])
    crossed = certificate(
        "fleet.example intermediate", HERE.key, [*CA, (own_id, False)], issuer=THERE.root, signer=THERE.root_key
    )
    return Case(chain=[HERE.leaf(agent).chain_der[0], der(crossed)])


def with_sha1(target: str) -> Case:
    signed = {"leaf": (VALID.certificate, HERE.key), "intermediate": (HERE.intermediate, HERE.root_key)}
    weak = crypto.X509.from_cryptography(signed[target][0])
    with pytest.deprecated_call():  # `cryptography` no longer signs with SHA-1
        weak.sign(crypto.PKey.from_cryptography_key(signed[target][1]), "sha1")
    weak_der = crypto.dump_certificate(crypto.FILETYPE_ASN1, weak)
    return Case(chain=[weak_der, INTERMEDIATE] if target == "leaf" else [LEAF, weak_der])


def weak_intermediate() -> Case:
    key = rsa.generate_private_key(65537, 1024)
    issuer = certificate("ca", key, CA, issuer=HERE.root, signer=HERE.root_key)
    return Case(chain=[HERE.leaf(issuer=issuer, issuer_key=key).chain_der[0], der(issuer)])


def flipped(data: bytes) -> bytes:
    """The last bit, which belongs to the signature, is another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def with_san(content: bytes, **changes: object) -> Case:
    """A leaf with a subjectAltName of exactly these bytes, which no builder would make."""
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), content)
    data = HERE.leaf(extra=[(extra, False)], **changes).chain_der[0]  # type: ignore[arg-type]
    return Case(chain=[data.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11"), INTERMEDIATE])


def off_curve() -> Case:
    point = VALID.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # type: ignore[union-attr]
    assert point in LEAF
    return Case(chain=[LEAF.replace(point, flipped(point)), INTERMEDIATE])


def nested() -> Case:
    """One intermediate more than the path length of the first allows."""
    key = ec.generate_private_key(ec.SECP256R1())
    second = HERE.ca("second", key, HERE.intermediate, HERE.key, pathlen=None)
    return Case(chain=[HERE.leaf(issuer=second, issuer_key=key).chain_der[0], der(second), INTERMEDIATE])


def constrained(constraint: str, **changes: object) -> Case:
    forge = Forge(constraint=constraint)
    return Case(chain=forge.leaf(**changes).chain_der, bundles=forge.bundles)  # type: ignore[arg-type]


def doubly_constrained() -> Case:
    """The upper CA may name other.example only; the lower one, which it signed, says nothing."""
    key, lower_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = x509.NameConstraints([spiffe("other.example")], None)
    extensions = [(x509.BasicConstraints(True, None), True), CA[1], (names, True)]
    root = certificate("root", HERE.root_key, [(x509.BasicConstraints(True, None), True), CA[1]], signer=HERE.root_key)
    upper = certificate("upper", key, extensions, issuer=root, signer=HERE.root_key)
    lower = certificate("lower", lower_key, CA, issuer=upper, signer=key)
    made = HERE.leaf(issuer=lower, issuer_key=lower_key)
    bundle = TrustBundle(trust_domain="fleet.example", roots=(root,))
    return Case(chain=[made.chain_der[0], der(lower), der(upper)], bundles=TrustBundles.of(bundle))


def named(name: x509.GeneralName) -> Case:
    return leaf(sans=[spiffe("spiffe://fleet.example/billing"), name])


def mailbox(text: str) -> x509.RFC822Name:
    return x509.RFC822Name._init_without_validation(text)


def leaf_by_serial_number() -> Case:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([spiffe("spiffe://fleet.example/billing")])
    issuer = HERE.intermediate
    agent: Extensions = [
        (names, False),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([CLIENT_AUTH]), False),
        (x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(issuer.issuer)], issuer.serial_number), False),
    ]
    made = certificate("agent", key, agent, issuer=issuer, signer=HERE.key, key_identifiers=False)
    return Case(chain=[der(made), INTERMEDIATE])


def below_root(extensions: Extensions) -> Case:
    """A leaf that a root with these extensions has issued."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", key, extensions, signer=key)
    made = HERE.leaf(issuer=root, issuer_key=key)
    bundle = TrustBundle(trust_domain="fleet.example", roots=(root,))
    return Case(chain=[made.chain_der[0]], bundles=TrustBundles.of(bundle))


def without_subject(*, critical: bool) -> Case:
    """A leaf as cert-manager makes it: nothing but its names says whose it is."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([spiffe("spiffe://fleet.example/billing")])
    agent: Extensions = [
        (names, critical),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([CLIENT_AUTH]), False),
    ]
    made = certificate(None, key, agent, issuer=HERE.intermediate, signer=HERE.key)
    return Case(chain=[der(made), INTERMEDIATE])


def in_version_1() -> Case:
    """The valid leaf, but for its version and what only version 3 has."""
    with pytest.deprecated_call():  # `cryptography` makes version 3 only
        made = crypto.X509()
        made.set_version(0)
        made.set_serial_number(1)
        made.set_issuer(crypto.X509.from_cryptography(HERE.intermediate).get_subject())
        made.set_notBefore(b"20260101000000Z")
        made.set_notAfter(b"20360101000000Z")
        made.set_pubkey(crypto.PKey.from_cryptography_key(VALID.private_key))
        made.sign(crypto.PKey.from_cryptography_key(HERE.key), "sha256")
    return Case(chain=[crypto.dump_certificate(crypto.FILETYPE_ASN1, made), INTERMEDIATE])


def authorities(count: int, name: str, signer: Any) -> list[tuple[Any, x509.Certificate]]:
    """CAs of one name with a key each, all signed by the same key and issued in that very name."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count)]
    extensions: Extensions = [(x509.BasicConstraints(True, None), True), CA[1]]
    return [(key, certificate(name, key, extensions, signer=signer, key_identifiers=False)) for key in keys]


def no_way_out() -> Case:
    made = authorities(7, "ca", ec.generate_private_key(ec.SECP256R1()))
    key, issuer = made[0]
    return Case(chain=[HERE.leaf(issuer=issuer, issuer_key=key).chain_der[0], *(der(c) for _, c in made)])


def many_ways_out() -> Case:
    made = authorities(7, "fleet.example root", ec.generate_private_key(ec.SECP256R1()))
    key, issuer = made[0]
    return Case(chain=[HERE.leaf(issuer=issuer, issuer_key=key).chain_der[0], *(der(c) for _, c in made)])


def crossed(*, first: str) -> Case:
    """The intermediate has a certificate of the old and one of the new root, as while roots are replaced.

    Only the old root is trusted here. The path by the new one ends nowhere, whichever certificate comes first.
    """
    new_key = ec.generate_private_key(ec.SECP256R1())
    new = certificate("fleet.example root", new_key, [(x509.BasicConstraints(True, None), True), CA[1]], signer=new_key)
    name = "fleet.example intermediate"
    by_new = certificate(name, HERE.key, CA, issuer=new, signer=new_key)
    by_old = certificate(name, HERE.key, CA, issuer=HERE.root, signer=HERE.root_key)
    others = [by_new, by_old] if first == "new" else [by_old, by_new]
    return Case(chain=[LEAF, *map(der, others)])


def beside_one_that_fails(extensions: Extensions) -> Case:
    """Two certificates of one intermediate, the first of which may not be used."""
    name = "fleet.example intermediate"
    bad = certificate(name, HERE.key, extensions, issuer=HERE.root, signer=HERE.root_key)
    return Case(chain=[LEAF, der(bad), INTERMEDIATE])


def exempt(*extra: tuple[x509.ExtensionType, bool], revoked: bool = False, **changes: Any) -> Case:
    made = HERE.leaf(extra=list(extra) or [(NO_REV_AVAIL, False)], **changes)
    crls = HERE.crls(made) if revoked else RevocationLists.of([HERE.crl(HERE.root, HERE.root_key, [])])
    return Case(chain=made.chain_der, crls=crls)


def exempt_and_listed_before() -> Case:
    made = HERE.leaf(extra=[(NO_REV_AVAIL, False)])
    ended = HERE.crl(HERE.intermediate, HERE.key, [made.certificate.serial_number], **ENDED)
    return Case(chain=made.chain_der, crls=RevocationLists.of([ended, HERE.crl(HERE.root, HERE.root_key, [])]))


def delta(revoked: Credentials) -> x509.CertificateRevocationList:
    """What has been revoked since the first CRL."""
    entry = x509.RevokedCertificateBuilder(revoked.certificate.serial_number, NOW).build()
    builder = x509.CertificateRevocationListBuilder(HERE.intermediate.subject, NOW, NOW + HOUR, [], [entry])
    return builder.add_extension(x509.DeltaCRLIndicator(1), True).sign(HERE.key, hashes.SHA256())


def exempt_intermediate() -> Case:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = certificate("ca", key, [*CA, (NO_REV_AVAIL, False)], issuer=HERE.root, signer=HERE.root_key)
    made = HERE.leaf(issuer=issuer, issuer_key=key)
    return Case(chain=[made.chain_der[0], der(issuer)], crls=RevocationLists.of([HERE.crl(issuer, key, [])]))


HOST = (x509.DNSName("billing.fleet.example"),)
WILDCARD = (x509.DNSName("*.FLEET.example"),)
BY_SERIAL_NUMBER = (
    x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(HERE.root.subject)], HERE.root.serial_number),
    False,
)
EC_PUBLIC_KEY = bytes.fromhex("2a8648ce3d0201")  # 1.2.840.10045.2.1
VERSION = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is v3
EMPTY_NAME_CONSTRAINTS: Extensions = [
    (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.30"), b"\x30\x00"), True)
]

ATTACKS: dict[str, tuple[Callable[[], Case], type[PeerError]]] = {
    # (1) bounds and parsing
    "no certificate": (lambda: Case(chain=[]), NoPeerCertificate),
    "nine certificates": (lambda: Case(chain=[LEAF, *[INTERMEDIATE] * 8]), ChainTooLong),
    "twenty certificates": (lambda: Case(chain=[LEAF] * 20), ChainTooLong),
    "an empty certificate": (lambda: Case(chain=[b""]), MalformedCertificate),
    "a certificate of 16 KiB and one byte": (lambda: Case(chain=[LEAF.ljust(16_385, b"\0")]), MalformedCertificate),
    "bytes after the leaf": (lambda: Case(chain=[LEAF + b"\0", INTERMEDIATE]), MalformedCertificate),
    "bytes after an intermediate": (lambda: Case(chain=[LEAF, INTERMEDIATE + LEAF]), MalformedCertificate),
    "leaf cut short": (lambda: Case(chain=[LEAF[:-1], INTERMEDIATE]), MalformedCertificate),
    "rubbish beside a valid path": (lambda: Case(chain=[LEAF, INTERMEDIATE, b"rubbish"]), MalformedCertificate),
    "PEM for DER": (lambda: Case(chain=[VALID.chain_pem]), MalformedCertificate),
    "SAN twice": (lambda: with_san(b"\x30\x00"), MalformedCertificate),
    "a SAN that is no list of names": (lambda: with_san(b"\x05\x00", sans=None), MalformedCertificate),
    "an empty SAN": (lambda: with_san(b"\x30\x00", sans=None), NoSpiffeID),
    "a name of a kind that nobody uses": (lambda: with_san(b"\x30\x02\xa3\x00", sans=None), MalformedCertificate),
    "a SAN that is not ASCII": (lambda: Case(chain=[LEAF.replace(b"/billing", b"/b\xfflling")]), MalformedCertificate),
    "a key that is no point of its curve": (off_curve, MalformedCertificate),
    "a key of an unknown algorithm": (
        lambda: Case(chain=[LEAF.replace(EC_PUBLIC_KEY, EC_PUBLIC_KEY[:-1] + b"\x7f"), INTERMEDIATE]),
        MalformedCertificate,
    ),
    "version 9": (
        lambda: Case(chain=[LEAF.replace(VERSION, VERSION[:-1] + b"\x08"), INTERMEDIATE]),
        MalformedCertificate,
    ),
    "a name of bits": (
        lambda: Case(chain=[LEAF.replace(b"\x0c\x05agent", b"\x03\x05agent"), INTERMEDIATE]),
        MalformedCertificate,
    ),
    "a name that OpenSSL cannot read": (
        lambda: Case(chain=[LEAF.replace(b"\x0c\x05agent", b"\x1a\x05agent"), INTERMEDIATE]),
        MalformedCertificate,
    ),
    "version 1": (in_version_1, MalformedCertificate),
    # (2) the leaf
    "no subject, and names that are not critical": (lambda: without_subject(critical=False), MalformedCertificate),
    "a DNS name with an underscore": (lambda: named(x509.DNSName("a_b.example")), MalformedCertificate),
    "a DNS name that begins with a dot": (lambda: named(x509.DNSName(".fleet.example")), MalformedCertificate),
    "a DNS name that ends with a dot": (lambda: named(x509.DNSName("fleet.example.")), MalformedCertificate),
    "a DNS name that begins with a hyphen": (lambda: named(x509.DNSName("-a.example")), MalformedCertificate),
    "a DNS name with an empty label": (lambda: named(x509.DNSName("a..example")), MalformedCertificate),
    "a DNS name with a long label": (lambda: named(x509.DNSName("a" * 64 + ".example")), MalformedCertificate),
    "a DNS name of 254 characters": (lambda: named(x509.DNSName("a." * 126 + "ab")), MalformedCertificate),
    "a DNS name that is an address": (lambda: named(x509.DNSName("127.0.0.1")), MalformedCertificate),
    "an empty DNS name": (lambda: named(x509.DNSName("")), MalformedCertificate),
    "a wildcard alone": (lambda: named(x509.DNSName("*")), MalformedCertificate),
    "a wildcard in the middle": (lambda: named(x509.DNSName("a.*.example")), MalformedCertificate),
    "a wildcard of two labels": (lambda: named(x509.DNSName("*.*.example")), MalformedCertificate),
    "part of a label as a wildcard": (lambda: named(x509.DNSName("a*.example")), MalformedCertificate),
    "an e-mail name with two @": (lambda: named(mailbox("a@b@fleet.example")), MalformedCertificate),
    "an e-mail name without @": (lambda: named(mailbox("fleet.example")), MalformedCertificate),
    "an e-mail name without host": (lambda: named(mailbox("a@")), MalformedCertificate),
    "a key identifier of the issuer that is none": (leaf_by_serial_number, MalformedCertificate),
    "no SAN": (lambda: leaf(sans=None), NoSpiffeID),
    "DNS names only": (lambda: leaf(sans=[x509.DNSName("billing.fleet.example")]), NoSpiffeID),
    "two SPIFFE IDs": (
        lambda: leaf(sans=[spiffe("spiffe://fleet.example/billing"), spiffe("spiffe://fleet.example/planner")]),
        SeveralSpiffeIDs,
    ),
    "the same SPIFFE ID twice": (lambda: leaf(sans=[spiffe("spiffe://fleet.example/billing")] * 2), SeveralSpiffeIDs),
    "an https URI beside the SPIFFE ID": (
        lambda: leaf(sans=[spiffe("spiffe://fleet.example/billing"), spiffe("https://fleet.example")]),
        SeveralSpiffeIDs,
    ),
    "an https URI": (lambda: leaf(sans=[spiffe("https://fleet.example/billing")]), MalformedCertificate),
    "a SPIFFE ID without path": (lambda: leaf(sans=[spiffe("spiffe://fleet.example")]), MalformedCertificate),
    "a SPIFFE ID with an empty path": (lambda: leaf(sans=[spiffe("spiffe://fleet.example/")]), MalformedCertificate),
    "a trust domain in upper case": (lambda: leaf(sans=[spiffe("spiffe://Fleet.example/a")]), MalformedCertificate),
    "a scheme in upper case": (lambda: leaf(sans=[spiffe("SPIFFE://fleet.example/a")]), MalformedCertificate),
    "a SPIFFE ID with a port": (lambda: leaf(sans=[spiffe("spiffe://fleet.example:1/a")]), MalformedCertificate),
    "a SPIFFE ID with a user": (lambda: leaf(sans=[spiffe("spiffe://a@fleet.example/a")]), MalformedCertificate),
    "a SPIFFE ID with an encoded path": (
        lambda: leaf(sans=[spiffe("spiffe://fleet.example/%61")]),
        MalformedCertificate,
    ),
    "a SPIFFE ID with a NUL": (lambda: leaf(sans=[spiffe("spiffe://fleet.example/a\0b")]), MalformedCertificate),
    "CA as leaf": (lambda: leaf(is_ca=True), CertificateIsCA),
    "the intermediate as leaf": (lambda: Case(chain=[INTERMEDIATE]), CertificateIsCA),
    "the root as leaf": (lambda: Case(chain=[ROOT]), CertificateIsCA),
    "no keyUsage": (lambda: leaf(usage=None), WrongKeyUsage),
    "keyUsage not critical": (
        lambda: leaf(usage=None, extra=[(_usage(digital_signature=True), False)]),
        WrongKeyUsage,
    ),
    "keyCertSign in a leaf": (lambda: leaf(usage=_usage(digital_signature=True, key_cert_sign=True)), WrongKeyUsage),
    "cRLSign in a leaf": (lambda: leaf(usage=_usage(digital_signature=True, crl_sign=True)), WrongKeyUsage),
    "no digitalSignature": (lambda: leaf(usage=_usage(key_encipherment=True)), WrongKeyUsage),
    "no extendedKeyUsage": (lambda: leaf(eku=None), WrongExtendedKeyUsage),
    "a server's certificate for a client": (lambda: leaf(eku=[SERVER_AUTH]), WrongExtendedKeyUsage),
    "a client's certificate for a server": (
        lambda: Case(chain=HERE.leaf(eku=[CLIENT_AUTH]).chain_der, usage="server"),
        WrongExtendedKeyUsage,
    ),
    "any purpose": (lambda: leaf(eku=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), WrongExtendedKeyUsage),
    "code signing": (lambda: leaf(eku=[ExtendedKeyUsageOID.CODE_SIGNING]), WrongExtendedKeyUsage),
    "RSA of 1024 bits": (lambda: leaf(key=rsa.generate_private_key(65537, 1024)), WeakKey),
    "curve P-224": (lambda: leaf(key=ec.generate_private_key(ec.SECP224R1())), WeakKey),
    "curve secp256k1": (lambda: leaf(key=ec.generate_private_key(ec.SECP256K1())), WeakKey),
    "a DSA key": (lambda: leaf(key=dsa.generate_private_key(2048)), WeakKey),
    "an Ed448 key": (lambda: leaf(key=ed448.Ed448PrivateKey.generate()), WeakKey),
    "SHA-1 under the leaf": (lambda: with_sha1("leaf"), WeakKey),
    "SHA-1 under the intermediate": (lambda: with_sha1("intermediate"), WeakKey),
    "SHA-224 under the intermediate": (lambda: below(algorithm=hashes.SHA224()), WeakKey),
    "SHA-3 under the intermediate": (lambda: below(algorithm=hashes.SHA3_256()), WeakKey),
    "an intermediate with RSA of 1024 bits": (weak_intermediate, WeakKey),
    "unknown critical extension in the leaf": (lambda: leaf(extra=unknown(critical=True)), NotAnAgentCertificate),
    "critical policies, which nobody here processes": (
        lambda: leaf(
            extra=[(x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)]), True)]
        ),
        NotAnAgentCertificate,
    ),
    "name constraints in the leaf": (
        lambda: leaf(extra=[(x509.NameConstraints([spiffe("fleet.example")], None), True)]),
        NameConstraintViolated,
    ),
    "empty name constraints in the leaf": (lambda: leaf(extra=EMPTY_NAME_CONSTRAINTS), MalformedCertificate),
    # (3) the trust domain
    "unknown trust domain": (lambda: Case(bundles=THERE.bundles), UnknownTrustDomain),
    "trust domain whose roots were all removed": (
        lambda: Case(bundles=TrustBundles.of(TrustBundle(trust_domain="fleet.example", roots=()), THERE.bundle)),
        UnknownTrustDomain,
    ),
    "no trust domain at all": (lambda: Case(bundles=TrustBundles.of()), UnknownTrustDomain),
    "a subdomain of a trusted domain": (
        lambda: leaf(sans=[spiffe("spiffe://a.fleet.example/billing")]),
        UnknownTrustDomain,
    ),
    # (4) the path
    "an ID of ours from the CA of another trusted domain": (
        lambda: Case(chain=THERE.leaf("spiffe://fleet.example/billing").chain_der),
        UntrustedChain,
    ),
    "the same, with the other domain's root": (
        lambda: Case(chain=[*THERE.leaf("spiffe://fleet.example/billing").chain_der, der(THERE.root)]),
        UntrustedChain,
    ),
    "an ID of another domain from our CA": (
        lambda: Case(chain=HERE.leaf("spiffe://other.example/billing").chain_der),
        UntrustedChain,
    ),
    "a CA with the same names and other keys": (lambda: Case(chain=Forge().leaf().chain_der), UntrustedChain),
    "our intermediate, cross-signed, for their ID": (
        lambda: cross_signed("spiffe://other.example/billing"),
        UntrustedChain,
    ),
    "our ID, with only the path to their root": (lambda: cross_signed("/billing"), UntrustedChain),
    "leaf as CA": (below_a_leaf, UntrustedChain),
    "self-signed leaf": (self_signed, UntrustedChain),
    "self-signed leaf in the bundle": (lambda: self_signed(in_bundle=True), UntrustedChain),
    "intermediate left out": (lambda: Case(chain=[LEAF]), UntrustedChain),
    "only the root with the leaf": (lambda: Case(chain=[LEAF, ROOT]), UntrustedChain),
    "an intermediate in the bundle is no root": (
        lambda: Case(bundles=TrustBundles.of(TrustBundle(trust_domain="fleet.example", roots=(HERE.intermediate,)))),
        UntrustedChain,
    ),
    "signature of the leaf altered": (lambda: Case(chain=[flipped(LEAF), INTERMEDIATE]), UntrustedChain),
    "signature of the intermediate altered": (lambda: Case(chain=[LEAF, flipped(INTERMEDIATE)]), UntrustedChain),
    "SPIFFE ID altered": (lambda: Case(chain=[LEAF.replace(b"/billing", b"/planner"), INTERMEDIATE]), UntrustedChain),
    "path longer than the CA allows": (nested, UntrustedChain),
    "intermediate without basicConstraints": (lambda: below(CA[1:]), UntrustedChain),
    "intermediate with cA false": (
        lambda: below([(x509.BasicConstraints(False, None), True), CA[1]]),
        UntrustedChain,
    ),
    "intermediate without keyUsage": (lambda: below(CA[:1]), UntrustedChain),
    "intermediate without keyCertSign": (lambda: below([CA[0], (_usage(crl_sign=True), True)]), UntrustedChain),
    "RSA of 2050 bits in the intermediate": (
        lambda: below(key=rsa.generate_private_key(65537, 2050)),
        WeakKey,
    ),
    "intermediate for e-mail": (
        lambda: below([*CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)]),
        WrongExtendedKeyUsage,
    ),
    "intermediate of another trust domain": (
        lambda: below([*CA, (x509.SubjectAlternativeName([spiffe("spiffe://other.example")]), False)]),
        UntrustedChain,
    ),
    "intermediate with the ID of an agent": (
        lambda: below([*CA, (x509.SubjectAlternativeName([spiffe("spiffe://fleet.example/ca")]), False)]),
        UntrustedChain,
    ),
    "intermediate with two SPIFFE IDs": (
        lambda: below([*CA, (x509.SubjectAlternativeName([spiffe("spiffe://fleet.example")] * 2), False)]),
        UntrustedChain,
    ),
    "unknown critical extension in the intermediate": (lambda: below([*CA, *unknown(critical=True)]), UntrustedChain),
    "critical policies in the intermediate": (
        lambda: below([*CA, (x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None), True)]),
        UntrustedChain,
    ),
    "critical policies in the root": (
        lambda: below_root(
            [*CA, (x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None), True)]
        ),
        UntrustedChain,
    ),
    "a name outside of the CA's constraint": (lambda: constrained("other.example"), NameConstraintViolated),
    "a host for a constraint on its subdomains": (lambda: constrained(".fleet.example"), NameConstraintViolated),
    "a constraint two CAs up": (doubly_constrained, NameConstraintViolated),
    "a name that is excluded": (
        lambda: below([*CA, (x509.NameConstraints(None, [spiffe("fleet.example")]), True)]),
        NameConstraintViolated,
    ),
    "a DNS name outside of the constraint": (
        lambda: below([*CA, (x509.NameConstraints([x509.DNSName("fleet.example")], None), True)]),
        NameConstraintViolated,
    ),
    "a constraint on names of a kind that is not processed": (
        lambda: below(
            [*CA, (x509.NameConstraints([x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))], None), True)],
            names=(x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),),
        ),
        NameConstraintViolated,
    ),
    "empty name constraints": (lambda: below([*CA, *EMPTY_NAME_CONSTRAINTS]), MalformedCertificate),
    "name constraints that are not critical": (
        lambda: below([*CA, (x509.NameConstraints([x509.DNSName("localhost")], None), False)]),
        UntrustedChain,
    ),
    "a constraint on DNS names that begins with a dot": (
        lambda: below([*CA, (x509.NameConstraints([x509.DNSName(".fleet.example")], None), True)], names=HOST),
        UntrustedChain,
    ),
    "an excluded name that is none": (
        lambda: below([*CA, (x509.NameConstraints(None, [x509.DNSName("a..example")]), True)]),
        UntrustedChain,
    ),
    "a wildcard over a name that is excluded": (
        lambda: below([*CA, (x509.NameConstraints(None, [x509.DNSName("Bank.fleet.example")]), True)], names=WILDCARD),
        NameConstraintViolated,
    ),
    "policies in the intermediate that are not critical": (
        lambda: below([*CA, (x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None), False)]),
        UntrustedChain,
    ),
    "inhibitAnyPolicy that is not critical": (
        lambda: below([*CA, (x509.InhibitAnyPolicy(0), False)]),
        UntrustedChain,
    ),
    "basicConstraints of the intermediate not critical": (
        lambda: below([(x509.BasicConstraints(True, 0), False), CA[1]]),
        UntrustedChain,
    ),
    "basicConstraints of the root not critical": (
        lambda: below_root([(x509.BasicConstraints(True, None), False), CA[1]]),
        UntrustedChain,
    ),
    "an intermediate that names its issuer by serial number": (
        lambda: below([*CA, BY_SERIAL_NUMBER], key_identifiers=False),
        MalformedCertificate,
    ),
    "an intermediate with a malformed DNS name": (
        lambda: below([*CA, (x509.SubjectAlternativeName([x509.DNSName("a..example")]), False)]),
        MalformedCertificate,
    ),
    "seven CAs of one name, and none of them a root's": (no_way_out, UntrustedChain),
    "seven CAs of one name, and all of them a root's by name": (many_ways_out, UntrustedChain),
    "leaf expired": (lambda: leaf(not_before=NOW - DAY, not_after=NOW - HOUR), CertificateExpired),
    "leaf expired half a second ago": (
        lambda: Case(chain=HERE.leaf(not_after=NOW).chain_der, now=NOW + timedelta(milliseconds=500)),
        CertificateExpired,
    ),
    "leaf not yet valid": (lambda: leaf(not_before=NOW + HOUR), CertificateNotYetValid),
    "intermediate expired": (below_expired_intermediate, CertificateExpired),
    "root expired": (
        lambda: with_root(not_before=NOW - 9 * DAY, not_after=NOW - timedelta(seconds=1)),
        CertificateExpired,
    ),
    "root not yet valid": (lambda: with_root(not_before=NOW + HOUR), CertificateNotYetValid),
    # (5) revocation
    "leaf revoked": (lambda: Case(crls=HERE.crls(VALID)), CertificateRevoked),
    "intermediate revoked": (
        lambda: Case(
            crls=RevocationLists.of(
                [
                    HERE.crl(HERE.intermediate, HERE.key, []),
                    HERE.crl(HERE.root, HERE.root_key, [HERE.intermediate.serial_number]),
                ]
            )
        ),
        CertificateRevoked,
    ),
    "leaf revoked on one of two current CRLs": (
        lambda: Case(crls=RevocationLists.of([*HERE.crls().crls, *HERE.crls(VALID).crls])),
        CertificateRevoked,
    ),
    "CRL of the intermediate missing": (
        lambda: Case(crls=RevocationLists.of([HERE.crl(HERE.root, HERE.root_key, [])])),
        RevocationUnknown,
    ),
    "CRL of the root missing": (
        lambda: Case(crls=RevocationLists.of([HERE.crl(HERE.intermediate, HERE.key, [])])),
        RevocationUnknown,
    ),
    "CRLs of another domain only": (lambda: Case(crls=THERE.crls()), RevocationUnknown),
    "CRL stale": (
        lambda: Case(crls=HERE.crls(**ENDED)),
        RevocationUnknown,
    ),
    "leaf revoked on a CRL that has ended": (
        lambda: Case(crls=RevocationLists.of([*HERE.crls().crls, *HERE.crls(VALID, **ENDED).crls])),
        CertificateRevoked,
    ),
    "leaf revoked on a CRL from the future": (
        lambda: Case(crls=RevocationLists.of([*HERE.crls().crls, *HERE.crls(VALID, this_update=NOW + HOUR).crls])),
        CertificateRevoked,
    ),
    "leaf revoked on a delta CRL": (
        lambda: Case(crls=RevocationLists.of([*HERE.crls().crls, delta(VALID)])),
        CertificateRevoked,
    ),
    "CRL from the future": (lambda: Case(crls=HERE.crls(this_update=NOW + timedelta(seconds=61))), RevocationUnknown),
    "CRL signed by another key with the same name": (
        lambda: Case(
            crls=RevocationLists.of(
                [HERE.crl(HERE.intermediate, Forge().key, []), HERE.crl(HERE.root, HERE.root_key, [])]
            )
        ),
        RevocationUnknown,
    ),
    "CRL signed by the leaf": (
        lambda: Case(
            crls=RevocationLists.of(
                [
                    HERE.crl(HERE.intermediate, VALID.private_key, []),  # type: ignore[arg-type]
                    HERE.crl(HERE.root, HERE.root_key, []),
                ]
            )
        ),
        RevocationUnknown,
    ),
    "noRevAvail in a revoked leaf": (lambda: exempt(revoked=True), CertificateRevoked),
    "noRevAvail in a leaf that was revoked on a CRL that has ended": (
        exempt_and_listed_before,
        CertificateRevoked,
    ),
    "noRevAvail with another value": (
        lambda: exempt((x509.UnrecognizedExtension(NO_REV_AVAIL.oid, b"xx"), False)),
        RevocationUnknown,
    ),
    "noRevAvail beside CRL distribution points": (
        lambda: exempt((NO_REV_AVAIL, False), (DISTRIBUTION_POINT, False)),
        RevocationUnknown,
    ),
    "noRevAvail in a leaf of a week": (lambda: exempt(not_after=NOW + 7 * DAY), RevocationUnknown),
    "noRevAvail in an intermediate": (exempt_intermediate, RevocationUnknown),
}


ACCEPTED: dict[str, Callable[[], Case]] = {
    "the valid chain": Case,
    "the root included": lambda: Case(chain=[LEAF, INTERMEDIATE, ROOT]),
    "the others in another order": lambda: Case(chain=[LEAF, ROOT, INTERMEDIATE]),
    "a superfluous certificate": lambda: Case(chain=[LEAF, der(THERE.intermediate), INTERMEDIATE]),
    "a certificate twice": lambda: Case(chain=[LEAF, INTERMEDIATE, INTERMEDIATE, LEAF]),
    "a server": lambda: Case(usage="server"),
    "an unknown extension that is not critical": lambda: leaf(extra=unknown(critical=False)),
    "no basicConstraints in the leaf": lambda: leaf(is_ca=None),
    "P-384": lambda: leaf(key=ec.generate_private_key(ec.SECP384R1())),
    "P-521": lambda: leaf(key=ec.generate_private_key(ec.SECP521R1())),
    "RSA of 2048 bits": lambda: leaf(key=rsa.generate_private_key(65537, 2048)),
    "an intermediate without SPIFFE ID": below,
    "an intermediate for TLS": lambda: below([*CA, (x509.ExtendedKeyUsage([SERVER_AUTH, CLIENT_AUTH]), False)]),
    "an intermediate for any purpose": lambda: below(
        [*CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)]
    ),
    "an Ed25519 CA": lambda: below(key=ed25519.Ed25519PrivateKey.generate()),
    "an RSA CA": lambda: below(key=rsa.generate_private_key(65537, 2048)),
    "a name inside of the constraint": lambda: constrained("fleet.example"),
    "a wildcard beside a name that is excluded": lambda: below(
        [*CA, (x509.NameConstraints(None, [x509.DNSName("bank.other.example")]), True)], names=WILDCARD
    ),
    "a wildcard, and a constraint on URIs": lambda: below(
        [*CA, (x509.NameConstraints(None, [spiffe("bank.fleet.example")]), True)], names=WILDCARD
    ),
    "a DNS constraint on every name": lambda: below(
        [*CA, (x509.NameConstraints([x509.DNSName("")], None), True)], names=HOST
    ),
    "an e-mail name": lambda: named(x509.RFC822Name("a.b+c@fleet.example")),
    "a DNS name of 253 characters": lambda: named(x509.DNSName("a." * 126 + "b")),
    "no subject": lambda: without_subject(critical=True),
    "an intermediate of two roots, the foreign one first": lambda: crossed(first="new"),
    "an intermediate of two roots, the trusted one first": lambda: crossed(first="old"),
    "an intermediate for e-mail beside one for TLS": lambda: beside_one_that_fails(
        [*CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)]
    ),
    "an intermediate for other names beside one for ours": lambda: beside_one_that_fails(
        [*CA, (x509.NameConstraints([spiffe("other.example")], None), True)]
    ),
    "a CA that is none beside one that is": lambda: beside_one_that_fails(
        [(x509.BasicConstraints(False, None), True), CA[1]]
    ),
    "the last second": lambda: Case(now=VALID.certificate.not_valid_after_utc),
    "the first second": lambda: Case(now=VALID.certificate.not_valid_before_utc),
    "CRLs that do not list it": lambda: Case(crls=HERE.crls(HERE.leaf())),
    "a CRL of a clock one minute ahead": lambda: Case(crls=HERE.crls(this_update=NOW + timedelta(seconds=60))),
    "noRevAvail in the leaf": exempt,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(name: str) -> None:
    make, expected = ATTACKS[name]
    case = make()
    verifier = PeerVerifier(case.bundles, case.crls)
    for _ in range(2):  # a refusal is not remembered as anything else
        with pytest.raises(PeerError) as caught:
            verifier.verify(case.chain, now=case.now, usage=case.usage)
        assert type(caught.value) is expected, caught.value


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_variant_is_accepted(name: str) -> None:
    case = ACCEPTED[name]()
    peer = verify_peer(case.chain, bundles=case.bundles, now=case.now, crls=case.crls, usage=case.usage)
    assert str(peer.agent_id) == "spiffe://fleet.example/billing"
    assert ROOT not in peer.chain
    assert peer.chain[0] == case.chain[0]
