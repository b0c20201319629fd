"""What each revocation list of the CA looks like (RFC 5280 section 5). Pure, as `pki.profiles` is.

What comes back lacks its signature.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509

from pki import profiles
from pki.list_names import crl_file_name
from pki.profiles import BACKDATE, CRL_LIFETIME, Issuer, RevokedSerial, Urls


def revocation_list(
    revoked: Iterable[RevokedSerial],
    *,
    issuer: Issuer,
    number: int,
    now: datetime,
    urls: Urls | None = None,
    shard: int = 0,
    with_delta: bool = False,
    lifetime: timedelta = CRL_LIFETIME,
) -> x509.CertificateRevocationListBuilder:
    """The revocation list of one issuer, or of one shard of its certificates. RFC 5280 section 5.

    Where certificates name a place for their list, the list names the same place in a critical issuing distribution
    point, so that no list is taken to answer for the certificates of another shard (RFC 5280 section 5.2.5). Without
    such a place the list is the complete one of its issuer, and shard 0 the only shard. So is a root's: it has signed
    little, and there are verifiers (OpenSSL with crl_check_all) that look for the root itself, which names no place,
    on its own list.

    Args:
        with_delta: say where the delta list is (`delta_list`).
        lifetime: a day is usual; the list of a CA whose key is offline lasts until it is at hand again.
    """
    builder = _list(revoked, issuer=issuer, number=number, now=now, urls=urls or Urls(), shard=shard, lifetime=lifetime)
    if with_delta and urls and urls.crl_base:
        point = profiles.point(_delta_url(urls.crl_base, issuer.key_id, shard))
        builder = builder.add_extension(x509.FreshestCRL([point]), critical=False)
    return builder


def delta_list(
    revoked_since: Iterable[RevokedSerial],
    *,
    issuer: Issuer,
    number: int,
    base_number: int,
    now: datetime,
    urls: Urls,
    shard: int = 0,
) -> x509.CertificateRevocationListBuilder:
    """What was revoked since the list with the number `base_number`. RFC 5280 section 5.2.4.

    It has the number and the scope of the complete list of the same moment. Nothing is ever taken off a list but
    expired certificates, so a delta holds no removals.
    """
    builder = _list(revoked_since, issuer=issuer, number=number, now=now, urls=urls, shard=shard, lifetime=CRL_LIFETIME)
    return builder.add_extension(x509.DeltaCRLIndicator(base_number), critical=True)


def _list(
    revoked: Iterable[RevokedSerial],
    *,
    issuer: Issuer,
    number: int,
    now: datetime,
    urls: Urls,
    shard: int,
    lifetime: timedelta,
) -> x509.CertificateRevocationListBuilder:
    this_update = profiles.whole(now) - BACKDATE
    # The entries go in at once: `add_revoked_certificate` copies all of them for each.
    builder = (
        x509.CertificateRevocationListBuilder(
            issuer.certificate.subject,
            this_update,
            this_update + lifetime,
            revoked_certificates=[_entry(line) for line in revoked],
        )
        .add_extension(issuer.authority_key, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    if urls.crl_base is None or issuer.certificate.issuer == issuer.certificate.subject:
        if shard:
            raise ValueError("a shard without a distribution point")  # nobody could tell its list from the others
        return builder
    scope = x509.IssuingDistributionPoint(
        full_name=[profiles.uri(profiles.crl_url(urls.crl_base, issuer.key_id, shard))],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    return builder.add_extension(scope, critical=True)


def _entry(line: RevokedSerial) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(line.serial, profiles.whole(line.revoked_at))
    if line.reason is not x509.ReasonFlags.unspecified:  # RFC 5280 section 5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(line.reason), critical=False)
    return builder.build()


def _delta_url(base: str, key_id: str, shard: int) -> str:
    return f"{base}/{crl_file_name(key_id, shard, delta=True)}"
