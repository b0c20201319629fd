"""Which certificates are revoked, by the CRLs known now (RFC 5280 sections 5 and 6.3).

Each CRL is indexed once, so that a lookup costs the same whether it lists ten certificates or a million. Two
questions are kept apart. Which certificates are *revoked*: every one that a CRL lists which its issuer has signed,
however old that CRL is and whatever else about it is not understood, for a revocation does not lapse. Which are *not*:
those that a CRL does not list which is current, covers them and is understood in full. Where neither is known, the
certificate is refused as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from trust.bundles import RevocationLists
from trust.certificates import UNREADABLE, Certificate, weak_signature
from trust.errors import CertificateRevoked, RevocationUnknown

CLOCK_SKEW = timedelta(seconds=60)  # a CRL may have been made by a clock that is this far ahead of ours
NO_REV_AVAIL = x509.ObjectIdentifier("2.5.29.56")  # RFC 9608
NO_REV_AVAIL_VALUE = b"\x05\x00"  # an ASN.1 NULL, and nothing else
# RFC 9608 is about short-lived certificates. Such a one dies no later than news of its revocation is due
# elsewhere: CRLs of a day are usual. The hour is for issuers that set notBefore back.
MAX_EXEMPT_VALIDITY = timedelta(hours=24 + 1)

# The critical CRL extensions that are processed here. Delta CRLs, always critical, are not.
_UNDERSTOOD = (ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)


class RevocationIndex:
    """The CRLs of one `RevocationLists`, prepared.

    Preparing reads every entry, about 2 s for a million; a CRL that the previous index held is taken from there.
    """

    __slots__ = ("_by_issuer", "_indexed", "lists")

    def __init__(self, lists: RevocationLists, previous: RevocationIndex | None = None) -> None:
        known = {id(i.crl): i for i in previous._indexed} if previous else {}
        self.lists = lists
        self._indexed: tuple[_Indexed, ...] = tuple(known.get(id(crl)) or _Indexed(crl) for crl in lists.crls)
        self._by_issuer: dict[x509.Name, list[_Indexed]] = {}
        for indexed in self._indexed:
            if indexed.issuer is not None:
                self._by_issuer.setdefault(indexed.issuer, []).append(indexed)

    def answers(self, path: tuple[Certificate, ...], domain: str) -> tuple[RevocationAnswer, ...]:
        """What is known about each certificate of a verified path (leaf first, root last) but the root.

        Where there are no CRLs at all, revocation is not checked, and there is nothing to ask.
        """
        if not self._indexed:
            return ()
        required_in = self.lists.required_in
        required = required_in is None or domain in required_in
        return tuple(
            self._answer(certificate, issuer, is_leaf=depth == 0, required=required)
            for depth, (certificate, issuer) in enumerate(pairwise(path))
        )

    def _answer(
        self, certificate: Certificate, issuer: Certificate, *, is_leaf: bool, required: bool
    ) -> RevocationAnswer:
        usable, problems, listing = [], [], []
        for indexed in self._by_issuer.get(certificate.issuer, ()):
            problem = indexed.problem or indexed.covers(certificate, is_leaf=is_leaf)
            lists_it = certificate.serial in indexed.serials
            # Asked last and of no CRL that makes no difference, for hashing a large one takes long.
            unsigned = indexed.signed_by(issuer) if lists_it or not problem else ""
            if lists_it and not unsigned:
                listing.append(indexed)
            if problem or unsigned:
                problems.append(problem or unsigned)
            else:
                usable.append(indexed)
        return RevocationAnswer(
            certificate=certificate,
            listing=tuple(listing),
            crls=tuple(usable),
            # RFC 9608 keeps noRevAvail out of CA certificates: a CA cannot exempt itself.
            required=required and not (is_leaf and _exempt(certificate)),
            problem="; ".join(problems) or f"no CRL of {issuer.name}",
        )


def _exempt(certificate: Certificate) -> bool:
    """Whether a certificate says, in the one way that RFC 9608 has for it, that no CRL will ever tell of it.

    One that names a place for CRLs as well contradicts itself, which it forbids, and is not believed.
    """
    extension = certificate.extensions.get(NO_REV_AVAIL)
    return (
        extension is not None
        and extension.value.public_bytes() == NO_REV_AVAIL_VALUE
        and ExtensionOID.CRL_DISTRIBUTION_POINTS not in certificate.extensions
        and ExtensionOID.FRESHEST_CRL not in certificate.extensions
        and certificate.not_after - certificate.not_before <= MAX_EXEMPT_VALIDITY
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RevocationAnswer:
    """What the CRLs say about one certificate: at any time, and, asked by `check`, at one."""

    certificate: Certificate
    listing: tuple[_Indexed, ...]  # CRLs of its issuer that say it is revoked
    crls: tuple[_Indexed, ...]  # those that say it is not, each in its own time
    required: bool  # refused where none of them is current
    problem: str  # why there is none, for the message

    def check(self, now: datetime) -> None:
        """Return for a certificate that is not revoked, as far as is known at `now`.

        Every entry means revoked, whatever its reason: certificateHold for as long as the CRL is among ours, and
        removeFromCRL, which only a delta may have (RFC 5280 section 5.3.1), because it tells of a hold. So does an
        entry of a CRL that has ended, lies ahead, is partial or is a delta.

        Raises:
            CertificateRevoked: a CRL lists it.
            RevocationUnknown: no CRL is current.
        """
        if self.listing:
            raise CertificateRevoked(
                "certificate is revoked",
                got=f"{self.certificate.name}, serial {self.certificate.serial:x}",
                expected="one that no CRL of its issuer lists",
                do="enrol again",
            )
        if self.required and not self.current(now):
            problem = self.problem
            if self.crls:
                newest = max(self.crls, key=lambda crl: crl.next_update)
                clock = f"{now:%Y-%m-%d %H:%M:%S}Z by our clock"
                problem = f"{clock} and a CRL from {newest.this_update:%Y-%m-%d %H:%M:%S}Z"
                problem += f" to {newest.next_update:%Y-%m-%d %H:%M:%S}Z"
            raise RevocationUnknown(
                "revocation status is not known",
                got=f"{problem}, for {self.certificate.name}",
                expected="a current CRL of its issuer",
                do="fetch the CRL again and compare the clocks",
            )

    def current(self, now: datetime) -> list[x509.CertificateRevocationList]:
        """The CRLs that answer for it at `now`; it is not revoked where none lists it."""
        return [indexed.crl for indexed in self.crls if indexed.current(now)]

    def since(self) -> datetime | None:
        """When it was revoked, or, where a CRL knows it, since when its key is not to be trusted; None: it is not."""
        entries = [entry for indexed in self.listing for entry in indexed.entries(self.certificate.serial)]
        return min(map(_since, entries), default=None)


def _since(entry: x509.RevokedCertificate | None) -> datetime:
    if entry is None:
        return _EVER
    try:
        # RFC 5280 section 5.3.2: it may lie before the day on which somebody asked for the revocation.
        suspected = [e.value.invalidity_date_utc for e in entry.extensions if isinstance(e.value, x509.InvalidityDate)]
        return min([entry.revocation_date_utc, *suspected])
    except UNREADABLE:
        return _EVER


_EVER = datetime.min.replace(tzinfo=UTC)  # when nobody can say since when


class _Indexed:
    """One CRL: what is needed of it, and the `problem` for which it says of no certificate that it is not revoked."""

    __slots__ = (
        "_scope",
        "_signer",
        "_weakness",
        "crl",
        "issuer",
        "next_update",
        "problem",
        "serials",
        "this_update",
    )

    def __init__(self, crl: x509.CertificateRevocationList) -> None:
        self.crl = crl
        self.issuer: x509.Name | None = None
        self.problem = ""
        self.serials: frozenset[int] = frozenset()
        self._scope: x509.IssuingDistributionPoint | None = None
        self._weakness = "a CRL that cannot be read"
        self._signer = b""  # the SubjectPublicKeyInfo under which the signature has been verified
        try:
            self.issuer = crl.issuer
            self._weakness = weak_signature(crl)
            # Before all that may fail: what else is wrong with a CRL does not undo the revocations in it.
            self.serials = frozenset(entry.serial_number for entry in crl)
            self.this_update = crl.last_update_utc
            # RFC 5280 section 5.1.2.5 requires nextUpdate; without it a CRL would stay good for ever.
            self.next_update = crl.next_update_utc or _EVER
            self.problem = self._unusable()
        except UNREADABLE:
            self.problem = "a CRL that cannot be read"

    def _unusable(self) -> str:
        if self.crl.next_update_utc is None:
            return "a CRL without nextUpdate"
        numbered = False
        for extension in self.crl.extensions:
            numbered = numbered or isinstance(extension.value, x509.CRLNumber)
            if isinstance(extension.value, x509.DeltaCRLIndicator):
                return "a delta CRL, which lists changes only"
            if extension.critical and extension.oid not in _UNDERSTOOD:
                return f"a CRL with the unknown critical extension {extension.oid.dotted_string}"
            if isinstance(extension.value, x509.IssuingDistributionPoint):
                self._scope = extension.value
        # Section 5.2.3: every CRL has a number, which is not critical.
        if not numbered:
            return "a CRL without a number"
        scope = self._scope
        if scope and (scope.indirect_crl or scope.only_some_reasons or scope.only_contains_attribute_certs):
            return "an indirect or partial CRL"
        if scope and scope.relative_name:
            return "a CRL with a relative distribution point"
        return ""

    def current(self, now: datetime) -> bool:
        # Whoever made the CRL chose its times: the first and last days of the calendar cannot be moved by the skew.
        return self.this_update - now <= CLOCK_SKEW and now <= self.next_update

    def entries(self, serial: int) -> list[x509.RevokedCertificate | None]:
        """What it says of a serial in `serials`; a large CRL is read again only if it lists one of them twice."""
        if len(self.serials) == len(self.crl):
            return [self.crl.get_revoked_certificate_by_serial_number(serial)]
        return [entry for entry in self.crl if entry.serial_number == serial]

    def covers(self, certificate: Certificate, *, is_leaf: bool) -> str:
        """The empty string where the certificate is in the scope of the CRL (RFC 5280 section 6.3.3 (b)(2))."""
        scope = self._scope
        if scope is None:
            return ""
        if scope.only_contains_ca_certs if is_leaf else scope.only_contains_user_certs:
            return "a CRL of the other kind of certificates"
        if scope.full_name is not None:
            points = certificate.extension(x509.CRLDistributionPoints) or ()
            # A point with reasons or another issuer names CRLs that are partial or indirect.
            names = [n for p in points if not (p.reasons or p.crl_issuer) for n in p.full_name or ()]
            if not any(name in names for name in scope.full_name):
                return "a CRL of another distribution point"
        return ""

    def signed_by(self, issuer: Certificate) -> str:
        """The empty string where the issuer may sign CRLs and has signed this one.

        The answer yes is kept, for hashing a large CRL takes long; a second key is then refused without trying.
        """
        if self._weakness:
            return self._weakness
        usage = issuer.extension(x509.KeyUsage)
        if usage is None or not usage.crl_sign:
            return "a CRL whose issuer may not sign CRLs"
        if not self._signer and self.crl.is_signature_valid(issuer.public_key):  # type: ignore[arg-type]
            self._signer = issuer.public_key_der
        return "" if self._signer == issuer.public_key_der else "a CRL signed by another key"
