"""What the CA makes, judged by what others wrote (OpenSSL, pkilint) and by the rules of RFC 5280 and X509-SVID."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from pki import keys, list_profiles, policy, profiles, requests
from pki.errors import NameRefused, PolicyRefused
from pki.policy import Approved
from pki.profiles import Issuer, RevokedSerial, Urls
from pki.records import Settings
from tests.pki.conftest import AGENT, DOMAIN, NOW
from tests.pki.judges import lint, needs_openssl, request, verify
from trust.identity import AgentID

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
ROOT_KEY, KEY = keys.generate(), keys.generate()
AGENT_KEY = keys.generate()
URLS = Urls.of(Settings(trust_domain=DOMAIN, public_url="http://pki.fleet.example"))
CRLS_ONLY = Urls(crl_base="http://pki.example")


def make_root(now: datetime = NOW) -> Issuer:
    builder = profiles.root(trust_domain=DOMAIN, public_key=ROOT_KEY.public_key(), serial=1001, now=now)
    return Issuer.of(keys.sign(builder, ROOT_KEY))


def make_intermediate(root: Issuer, now: datetime = NOW, **options: object) -> Issuer:
    builder = profiles.intermediate(
        trust_domain=DOMAIN,
        public_key=KEY.public_key(),
        issuer=root,
        serial=1002,
        now=now,
        **options,  # type: ignore[arg-type]
    )
    return Issuer.of(keys.sign(builder, ROOT_KEY))


ROOT = make_root()
INTERMEDIATE = make_intermediate(ROOT)


def approved(lifetime: timedelta = DAY, **changes: object) -> Approved:
    content: dict[str, object] = {
        "agent_id": AgentID.parse(AGENT),
        "public_key": AGENT_KEY.public_key(),
        "dns_names": ("billing.fleet.example",),
        "ip_addresses": (),
        "lifetime": lifetime,
    }
    return Approved(**{**content, **changes})  # type: ignore[arg-type]


def make_agent(
    lifetime: timedelta = DAY,
    *,
    issuer: Issuer = INTERMEDIATE,
    now: datetime = NOW,
    urls: Urls | None = None,
    shard: int = 0,
    **changes: object,
) -> x509.Certificate:
    content = approved(lifetime, **changes)
    unsigned = profiles.agent(content, issuer=issuer, serial=1003, now=now, urls=urls, shard=shard)
    return keys.sign_agent(unsigned, KEY)[0]


def make_crl(
    revoked: list[RevokedSerial],
    issuer: Issuer = INTERMEDIATE,
    key: ec.EllipticCurvePrivateKey = KEY,
    *,
    number: int = 7,
    **options: object,
) -> x509.CertificateRevocationList:
    builder = list_profiles.revocation_list(revoked, issuer=issuer, number=number, now=NOW, **options)  # type: ignore[arg-type]
    return keys.sign_crl(builder, key)


def make_delta(revoked: list[RevokedSerial], *, shard: int = 0, base_number: int = 7) -> x509.CertificateRevocationList:
    builder = list_profiles.delta_list(
        revoked, issuer=INTERMEDIATE, number=8, base_number=base_number, now=NOW, urls=URLS, shard=shard
    )
    return keys.sign_crl(builder, KEY)


def revoked(serial: int, reason: x509.ReasonFlags = x509.ReasonFlags.superseded) -> RevokedSerial:
    return RevokedSerial(serial=serial, revoked_at=NOW, reason=reason)


def make_ocsp_signer(now: datetime = NOW, issuer: Issuer = INTERMEDIATE) -> x509.Certificate:
    return keys.sign(profiles.ocsp_signer(AGENT_KEY.public_key(), issuer=issuer, serial=1004, now=now), KEY)


def ext(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def has(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bool:
    return any(e.oid == oid for e in certificate.extensions)


def usages(certificate: x509.Certificate) -> set[str]:
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign"]
    return {name for name in names if getattr(usage, name)}


def test_root() -> None:
    root = ROOT.certificate
    assert root.issuer == root.subject
    root.verify_directly_issued_by(root)
    assert ext(root, x509.BasicConstraints).critical
    assert ext(root, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=1)
    assert ext(root, x509.KeyUsage).critical
    assert usages(root) == {"key_cert_sign", "crl_sign"}
    assert not has(root, ExtensionOID.EXTENDED_KEY_USAGE)
    assert list(ext(root, x509.SubjectAlternativeName).value) == [  # type: ignore[call-overload]
        x509.UniformResourceIdentifier("spiffe://fleet.example")
    ]
    assert root.not_valid_before_utc == NOW - profiles.BACKDATE
    assert 365 * DAY <= root.not_valid_after_utc - root.not_valid_before_utc <= 3650 * DAY


def test_intermediate() -> None:
    certificate = INTERMEDIATE.certificate
    certificate.verify_directly_issued_by(ROOT.certificate)
    assert ext(certificate, x509.BasicConstraints).critical
    assert ext(certificate, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert usages(certificate) == {"key_cert_sign", "crl_sign"}
    assert ext(certificate, x509.AuthorityKeyIdentifier).value == ROOT.authority_key
    assert not has(certificate, ExtensionOID.NAME_CONSTRAINTS)
    assert not has(certificate, ExtensionOID.CRL_DISTRIBUTION_POINTS)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://fleet.example"]
    assert 30 * DAY <= certificate.not_valid_after_utc - certificate.not_valid_before_utc <= 90 * DAY


def test_intermediate_never_outlives_its_root() -> None:
    late = make_intermediate(ROOT, now=ROOT.not_after - DAY)
    assert late.not_after == ROOT.not_after


def test_name_constraint_is_a_host_and_critical() -> None:
    constrained = make_intermediate(ROOT, name_constraint=True).certificate
    constraint = constrained.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraint.critical
    assert constraint.value.permitted_subtrees == [x509.UniformResourceIdentifier("fleet.example")]
    assert constraint.value.excluded_subtrees is None


@pytest.mark.parametrize("domain", ["fleet_example", ".fleet.example", "10.0.0.1"])
def test_a_trust_domain_that_is_no_host_cannot_be_a_name_constraint(domain: str) -> None:
    with pytest.raises(PolicyRefused, match="leave the name constraint out"):
        profiles.intermediate(
            trust_domain=domain, public_key=KEY.public_key(), issuer=ROOT, serial=1, now=NOW, name_constraint=True
        )


def test_two_generations_have_different_names() -> None:
    other = keys.generate()
    builder = profiles.root(trust_domain=DOMAIN, public_key=other.public_key(), serial=1, now=NOW)
    assert keys.sign(builder, other).subject != ROOT.certificate.subject


def test_a_long_trust_domain_fits_into_the_names() -> None:
    builder = profiles.root(trust_domain="a" * 255, public_key=ROOT_KEY.public_key(), serial=1, now=NOW)
    root = keys.sign(builder, ROOT_KEY)
    names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://" + "a" * 255]


def test_agent() -> None:
    leaf = make_agent(ip_addresses=tuple(map(policy.ip_address, ("127.0.0.1", "::1"))))
    leaf.verify_directly_issued_by(INTERMEDIATE.certificate)
    names = ext(leaf, x509.SubjectAlternativeName)
    assert names.critical, "RFC 5280 section 4.1.2.6: critical, because the subject is empty"
    assert leaf.subject == x509.Name([])
    assert [str(n.value) for n in names.value] == [AGENT, "billing.fleet.example", "127.0.0.1", "::1"]  # type: ignore[attr-defined]
    assert ext(leaf, x509.BasicConstraints).critical
    assert ext(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert ext(leaf, x509.KeyUsage).critical
    assert usages(leaf) == {"digital_signature"}
    assert set(ext(leaf, x509.ExtendedKeyUsage).value) == {  # type: ignore[call-overload]
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert ext(leaf, x509.AuthorityKeyIdentifier).value == INTERMEDIATE.authority_key
    assert ext(leaf, x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(
        AGENT_KEY.public_key()
    )
    assert leaf.serial_number == 1003
    assert leaf.version is x509.Version.v3
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW - timedelta(minutes=1), NOW + DAY)
    assert len(list(leaf.extensions)) == 6


def crl_urls(certificate: x509.Certificate) -> list[str]:
    if not has(certificate, ExtensionOID.CRL_DISTRIBUTION_POINTS):
        return []
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    return [str(name.value) for point in points for name in point.full_name or ()]


def access(certificate: x509.Certificate) -> dict[str, str]:
    if not has(certificate, ExtensionOID.AUTHORITY_INFORMATION_ACCESS):
        return {}
    found = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    return {entry.access_method._name: str(entry.access_location.value) for entry in found}


CA = "http://pki.fleet.example"
ISSUED_BY = {"caIssuers": f"{CA}/ca/{INTERMEDIATE.key_id}.cer"}


@pytest.mark.parametrize(
    ("lifetime", "urls", "shard", "crl", "aia"),
    [
        (HOUR, None, 0, None, {}),
        (HOUR, CRLS_ONLY, 0, None, {}),
        (HOUR, URLS, 3, None, ISSUED_BY),
        (HOUR + SECOND, None, 0, [], {}),
        (HOUR + SECOND, CRLS_ONLY, 0, [f"http://pki.example/{INTERMEDIATE.key_id}.crl"], {}),
        (HOUR + SECOND, CRLS_ONLY, 12, [f"http://pki.example/{INTERMEDIATE.key_id}-12.crl"], {}),
        (DAY, URLS, 0, [f"{CA}/crl/{INTERMEDIATE.key_id}.crl"], {"OCSP": f"{CA}/ocsp", **ISSUED_BY}),
        (DAY, URLS, 3, [f"{CA}/crl/{INTERMEDIATE.key_id}-3.crl"], {"OCSP": f"{CA}/ocsp", **ISSUED_BY}),
    ],
)
def test_how_revocation_is_asked_for(
    lifetime: timedelta, urls: Urls | None, shard: int, crl: list[str] | None, aia: dict[str, str]
) -> None:
    leaf = make_agent(lifetime, urls=urls, shard=shard)
    assert has(leaf, profiles.NO_REV_AVAIL.oid) == (crl is None), "RFC 9608 section 3: never both"
    assert crl_urls(leaf) == (crl or [])
    assert access(leaf) == aia


def test_where_the_revocation_of_an_intermediate_is_asked_for() -> None:
    intermediate = make_intermediate(ROOT, urls=URLS).certificate
    assert crl_urls(intermediate) == [f"{CA}/crl/{ROOT.key_id}.crl"]
    assert access(intermediate) == {"caIssuers": f"{CA}/ca/{ROOT.key_id}.cer"}


def test_urls_of_the_settings() -> None:
    assert Urls.of(Settings(trust_domain=DOMAIN)) == Urls()
    assert Urls.of(Settings(trust_domain=DOMAIN, crl_base_url="http://lists")) == Urls(crl_base="http://lists")
    assert Urls.of(Settings(trust_domain=DOMAIN, crl_base_url="http://lists", public_url="http://ca")) == Urls(
        crl_base="http://lists", ocsp="http://ca/ocsp", issuers="http://ca/ca"
    )


def test_agent_never_outlives_its_issuer() -> None:
    leaf = make_agent(now=INTERMEDIATE.not_after - HOUR)
    assert leaf.not_valid_after_utc == INTERMEDIATE.not_after


@given(
    lifetime=st.timedeltas(policy.MIN_LIFETIME, policy.MAX_LIFETIME),
    after=st.timedeltas(timedelta(0), profiles.INTERMEDIATE_LIFETIME - timedelta(minutes=2)),
    zone=st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours))),
)
def test_agent_lifetimes(lifetime: timedelta, after: timedelta, zone: timezone) -> None:
    now = (NOW + after).astimezone(zone)
    leaf = make_agent(lifetime, now=now)
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    assert start.microsecond == end.microsecond == 0
    assert now - timedelta(minutes=1, seconds=1) < start <= now - timedelta(minutes=1)
    assert start < end <= INTERMEDIATE.not_after
    assert end <= now.astimezone(UTC) + lifetime
    assert end - start <= timedelta(days=7)


def test_crl() -> None:
    lines = [
        RevokedSerial(serial=5, revoked_at=NOW, reason=x509.ReasonFlags.key_compromise),
        RevokedSerial(serial=6, revoked_at=NOW - DAY, reason=x509.ReasonFlags.unspecified),
    ]
    crl = make_crl(lines)
    assert crl.is_signature_valid(KEY.public_key())
    assert crl.issuer == INTERMEDIATE.certificate.subject
    assert {(e.oid, e.critical) for e in crl.extensions} == {
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.CRL_NUMBER, False),
    }
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    assert crl.last_update_utc <= NOW < (crl.next_update_utc or NOW) <= crl.last_update_utc + timedelta(hours=24)
    assert [(e.serial_number, e.revocation_date_utc) for e in crl] == [(5, NOW), (6, NOW - DAY)]
    assert [[r.value.reason for r in e.extensions] for e in crl] == [  # type: ignore[attr-defined]
        [x509.ReasonFlags.key_compromise],
        [],
    ]


def test_a_signature_is_the_same_each_time() -> None:
    assert make_agent() == make_agent()
    assert make_crl([]) == make_crl([])


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize(
    ("options", "lifetime"),
    [({}, DAY), ({}, HOUR), ({"name_constraint": True, "urls": URLS}, DAY)],
    ids=["default", "short", "constrained"],
)
@needs_openssl
def test_openssl_accepts_the_chain(
    options: dict[str, object], lifetime: timedelta, purpose: str, tmp_path: Path
) -> None:
    issuer = make_intermediate(ROOT, **options)
    leaf = make_agent(lifetime, issuer=issuer, urls=URLS, dns_names=())
    crls = [make_crl([], issuer), make_crl([], ROOT, ROOT_KEY)]
    chain = [leaf, issuer.certificate]
    for lists in ([], crls):
        result = verify(tmp_path, chain, ROOT.certificate, purpose=purpose, crls=lists)
        assert result.returncode == 0, result.stderr


@needs_openssl
def test_openssl_refuses_an_agent_of_another_domain_below_the_name_constraint(tmp_path: Path) -> None:
    issuer = make_intermediate(ROOT, name_constraint=True)
    foreign = AgentID.parse("spiffe://elsewhere.example/billing")
    with pytest.raises(NameRefused):
        make_agent(issuer=issuer, agent_id=foreign)
    leaf = make_agent(issuer=INTERMEDIATE, agent_id=foreign)  # of the same key, and its certificate has no constraint
    result = verify(tmp_path, [leaf, issuer.certificate], ROOT.certificate, purpose="sslclient")
    assert "permitted subtree violation" in result.stderr


@needs_openssl
def test_openssl_sees_the_revocation(tmp_path: Path) -> None:
    leaf = make_agent()
    line = RevokedSerial(serial=leaf.serial_number, revoked_at=NOW, reason=x509.ReasonFlags.superseded)
    crls = [make_crl([line]), make_crl([], ROOT, ROOT_KEY)]
    chain = [leaf, INTERMEDIATE.certificate]
    assert "certificate revoked" in verify(tmp_path, chain, ROOT.certificate, purpose="sslclient", crls=crls).stderr


@pytest.mark.parametrize(
    "certificate",
    [
        ROOT.certificate,
        INTERMEDIATE.certificate,
        make_intermediate(ROOT, name_constraint=True, urls=URLS).certificate,
        make_agent(),
        make_agent(HOUR, ip_addresses=(policy.ip_address("127.0.0.1"),)),
        make_agent(urls=URLS, dns_names=()),
        make_agent(urls=URLS, shard=15),
        make_agent(HOUR, urls=URLS),
        make_ocsp_signer(),
    ],
    ids=["root", "intermediate", "constrained", "agent", "short", "with URLs", "of a shard", "short with URLs", "OCSP"],
)
def test_pkilint_accepts_the_certificate(certificate: x509.Certificate, tmp_path: Path) -> None:
    assert lint(tmp_path, certificate) == []


TWO = [revoked(1, x509.ReasonFlags.unspecified), revoked(2, x509.ReasonFlags.key_compromise)]


@pytest.mark.parametrize(
    "crl",
    [
        make_crl([]),
        make_crl(TWO),
        make_crl(TWO, urls=URLS),
        make_crl(TWO, urls=URLS, shard=3, with_delta=True),
    ],
    ids=["empty", "two", "of shard 0", "of shard 3 with a delta"],
)
def test_pkilint_accepts_the_crl(crl: x509.CertificateRevocationList, tmp_path: Path) -> None:
    assert lint(tmp_path, crl) == []


def test_pkilint_would_object_to_a_bad_profile(tmp_path: Path) -> None:
    """The judge is awake: without an authority key identifier it complains."""
    key = keys.generate()
    name = x509.Name([])
    bad = x509.CertificateBuilder(name, ROOT.certificate.subject, key.public_key(), 1, NOW, NOW + DAY)
    assert lint(tmp_path, keys.sign(bad, ROOT_KEY)) != []


def test_what_a_request_wishes_for_reaches_no_certificate() -> None:
    ca_wish = (x509.BasicConstraints(ca=True, path_length=None), True)
    data = request(
        x509.DNSName("bank.example"), x509.RFC822Name("root@bank.example"), key=AGENT_KEY, extensions=[ca_wish]
    )
    content = policy.approve(
        requests.parse(data), AgentID.parse(AGENT), trust_domain=DOMAIN, dns_names=(), ip_addresses=(), lifetime=DAY
    )
    leaf, _ = keys.sign_agent(profiles.agent(content, issuer=INTERMEDIATE, serial=1, now=NOW), KEY)
    assert list(ext(leaf, x509.SubjectAlternativeName).value) == [x509.UniformResourceIdentifier(AGENT)]  # type: ignore[call-overload]
    assert ext(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
