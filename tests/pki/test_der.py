"""Certificates that are put together are those that the builder of `cryptography` makes, to the last byte."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pki import der, keys, profiles
from pki.policy import Approved
from pki.profiles import NO_REV_AVAIL, Issuer, Urls
from tests.pki.conftest import NOW
from trust.identity import AgentID

KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
CA_KEYS = (KEYS["P-256"], ec.generate_private_key(ec.SECP384R1()))
MAX_SERIAL = (1 << 159) - 1


def _issuer(key: ec.EllipticCurvePrivateKey) -> Issuer:
    # Until the end of the next century: leaves from 2050 on have another form of time.
    builder = profiles.root(
        trust_domain="fleet.example", public_key=key.public_key(), serial=1, now=NOW, lifetime=timedelta(days=60_000)
    )
    return Issuer.of(keys.sign(builder, key))


ISSUERS = [(_issuer(key), key) for key in CA_KEYS]


@pytest.mark.parametrize(
    ("year", "expected"),
    [
        (999, b"\x18\x0f09990203040506Z"),
        (1949, b"\x18\x0f19490203040506Z"),
        (1950, b"\x17\x0d500203040506Z"),
        (2049, b"\x17\x0d490203040506Z"),
        (2050, b"\x18\x0f20500203040506Z"),
    ],
)
def test_how_a_year_is_written(year: int, expected: bytes) -> None:
    """RFC 5280 section 4.1.2.5: of two digits from 50 on are those of the last century."""
    assert der._time(datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)) == expected


def built(
    approved: Approved, issuer: Issuer, key: ec.EllipticCurvePrivateKey, serial: int, now: datetime, urls: Urls
) -> x509.Certificate:
    """The same certificate by the builder."""
    uri = x509.UniformResourceIdentifier
    start = now.replace(microsecond=0) - timedelta(minutes=1)
    end = min(start + timedelta(minutes=1) + approved.lifetime, start + timedelta(days=7), issuer.not_after)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    names = [
        uri(str(approved.agent_id)),
        *map(x509.DNSName, approved.dns_names),
        *map(x509.IPAddress, approved.ip_addresses),
    ]
    builder = x509.CertificateBuilder(
        issuer.certificate.subject, x509.Name([]), approved.public_key, serial, start, end
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        builder.add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage(purposes), False)
        .add_extension(x509.SubjectAlternativeName(names), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(approved.public_key), False)
        .add_extension(issuer.authority_key, False)
    )
    short = approved.lifetime <= timedelta(hours=1)
    if short:
        builder = builder.add_extension(NO_REV_AVAIL, False)
    elif urls.crl_base:
        point = x509.DistributionPoint([uri(f"{urls.crl_base}/{issuer.key_id}-3.crl")], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), False)
    access = []
    if urls.ocsp and not short:
        access.append(x509.AccessDescription(x509.AuthorityInformationAccessOID.OCSP, uri(urls.ocsp)))
    if urls.issuers:
        at = uri(f"{urls.issuers}/{issuer.key_id}.cer")
        access.append(x509.AccessDescription(x509.AuthorityInformationAccessOID.CA_ISSUERS, at))
    if access:
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), False)
    algorithm = hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
    return builder.sign(key, algorithm, ecdsa_deterministic=True)


BASE = Approved(
    agent_id=AgentID.parse("spiffe://fleet.example/billing"),
    public_key=KEYS["P-256"].public_key(),
    dns_names=(),
    ip_addresses=(),
    lifetime=timedelta(hours=24),
)
URL = "http://pki.example"
LABEL = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    segments=st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True), min_size=1, max_size=30),
    key=st.sampled_from(sorted(KEYS)),
    signer=st.sampled_from(ISSUERS),
    names=st.lists(st.builds("{}.example".format, LABEL), max_size=30, unique=True),
    addresses=st.lists(st.ip_addresses(), max_size=2, unique=True),
    serial=st.integers(1, MAX_SERIAL),
    now=st.datetimes(datetime(2024, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    seconds=st.integers(1, 7 * 86400),
    urls=st.builds(Urls, *[], **{n: st.sampled_from([None, f"{URL}/{n}"]) for n in ("crl_base", "ocsp", "issuers")}),
)
def test_what_is_put_together_is_what_the_builder_makes(
    segments: list[str],
    key: str,
    signer: tuple[Issuer, ec.EllipticCurvePrivateKey],
    names: list[str],
    addresses: list[object],
    serial: int,
    now: datetime,
    seconds: int,
    urls: Urls,
) -> None:
    approved = replace(
        BASE,
        agent_id=AgentID.parse("spiffe://fleet.example/" + "/".join(segments)),
        public_key=KEYS[key].public_key(),
        dns_names=tuple(names),
        ip_addresses=tuple(ip_address(str(one)) for one in addresses),
        lifetime=timedelta(seconds=seconds),
    )
    issuer, ca_key = signer
    unsigned = profiles.agent(approved, issuer=issuer, serial=serial, now=now, urls=urls, shard=3)
    ours, encoded = keys.sign_agent(unsigned, ca_key)
    expected = built(approved, issuer, ca_key, serial, now, urls)
    assert ours.public_bytes(Encoding.DER) == encoded == expected.public_bytes(Encoding.DER)
    ours.verify_directly_issued_by(issuer.certificate)


@pytest.mark.parametrize("serial", [0, -1, MAX_SERIAL + 1], ids=["0", "negative", "160 bits"])
def test_a_serial_number_that_no_certificate_may_have(serial: int) -> None:
    issuer, key = ISSUERS[0]
    with pytest.raises(ValueError, match="serial number"):
        keys.sign_agent(profiles.agent(BASE, issuer=issuer, serial=serial, now=NOW), key)


@pytest.mark.parametrize("size", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF])
def test_lengths(size: int) -> None:
    """An octet string of that size, as `cryptography` writes it into an extension's value."""
    key_id = x509.SubjectKeyIdentifier(bytes(size)).public_bytes()  # which is one OCTET STRING
    assert der.tlv(0x04, bytes(size)) == key_id


def test_more_than_64_kib_is_refused() -> None:
    with pytest.raises(OverflowError):
        der.tlv(0x04, bytes(0x10000))


@pytest.mark.parametrize("oid", ["2.5.29.99", "1.3.6.1.5.5.7.1.99", "1.2.840.113549.1.9.14", "2.999.268435456"])
def test_object_identifiers(oid: str) -> None:
    """As `cryptography` reads them back."""
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x00")
    issuer, key = ISSUERS[0]
    unsigned = replace(profiles.agent(BASE, issuer=issuer, serial=5, now=NOW), extensions=der.extension(value))
    (read,) = keys.sign_agent(unsigned, key)[0].extensions
    assert (read.oid.dotted_string, read.critical) == (oid, False)
