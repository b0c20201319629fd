"""Renewal: which certificates have a successor, what it inherits, and when it is time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from pki import rotation
from pki.errors import CertificateAlreadyExpired, CertificateAlreadyRevoked, NotIssuedHere
from pki.policy import MAX_LIFETIME, MIN_LIFETIME, IPAddress
from pki.profiles import BACKDATE, MAX_LEAF_VALIDITY
from pki.records import IssuerRecord, Record, State
from trust.clock import shown

RENEW_AT = 2 / 3  # of the life: two more chances of the same length are left when one fails


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalInfo:
    """When to renew a certificate, as RFC 9773 says it for ACME."""

    renew_at: datetime
    urgent: bool  # now, whatever `renew_at` says
    reason: str  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What stands beside the SPIFFE ID."""

    dns_names: tuple[str, ...]
    ip_addresses: tuple[IPAddress, ...]


def check(record: Record | None, *, now: datetime) -> tuple[Record, x509.Certificate]:
    """Return the record of a presented certificate, and the certificate, when it may be renewed.

    1. This CA has issued it, to an agent.
    2. Its row says what the certificate says, of which everything about its successor follows.
    3. It is not revoked. (Asked again in the transaction that stores its successor.)
    4. It is valid now.

    Args:
        record: what the store has by the thumbprint of what was presented; None for nothing.

    Raises:
        NotIssuedHere, AuthorityDamaged, CertificateAlreadyRevoked, CertificateAlreadyExpired: by the steps above.
    """
    # 1.
    if record is None or record.kind != "agent":
        raise NotIssuedHere(
            "presented certificate",
            got="one that is not in this CA's books" if record is None else f"one of kind {record.kind}",
            expected="a certificate that this CA has issued to an agent",
            do="enrol with a token",
        )

    # 2.
    certificate = record.genuine()

    # 3.
    if record.revoked_at is not None:
        raise CertificateAlreadyRevoked(
            f"certificate {record.serial:x} of {record.spiffe_id}",
            got=f"revoked on {shown(record.revoked_at)}",
            expected="one that is not revoked",
            do="enrol again with a token, if the agent may go on",
        )

    # 4. Both clocks are shown.
    if not record.not_before <= now <= record.not_after:
        raise CertificateAlreadyExpired(
            f"certificate {record.serial:x} is not valid now",
            got=f"{shown(now)} on the CA's clock",
            expected=f"a time from {shown(record.not_before)} to {shown(record.not_after)}",
            do="enrol again with a token; compare the clocks where it should be valid",
        )
    return record, certificate


def names(certificate: x509.Certificate) -> Names:
    """The DNS names and addresses of a certificate that this CA has made."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    # This CA puts single addresses into certificates, never networks.
    addresses = tuple(found.get_values_for_type(x509.IPAddress))
    return Names(
        dns_names=tuple(found.get_values_for_type(x509.DNSName)),
        ip_addresses=addresses,  # type: ignore[arg-type]
    )


def lifetime(record: Record) -> timedelta:
    """The lifetime that the certificate has, to grant it again: never more than somebody has granted.

    One that was cut short by the end of its issuer passes that on. That is rare: an intermediate hands over a leaf's
    longest life before its end.
    """
    span = record.not_after - record.not_before
    return MAX_LIFETIME if span == MAX_LEAF_VALIDITY else max(span - BACKDATE, MIN_LIFETIME)


def info(record: Record, issuers: Sequence[IssuerRecord]) -> RenewalInfo:
    """When to renew a certificate: at two thirds of its life, or at once when its CA is not to be relied on.

    Urgent is: its issuer was revoked; or it is below a root that is on its way out, while another one issues already.
    """
    renew_at = record.not_before + (record.not_after - record.not_before) * RENEW_AT
    issuer = next((one for one in issuers if one.key_id == record.issuer), None)
    if issuer is None or issuer.state is State.REVOKED:
        return RenewalInfo(renew_at=renew_at, urgent=True, reason="the CA that signed it was revoked")
    issuing = rotation.newest(issuers, "intermediate", State.ACTIVE)
    if issuing is not None and issuing.parent != issuer.parent:
        return RenewalInfo(renew_at=renew_at, urgent=True, reason="its root is being replaced")
    return RenewalInfo(renew_at=renew_at, urgent=False, reason="two thirds of its life")
