"""What each certificate and revocation list of the CA looks like (RFC 5280, SPIFFE X509-SVID).

Pure: the time, the serial number and the public key are arguments, and what comes back is an unsigned builder.
Nothing of a certificate request reaches these functions but a public key and names that `pki.policy` has approved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.errors import NameRefused, PolicyRefused
from pki.policy import Approved, dns_name
from trust.identity import utc

BACKDATE = timedelta(minutes=1)  # a verifier whose clock is a little behind must not refuse a new certificate
ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=90)
MAX_LEAF_VALIDITY = timedelta(days=7)  # from the first second to the last, the backdating included
NO_REVOCATION_UP_TO = timedelta(hours=1)  # a certificate that dies sooner than a CRL travels needs no CRL
CRL_LIFETIME = timedelta(hours=24)
CRL_RETENTION = timedelta(days=7)  # RFC 5280 section 3.3: listed beyond the certificate's own end, then dropped

# RFC 9608: "no revocation information will ever be available"; the value is an ASN.1 NULL.
NO_REV_AVAIL = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A CA certificate with the parts that everything signed by it repeats."""

    certificate: x509.Certificate
    key_id: str  # subject key identifier, lower-case hex
    authority_key: x509.AuthorityKeyIdentifier
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Issuer:
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return cls(
            certificate=certificate,
            key_id=ski.digest.hex(),
            authority_key=x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedSerial:
    """One line of a CRL."""

    serial: int
    revoked_at: datetime
    reason: x509.ReasonFlags


def root(
    *,
    trust_domain: str,
    public_key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    lifetime: timedelta = ROOT_LIFETIME,
) -> x509.CertificateBuilder:
    """A self-issued root: one more CA below it, no EKU, the trust domain's own SPIFFE ID."""
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    name = _ca_name("root", trust_domain, ski)
    start = _whole(now) - BACKDATE
    builder = x509.CertificateBuilder(name, name, public_key, serial, start, start + lifetime)
    return _ca_extensions(builder, trust_domain, ski, pathlen=1)


def intermediate(
    *,
    trust_domain: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    serial: int,
    now: datetime,
    lifetime: timedelta = INTERMEDIATE_LIFETIME,
    name_constraint: bool = False,
    crl_base_url: str | None = None,
) -> x509.CertificateBuilder:
    """A CA that signs agents and no further CA.

    `name_constraint`: agents of this domain only, for verifiers that do not know SPIFFE. RFC 5280 section 4.2.1.10
    constrains the *host* of a URI. Opt-in, because some verifiers refuse every chain that has a URI constraint.

    Raises:
        PolicyRefused: the trust domain is none that a name constraint can express.
    """
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    start = _whole(now) - BACKDATE
    builder = x509.CertificateBuilder(
        issuer.certificate.subject,
        _ca_name("intermediate", trust_domain, ski),
        public_key,
        serial,
        start,
        min(start + lifetime, issuer.not_after),
    )
    builder = _ca_extensions(builder, trust_domain, ski, pathlen=0).add_extension(issuer.authority_key, False)
    if name_constraint:
        host = x509.UniformResourceIdentifier(_constrainable(trust_domain))
        builder = builder.add_extension(x509.NameConstraints([host], None), critical=True)
    if crl_base_url:
        builder = builder.add_extension(_distribution_point(crl_base_url, issuer), critical=False)
    return builder


def agent(
    approved: Approved, *, issuer: Issuer, serial: int, now: datetime, crl_base_url: str | None = None
) -> x509.CertificateBuilder:
    """An agent's leaf: exactly one SPIFFE ID, client and server, signatures only.

    The subject is empty, so that the ID stands in one place only; RFC 5280 section 4.1.2.6 then wants the SAN
    critical. The end is the approved lifetime from `now`, but never more than 7 days after the start, and never
    after the issuer's end.
    """
    moment = _whole(now)
    start = moment - BACKDATE
    end = min(moment + approved.lifetime, start + MAX_LEAF_VALIDITY, issuer.not_after)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(approved.agent_id))]
    names += [x509.DNSName(name) for name in approved.dns_names]
    names += [x509.IPAddress(address) for address in approved.ip_addresses]
    builder = (
        x509.CertificateBuilder(
            issuer.certificate.subject, x509.Name([]), approved.public_key, serial, start, end.replace(microsecond=0)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(_AGENT_USAGES, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(approved.public_key), critical=False)
        .add_extension(issuer.authority_key, critical=False)
    )
    if approved.lifetime <= NO_REVOCATION_UP_TO:
        return builder.add_extension(NO_REV_AVAIL, critical=False)
    if crl_base_url:
        return builder.add_extension(_distribution_point(crl_base_url, issuer), critical=False)
    return builder


def revocation_list(
    revoked: Iterable[RevokedSerial], *, issuer: Issuer, number: int, now: datetime
) -> x509.CertificateRevocationListBuilder:
    """A complete CRL of one issuer, so without an issuing distribution point. RFC 5280 section 5."""
    this_update = _whole(now) - BACKDATE
    # The list goes in at once: `add_revoked_certificate` copies it for each entry.
    return (
        x509.CertificateRevocationListBuilder(
            issuer.certificate.subject,
            this_update,
            this_update + CRL_LIFETIME,
            revoked_certificates=[_entry(line) for line in revoked],
        )
        .add_extension(issuer.authority_key, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )


def _whole(now: datetime) -> datetime:
    """RFC 5280 section 4.1.2.5: times have no fractions of a second."""
    return utc(now).replace(microsecond=0)


def _ca_name(role: str, trust_domain: str, ski: x509.SubjectKeyIdentifier) -> x509.Name:
    """A name no other CA has, so that CRLs and chains of two generations cannot be taken for one another."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),  # ub-organization-name
            x509.NameAttribute(NameOID.COMMON_NAME, f"agent {role} CA {ski.digest[:8].hex()}"),
        ]
    )


def _constrainable(trust_domain: str) -> str:
    """RFC 5280 section 4.2.1.10 wants the name of a host, fully qualified.

    SPIFFE allows more. With a dot in front it would mean the domains below, and not this one: such a CA would speak
    for others and not for itself.
    """
    try:
        return dns_name(trust_domain)
    except NameRefused:
        raise PolicyRefused(
            "name constraint",
            got=repr(trust_domain),
            expected="a trust domain that is a DNS name",
            do="leave the name constraint out",
        ) from None


def _ca_extensions(
    builder: x509.CertificateBuilder, trust_domain: str, ski: x509.SubjectKeyIdentifier, *, pathlen: int
) -> x509.CertificateBuilder:
    spiffe_id = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")  # X509-SVID section 3.1: no path
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=pathlen), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([spiffe_id]), critical=False)
        .add_extension(ski, critical=False)
    )


def crl_file_name(crl: x509.CertificateRevocationList) -> str:
    """The last part of the URL at which certificates of the list's issuer say that the list is served."""
    issuer = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return _crl_file_name((issuer.key_identifier or b"").hex())


def _crl_file_name(key_id: str) -> str:
    return f"{key_id}.crl"


def _distribution_point(base_url: str, issuer: Issuer) -> x509.CRLDistributionPoints:
    url = x509.UniformResourceIdentifier(f"{base_url}/{_crl_file_name(issuer.key_id)}")
    return x509.CRLDistributionPoints([x509.DistributionPoint([url], None, None, None)])


def _entry(line: RevokedSerial) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(line.serial, _whole(line.revoked_at))
    if line.reason is not x509.ReasonFlags.unspecified:  # RFC 5280 section 5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(line.reason), critical=False)
    return builder.build()


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


_AGENT_USAGES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
