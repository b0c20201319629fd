"""A certificate forge for attack tables: it makes what the real CA (`pki`) refuses to make.

One valid default, every field open to mutation. Tests that need only valid certificates use `pki` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.identity import AgentID, thumbprint
from trust.private_keys import ml_dsa

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
KEEP: Any = object()


def spiffe(uri: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(uri)


class Forge:
    """The root and intermediate of one trust domain, and whatever leaf a test asks for."""

    def __init__(
        self,
        domain: str = "fleet.example",
        *,
        now: datetime = NOW,
        constraint: str | None = None,
        make_key: Callable[[], Any] = lambda: ec.generate_private_key(ec.SECP256R1()),
    ) -> None:
        self.domain = domain
        self.now = now
        self.root_key = make_key()
        self.root = self.ca(f"{domain} root", self.root_key, None, self.root_key, pathlen=1)
        self.key = make_key()
        self.intermediate = self.ca(
            f"{domain} intermediate", self.key, self.root, self.root_key, pathlen=0, constraint=constraint
        )

    @property
    def bundles(self) -> TrustBundles:
        return TrustBundles.of(self.bundle)

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle(trust_domain=self.domain, roots=(self.root,))

    def ca(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        pathlen: int | None,
        constraint: str | None = None,
        **changes: Any,
    ) -> x509.Certificate:
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(True, pathlen), True),
            (_usage(key_cert_sign=True, crl_sign=True), True),
            (x509.SubjectAlternativeName([spiffe(f"spiffe://{self.domain}")]), False),
        ]
        if constraint is not None:
            extensions.append((x509.NameConstraints([spiffe(constraint)], None), True))
        return self._certificate(name, key.public_key(), issuer, issuer_key, extensions, 240 * HOUR, **changes)

    def leaf(
        self,
        agent: str = "/billing",
        *,
        sans: list[x509.GeneralName] | None = KEEP,
        usage: x509.KeyUsage | None = KEEP,
        eku: list[x509.ObjectIdentifier] | None = KEEP,
        is_ca: bool | None = False,
        key: Any = None,
        issuer: x509.Certificate | None = None,
        issuer_key: Any = None,
        extra: list[tuple[x509.ExtensionType, bool]] | None = None,
        **changes: Any,
    ) -> Credentials:
        """Credentials of `spiffe://<domain><agent>`; each argument replaces that part (None leaves it out).

        `changes`: not_before, not_after, serial.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        uri = agent if agent.startswith("spiffe:") else f"spiffe://{self.domain}{agent}"
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if is_ca is not None:
            extensions.append((x509.BasicConstraints(is_ca, None), True))
        names = [spiffe(uri), x509.DNSName("localhost")] if sans is KEEP else sans
        if names:
            extensions.append((x509.SubjectAlternativeName(names), False))
        if usage is KEEP:
            usage = _usage(digital_signature=True)
        if usage is not None:
            extensions.append((usage, True))
        if eku is KEEP:
            eku = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        if eku:
            extensions.append((x509.ExtendedKeyUsage(eku), False))
        extensions.extend(extra or [])
        issuer = issuer or self.intermediate
        certificate = self._certificate(
            "agent", key.public_key(), issuer, issuer_key or self.key, extensions, 24 * HOUR, **changes
        )
        try:
            agent_id = AgentID.parse(uri)
        except ValueError:
            agent_id = AgentID(self.domain, "/forged")
        chain = (certificate,) if issuer is self.root else (certificate, self.intermediate)
        return Credentials(
            agent_id=agent_id,
            chain=chain,
            private_key=key,
            thumbprint=thumbprint(certificate.public_bytes(Encoding.DER)),
        )

    def crls(self, *revoked: Credentials, **times: datetime) -> RevocationLists:
        """Fresh CRLs of the intermediate (with these leaves on it) and of the root."""
        return RevocationLists.of(
            [
                self.crl(self.intermediate, self.key, [c.certificate.serial_number for c in revoked], **times),
                self.crl(self.root, self.root_key, [], **times),
            ]
        )

    def crl(
        self,
        issuer: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        serials: list[int],
        *,
        this_update: datetime | None = None,
        next_update: datetime | None = None,
    ) -> x509.CertificateRevocationList:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(this_update or self.now - HOUR)
            .next_update(next_update or self.now + 24 * HOUR)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False)
            .add_extension(x509.CRLNumber(1), False)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.now - HOUR).build()
            )
        return builder.sign(key, _hash(key))

    def _certificate(
        self,
        name: str,
        public_key: Any,
        issuer: x509.Certificate | None,
        issuer_key: Any,
        extensions: list[tuple[x509.ExtensionType, bool]],
        lifetime: timedelta,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        serial: int | None = None,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(public_key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(not_before or self.now - HOUR)
            .not_valid_after(not_after or self.now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        # RFC 6979, so that the certificates of `tests.vectors` are always the same bytes.
        deterministic = isinstance(issuer_key, ec.EllipticCurvePrivateKey) or None
        return builder.sign(issuer_key, _hash(issuer_key), ecdsa_deterministic=deterministic)


def _hash(key: Any) -> hashes.SHA256 | None:
    return None if ml_dsa(key.public_key()) else hashes.SHA256()  # ML-DSA brings its own


def _usage(**wanted: bool) -> x509.KeyUsage:
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{n: wanted.get(n, False) for n in names})
