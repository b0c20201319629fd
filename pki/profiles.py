"""What each certificate of the CA looks like (RFC 5280, SPIFFE X509-SVID); its lists are in `pki.list_profiles`.

Pure: the time, the serial number and the public key are arguments, and what comes back lacks its signature.
Nothing of a certificate request reaches these functions but a public key and names that `pki.policy` has approved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from pki import constraints, der
from pki.der import Unsigned
from pki.errors import AuthorityNotValid, NameRefused, PolicyRefused
from pki.list_names import crl_file_name
from pki.policy import Approved, dns_name
from pki.records import Settings
from pki.requests import PublicKey
from trust.clock import utc

BACKDATE = timedelta(minutes=1)  # a verifier whose clock is a little behind must not refuse a new certificate
ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=90)
MAX_LEAF_VALIDITY = timedelta(days=7)  # from the first second to the last, the backdating included
NO_REVOCATION_UP_TO = timedelta(hours=1)  # a certificate that dies sooner than a CRL travels needs no CRL
CRL_LIFETIME = timedelta(hours=24)
CRL_RETENTION = timedelta(days=7)  # RFC 5280 section 3.3: listed beyond the certificate's own end, then dropped
OCSP_SIGNER_LIFETIME = timedelta(hours=24)  # nobody asks whether it is revoked, so it dies soon

# RFC 9608: "no revocation information will ever be available"; the value is an ASN.1 NULL.
NO_REV_AVAIL = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A CA certificate with the parts that everything signed by it repeats."""

    certificate: x509.Certificate
    key_id: str  # subject key identifier, lower-case hex
    authority_key: x509.AuthorityKeyIdentifier
    name: bytes  # its subject, DER
    constraints: x509.NameConstraints | None
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Issuer:
        try:
            limits = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            limits = None
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return cls(
            certificate=certificate,
            key_id=ski.digest.hex(),
            authority_key=x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski),
            name=certificate.subject.public_bytes(),
            constraints=limits,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def check_valid(self, name: str, now: datetime) -> None:
        """Return if this CA is valid at that time.

        Raises:
            AuthorityNotValid: it is not; both its times and this clock are shown.
        """
        if not self.not_before <= now < self.not_after:
            raise AuthorityNotValid(
                f"{name} is not valid now",
                got=now.isoformat(),
                expected=f"a time from {self.not_before.isoformat()} to {self.not_after.isoformat()}",
                do="check the clock",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """Where certificates say that more is to be had; what is None is not said."""

    crl_base: str | None = None  # revocation lists are served below it
    ocsp: str | None = None  # the responder itself
    issuers: str | None = None  # CA certificates are served below it

    @classmethod
    def of(cls, settings: Settings) -> Urls:
        """The paths of the CA service below its public URL; lists may be served elsewhere."""
        public = settings.public_url
        if public is None:
            return cls(crl_base=settings.crl_base_url)
        return cls(crl_base=settings.crl_base_url or f"{public}/crl", ocsp=f"{public}/ocsp", issuers=f"{public}/ca")


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
    start = whole(now) - BACKDATE
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
    urls: Urls | None = None,
) -> x509.CertificateBuilder:
    """A CA that signs agents and no further CA. It is in shard 0 of its issuer.

    OCSP is not offered for it: the key that would have to name the responder may be offline.

    `name_constraint`: agents of this domain only, for verifiers that do not know SPIFFE. RFC 5280 section 4.2.1.10
    constrains the *host* of a URI. Opt-in, because some verifiers refuse every chain that has a URI constraint.

    Raises:
        PolicyRefused: the trust domain is none that a name constraint can express.
    """
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    start = whole(now) - BACKDATE
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
    for extension in _pointers(urls or Urls(), issuer.key_id, shard=0, ocsp=False):
        builder = builder.add_extension(extension, critical=False)
    return builder


