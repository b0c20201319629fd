"""What the CA remembers, as plain values: certificates, CAs, one-time tokens, and the ledger's rows.

Pure. `pki.store` writes them and reads them; everything else only looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki.errors import AuthorityDamaged
from trust.identity import thumbprint


class State(StrEnum):
    """The life of a CA key. Agents trust a root, and certificates are issued, in the states that say so."""

    PREPARED = "prepared"  # published, so that everybody trusts it before it is used; issues nothing yet
    ACTIVE = "active"  # issues
    RETIRING = "retiring"  # issues nothing new; what it issued is good until its end
    REVOKED = "revoked"  # compromised: issues nothing, and nothing that it issued is good


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is decided once, when a CA is made."""

    trust_domain: str
    crl_base_url: str | None = None
    public_url: str | None = None  # where the plain HTTP side of the service is reached
    name_constraint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One certificate that this CA has made."""

    serial: int
    kind: str  # "root", "intermediate", "agent" or "ocsp"
    issuer: str  # key id of the CA that signed it, hex
    spiffe_id: str
    thumbprint: str  # x5t#S256
    not_before: datetime
    not_after: datetime
    der: bytes = field(repr=False)
    shard: int = 0  # which of its issuer's revocation lists would name it
    revoked_at: datetime | None = None
    reason: x509.ReasonFlags | None = None
    position: int | None = field(default=None, compare=False)  # of its ledger entry, as the row says it
    revoked_position: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, certificate: x509.Certificate, *, kind: str, issuer: str, spiffe_id: str, shard: int = 0) -> Record:
        der = certificate.public_bytes(Encoding.DER)
        return cls(
            serial=certificate.serial_number,
            kind=kind,
            issuer=issuer,
            spiffe_id=spiffe_id,
            thumbprint=thumbprint(der),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            der=der,
            shard=shard,
        )

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate itself.

        Raises:
            AuthorityDamaged: the bytes are not the ones that the thumbprint was made of.
        """
        if thumbprint(self.der) != self.thumbprint:
            raise _damaged(f"certificate {self.serial:x} is not the one that was stored")
        return x509.load_der_x509_certificate(self.der)

    def genuine(self) -> x509.Certificate:
        """The certificate of an agent, which says what its row says: whoever can write rows is not to be believed.

        Not checked: the issuer's signature, and what a certificate does not say, as whether it was revoked.

        Raises:
            AuthorityDamaged: the row says something else.
        """
        certificate = self.certificate
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        except (ValueError, x509.ExtensionNotFound):
            raise _damaged(f"certificate {self.serial:x} is not one of an agent") from None
        if (
            certificate.serial_number != self.serial
            or names.get_values_for_type(x509.UniformResourceIdentifier) != [self.spiffe_id]
            or certificate.not_valid_before_utc != self.not_before
            or certificate.not_valid_after_utc != self.not_after
            or issuer is None
            or issuer.hex() != self.issuer
        ):
            raise _damaged(f"the row of certificate {self.serial:x} differs from the certificate")
        return certificate

    def status(self, now: datetime) -> str:
        """ "revoked", "expired", "not yet valid" or "valid"; revoked outweighs the rest."""
        if self.revoked_at is not None:
            return "revoked"
        if now > self.not_after:
            return "expired"
        return "valid" if now >= self.not_before else "not yet valid"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerRecord:
    """One CA of this authority: its certificate, its state, and where its private key is."""

    key_id: str  # subject key identifier, lower-case hex
    kind: str  # "root" or "intermediate"
    parent: str  # key id of the CA that signed it; a root's is its own
    state: State
    since: datetime  # when that state began
    serial: int
    der: bytes = field(repr=False)
    key_pem: bytes | None = field(default=None, repr=False)  # encrypted PKCS#8; None: offline, or on a token
    key_uri: str | None = field(default=None, repr=False)  # "pkcs11:..." (RFC 7512): the key is on a token
    position: int | None = field(default=None, compare=False)  # of its first ledger entry, as the row says it

    @property
    def certificate(self) -> x509.Certificate:
        """The CA certificate.

        Raises:
            AuthorityDamaged: the bytes are not a certificate with this serial number and key identifier.
        """
        try:
            certificate = x509.load_der_x509_certificate(self.der)
            ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except (ValueError, x509.ExtensionNotFound):
            raise _damaged(f"the certificate of CA {self.key_id} is not one") from None
        if certificate.serial_number != self.serial or ski.digest.hex() != self.key_id:
            raise _damaged(f"the certificate of CA {self.key_id} is another one")
        return certificate

    @property
    def online(self) -> bool:
        """Whether its private key is at hand: in the database, or on a token."""
        return self.key_pem is not None or self.key_uri is not None

    @property
    def not_before(self) -> datetime:
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingKey:
    """A key of an intermediate that waits for its certificate from a root that is kept elsewhere."""

    key_id: str
    since: datetime
    csr: bytes = field(repr=False)  # PKCS#10 DER, to be shown again
    key_pem: bytes | None = field(default=None, repr=False)
    key_uri: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A one-time enrolment token, as the CA keeps it: its hash, and what it is good for."""

    id: str
    digest: bytes = field(repr=False)
    spiffe_id: str
    dns_names: tuple[str, ...]
    lifetime: timedelta  # of the certificate, whole seconds
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: bytes | None = None  # SHA-256 of the public key (SPKI) that burnt it
    serial: int | None = None  # of the certificate that it was burnt for
    seal: str = field(default="", repr=False)  # detached JWS by a CA over what the token is good for


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """Which token an issuance burns, for which public key (SHA-256 of the SPKI), and the one serial number it gets."""

    id: str
    key_digest: bytes
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One certificate to be committed, with what must be true, and becomes true, in the same transaction."""

    record: Record
    now: datetime  # when it is issued: the time of the ledger's entry and of the token's use
    burns: TokenUse | None = None
    renews: int | None = None  # serial of the certificate that was presented: known, and not revoked


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """What a status responder may say about a serial number."""

    known: bool
    issuer: str | None = None
    revoked_at: datetime | None = None
    reason: x509.ReasonFlags | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRow:
    """A revocation list as it is stored, with its delta. Numbers and positions are the row's; nothing is verified."""

    issuer: str
    shard: int
    number: int
    position: int  # the ledger's size when it was made
    stale: bool
    der: bytes = field(repr=False)
    base_number: int
    base_position: int
    delta_der: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    position: int  # from 0, without a gap
    entry: bytes = field(repr=False)
    leaf: bytes = field(repr=False)  # RFC 9162 leaf hash of the entry, as stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHead:
    """A tree head: what the ledger's root hash was at a size."""

    size: int
    root: bytes
    time: datetime
    frontier: bytes = field(repr=False)
    jws: str | None = field(default=None, repr=False)  # None: written while no signing key was open


def _damaged(got: str) -> AuthorityDamaged:
    return AuthorityDamaged("CA database is damaged", got=got, expected="what was written", do="restore a backup")