def agent(
    approved: Approved, *, issuer: Issuer, serial: int, now: datetime, urls: Urls | None = None, shard: int = 0
) -> Unsigned:
    """An agent's leaf: exactly one SPIFFE ID, client and server, signatures only.

    The subject is empty, so that the ID stands in one place only; RFC 5280 section 4.1.2.6 then wants the SAN
    critical. The end is the approved lifetime from `now`, but never more than 7 days after the start, and never
    after the issuer's end.

    Args:
        urls: where its revocation is asked for. One of an hour or less says instead that nobody need ask (RFC 9608).
        shard: the part of the issuer's revocation lists that will list it; without a `urls.crl_base` there are none.

    Raises:
        NameRefused: a name that the issuer's name constraints do not permit.
    """
    moment = whole(now)
    start = moment - BACKDATE
    end = min(moment + approved.lifetime, start + MAX_LEAF_VALIDITY, issuer.not_after)
    if issuer.constraints is not None:
        constraints.check(_names(approved), issuer.constraints)
    spki = approved.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    extensions = (
        _AGENT_EXTENSIONS,
        der.alternative_names(str(approved.agent_id), approved.dns_names, approved.ip_addresses),
        der.key_identifier(_key_digest(approved.public_key, spki)),
        _shared(urls or _NO_URLS, issuer.key_id, shard, approved.lifetime <= NO_REVOCATION_UP_TO),
    )
    return Unsigned(
        serial=serial,
        issuer=issuer.name,
        not_before=start,
        not_after=end.replace(microsecond=0),
        subject=_NO_NAME,
        public_key=spki,
        extensions=b"".join(extensions),
    )


def ocsp_signer(
    public_key: ec.EllipticCurvePublicKey, *, issuer: Issuer, serial: int, now: datetime
) -> x509.CertificateBuilder:
    """The certificate of a key that answers for this issuer's certificates (RFC 6960 section 4.2.2.2), and no more.

    id-pkix-ocsp-nocheck: its own revocation is not asked for, which would go round in circles; so it lives a day.
    It is no agent: it has neither a SPIFFE ID nor a purpose in TLS.
    """
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    name = x509.NameAttribute(NameOID.COMMON_NAME, f"agent OCSP responder {ski.digest[:8].hex()}")
    moment = whole(now)
    end = min(moment + OCSP_SIGNER_LIFETIME, issuer.not_after)
    return (
        x509.CertificateBuilder(
            issuer.certificate.subject, x509.Name([name]), public_key, serial, moment - BACKDATE, end
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), critical=False)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .add_extension(ski, critical=False)
        .add_extension(issuer.authority_key, critical=False)
    )


def whole(now: datetime) -> datetime:
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


def _names(approved: Approved) -> list[x509.GeneralName]:
    return [
        x509.UniformResourceIdentifier(str(approved.agent_id)),
        *map(x509.DNSName, approved.dns_names),
        *map(x509.IPAddress, approved.ip_addresses),
    ]


def _key_digest(key: PublicKey, spki: bytes) -> bytes:
    """RFC 5280 section 4.2.1.2 (1). An EC point ends the key's encoding; encoding it once more takes longer."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return x509.SubjectKeyIdentifier.from_public_key(key).digest
    point = spki[-1 - 2 * ((key.key_size + 7) // 8) :]
    return hashlib.sha1(point, usedforsecurity=False).digest()


@lru_cache(maxsize=64)  # a CA has few issuers, and issues in one shard for long
def _shared(urls: Urls, key_id: str, shard: int, short_lived: bool) -> bytes:
    """The extensions that an issuer's agents have in common."""
    if short_lived:  # RFC 9608 section 4: it then names neither a revocation list nor a responder
        urls = Urls(issuers=urls.issuers)
    authority_key = x509.AuthorityKeyIdentifier(bytes.fromhex(key_id), None, None)
    values = [authority_key, *([NO_REV_AVAIL] if short_lived else []), *_pointers(urls, key_id, shard=shard, ocsp=True)]
    return b"".join(der.extension(value) for value in values)


def _pointers(urls: Urls, key_id: str, *, shard: int, ocsp: bool) -> tuple[x509.ExtensionType, ...]:
    """Where revocation is asked for, and where the issuer's certificate is (RFC 5280 sections 4.2.1.13, 4.2.2.1)."""
    found: list[x509.ExtensionType] = []
    if urls.crl_base:
        found.append(x509.CRLDistributionPoints([point(crl_url(urls.crl_base, key_id, shard))]))
    access = []
    if urls.ocsp and ocsp:
        access.append(x509.AccessDescription(AuthorityInformationAccessOID.OCSP, uri(urls.ocsp)))
    if urls.issuers:
        url = uri(f"{urls.issuers}/{key_id}.cer")
        access.append(x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, url))
    if access:
        found.append(x509.AuthorityInformationAccess(access))
    return tuple(found)


def crl_url(base: str, key_id: str, shard: int) -> str:
    return f"{base}/{crl_file_name(key_id, shard)}"


def point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint([uri(url)], None, None, None)


def uri(url: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(url)


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


_NO_URLS = Urls()
_NO_NAME = x509.Name([]).public_bytes()
_AGENT_EXTENSIONS = b"".join(
    (
        der.extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
        der.extension(_key_usage(digital_signature=True), critical=True),
        der.extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])),
    )
)
