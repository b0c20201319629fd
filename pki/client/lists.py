"""The CA's revocation lists, as an agent holds them: those of every CA and shard, each replaced by its successor.

Which lists there are, the service's index says. What the index, or a single list, lacks is never taken for a reason to
check less: the list of before stays, verifiers refuse what no current list answers for, and the reader of `fetch` is
told. All of them come from the CA service itself, wherever certificates say that others may fetch them: short-lived
certificates name no list at all (RFC 9608), and those of a CA without a public URL neither, although they and their
intermediates may be revoked.

The lists serve two. Verifiers (`KnownLists.current`) require a current one for every certificate of our own trust
domain. The CA service's own chain is judged by them as well, or a thief of a revoked intermediate could go on to speak
for the CA, but only by what is *listed* (`KnownLists.listed`): an agent whose lists have ended must still get new ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from pki.client.answers import MAX_LIFETIME
from pki.client.est import Wire
from pki.errors import AnswerRefused, AuthorityUnreachable
from pki.list_names import LIST_FILE, crl_name
from trust.bundles import RevocationLists, TrustBundle
from trust.certificates import UNREADABLE, weak_signature
from trust.credentials import Credentials
from trust.errors import RevocationUnknown, TrustError
from trust.revocation import CLOCK_SKEW
from trust.sources import Live

MAX_DEPTH = 2  # of CAs below a root; ours have one
MAX_FAILURES = 3  # of single lists; then the service is in trouble, and the rest is asked for another time
# When an intermediate is revoked, everything below it is renewed at the next poll, and polls are at most a refresh hint
# apart. Whoever believed the list sooner would refuse agents that have not had theirs. One hint to hear of it, and one
# to be renewed and to try again; the slowest verifier hears of it after one in any case.
HOLD_HINTS = 2
# The service's own certificate is replaced within seconds after its intermediate was revoked. Whoever hears of that
# meanwhile must not refuse to be renewed by it. (A new bundle, or a token, can wait: that is judged at once.)
SERVICE_GRACE = timedelta(seconds=15)
MAX_HINT = 3600  # seconds: polls are never further apart, whatever the hint is


class KnownLists:
    """The revocation lists known now, as a `Source` for verifiers. Fails closed where certificates name lists.

    Args:
        domain: our trust domain. Of others our CA's lists say nothing.
        found: on the disk: of each list one, or the one that verifiers use and its successor, which is held back.
        required: our certificates name lists, so not knowing them yet is no reason to let anybody pass.

    Attributes:
        listed: `Source` of every list's newest state, for refusing what is listed and nothing else.
        listed_a_while: the same, but for CAs that were revoked a moment ago (`SERVICE_GRACE`).
    """

    def __init__(self, domain: str, found: RevocationLists | None, *, required: bool) -> None:
        self._domain = domain
        self._required = required
        self.known = _Lists(used={}, listed={}, newest={})
        self._used: RevocationLists | None = None
        self.listed: Live[RevocationLists] = Live(_refusing(()))
        self.listed_a_while: Live[RevocationLists] = Live(_refusing(()))
        if found is not None:
            used: dict[str, x509.CertificateRevocationList] = {}
            newest: dict[str, x509.CertificateRevocationList] = {}
            for crl in found.crls:
                if (name := _file_name(crl)) is not None:
                    used[name] = min(used.get(name, crl), crl, key=_number)
                    newest[name] = max(newest.get(name, crl), crl, key=_number)
            self.take(_Lists(used=used, listed=newest, newest=newest))

    def current(self) -> RevocationLists:
        """Raises: RevocationUnknown: our certificates name revocation lists, and none has been fetched so far."""
        if self._used is not None:
            return self._used
        if self._required:
            raise RevocationUnknown("revocation lists are not known yet", do="wait for the CA service to be reached")
        return _NONE

    @property
    def awaited(self) -> bool:
        """Whether nobody passes until lists have been fetched."""
        return self._required and self._used is None

    def require(self, required: bool) -> None:
        self._required = required

    def take(self, lists: _Lists) -> bool:
        """Use these from now on; False where they are those of before."""
        before, self.known = self.known, lists
        if lists.same(before):
            return False
        self.listed.replace(_refusing(lists.newest.values()))
        self.listed_a_while.replace(_refusing(lists.listed.values()))
        if self._used is None or [*map(id, self._used.crls)] != [*map(id, lists.used.values())]:
            self._used = RevocationLists(tuple(lists.used.values()), frozenset({self._domain}))
        return True


_NONE = RevocationLists()


def _refusing(crls: Iterable[x509.CertificateRevocationList]) -> RevocationLists:
    """For refusing what is listed, and nothing else: a list without entries makes no difference."""
    return RevocationLists(tuple(crl for crl in crls if len(crl)), frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """By file name. Nobody changes them."""

    used: dict[str, x509.CertificateRevocationList]  # by verifiers
    listed: dict[str, x509.CertificateRevocationList]  # for the service's own chain, when we are renewed
    newest: dict[str, x509.CertificateRevocationList]  # the same ones, but for those that are held back

    def same(self, other: _Lists) -> bool:
        pairs = (self.used, other.used), (self.listed, other.listed), (self.newest, other.newest)
        return all([*map(id, ours.values())] == [*map(id, theirs.values())] for ours, theirs in pairs)

    def all(self) -> RevocationLists:
        """For the disk."""
        return RevocationLists.of({id(crl): crl for crl in (*self.used.values(), *self.newest.values())}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What to use from now on, and what is wrong with it."""

    lists: _Lists
    problem: TrustError | None  # why some are those of before, or missing


def wanted(credentials: Credentials) -> bool:
    """Whether a certificate of the chain says where its revocation list is: then it is not to be believed without."""
    return any(point.full_name for certificate in credentials.chain for point in _points(certificate))


async def fetch(
    wire: Wire, known: KnownLists, *, credentials: Credentials, bundle: TrustBundle, now: datetime
) -> Fetched:
    """All lists that the service has, of the CAs below a root of the bundle.

    (1) The index names the lists, and some of each CA that the service has or that is in our own chain.
    (2) A list is the one that its name says, signed by that CA, and not older than the one of before. One that cannot
        be had stays the one of before. So does one that the index no longer has, for as long as it may matter: what
        was revoked once is not forgotten because somebody does not speak of it.
    (3) For verifiers, a CA that was revoked a moment ago is believed for a little longer (`HOLD_HINTS`).

    Not checked: times; every verifier does.

    Args:
        known: the lists of before; not changed.
        credentials, bundle: our own.

    Raises:
        AnswerRefused, AuthorityUnreachable: no index by (1), or not one list could be had.
        PeerError, TransportError: as `Wire`.
    """
    # (1)
    names = await wire.crl_names()
    indexed = {match[1] for name in names if (match := LIST_FILE.fullmatch(name))}
    sent = await wire.cacerts()
    needed = {_key_id(c) for c in (*sent, *credentials.chain[1:])}
    if missing := sorted(needed - indexed):
        raise AnswerRefused(
            "index of the revocation lists", got=f"no list of the CA {missing[0]}", expected="those of every CA"
        )
    # (2)
    authorities = _authorities(bundle, (*sent, *credentials.chain[1:]))
    before, roots = known.known, {root.subject for root in bundle.roots}
    newest: dict[str, x509.CertificateRevocationList] = {}
    problems: list[TrustError] = []
    for name in names:
        old, issuer = before.newest.get(name), authorities.get(name[:40])
        if issuer is None:
            continue  # below a root that was withdrawn, or is not known yet: nobody believes such a CA
        try:
            new = await _fetch(wire, name, old, issuer) if len(problems) < MAX_FAILURES else old
        except (AnswerRefused, AuthorityUnreachable) as error:
            problems.append(error)
            new = old
        if new is not None:
            newest[name] = new
    if not newest:  # an empty set would mean that nobody asks for any
        raise problems[0] if problems else AnswerRefused("revocation lists", got="none of a CA that we trust")
    for name, crl in before.newest.items():
        if name not in newest and (crl.issuer in roots or now - (crl.next_update_utc or now) < MAX_LIFETIME):
            newest[name] = crl
    # (3)
    return Fetched(lists=_held(before, newest, bundle, now), problem=problems[0] if problems else None)


def settled(known: KnownLists, bundle: TrustBundle, now: datetime) -> _Lists:
    """The lists of before, held back no longer than by (3) of `fetch`, whether or not anything can be fetched."""
    return _held(known.known, known.known.newest, bundle, now)


def _held(
    before: _Lists, newest: dict[str, x509.CertificateRevocationList], bundle: TrustBundle, now: datetime
) -> _Lists:
    hold = HOLD_HINTS * timedelta(seconds=min(bundle.refresh_hint, MAX_HINT))
    used, listed = (
        {
            name: old if (old := olds.get(name)) is not None and _stays(old, crl, bundle, now, for_) else crl
            for name, crl in newest.items()
        }
        for olds, for_ in ((before.used, hold), (before.listed, SERVICE_GRACE))
    )
    return _Lists(used=used, listed=listed, newest=newest)


async def _fetch(
    wire: Wire, name: str, old: x509.CertificateRevocationList | None, issuer: x509.Certificate
) -> x509.CertificateRevocationList:
    """Check (2); the very object of before where the list is the same."""
    crl = await wire.crl(name)
    if old is not None and _same(old, crl):
        return old
    if (got := _file_name(crl)) != name or crl.issuer != issuer.subject:
        raise AnswerRefused(f"revocation list {name}", got=got or "one without a name", expected="that very list")
    try:
        signed = not weak_signature(crl) and crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except UNREADABLE:
        signed = False
    if not signed:
        raise AnswerRefused(f"revocation list {name}", got="another signature", expected="that of its CA")
    # An old list is signed as well, and says of what was revoked since that it is good.
    if _number(crl) < (0 if old is None else _number(old)):
        raise AnswerRefused(
            f"revocation list {name}",
            got=f"number {_number(crl)}",
            expected=f"at least {0 if old is None else _number(old)}, which we have",
        )
    return crl


def _same(one: x509.CertificateRevocationList, other: x509.CertificateRevocationList) -> bool:
    return one.signature == other.signature and one.public_bytes(Encoding.DER) == other.public_bytes(Encoding.DER)


def _authorities(bundle: TrustBundle, certificates: Iterable[x509.Certificate]) -> dict[str, x509.Certificate]:
    """The CAs below the roots of the bundle, the roots among them, by key ID. Anybody may have sent the certificates.

    Not checked: times, for the list of a CA that has ended still tells what was revoked.
    """
    found = {_key_id(root): root for root in bundle.roots}
    candidates = [c for c in certificates if _is_ca(c)]
    for _ in range(MAX_DEPTH):
        for candidate, issuer in itertools.product(candidates, tuple(found.values())):
            if candidate.issuer == issuer.subject and _issued(candidate, issuer):
                found.setdefault(_key_id(candidate), candidate)
    return found


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False


def _number(crl: x509.CertificateRevocationList) -> int:
    """CRLNumber (RFC 5280 section 5.2.3); -1 where there is none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, *UNREADABLE):
        return -1


def _stays(
    old: x509.CertificateRevocationList,
    new: x509.CertificateRevocationList,
    bundle: TrustBundle,
    now: datetime,
    hold: timedelta,
) -> bool:
    """Whether the list of before is still the one to use: it is the same, or the new one is held back for a moment."""
    if old is new:
        return True
    if new.issuer not in {root.subject for root in bundle.roots} or now >= (old.next_update_utc or now):
        return False  # it is about agents, who are believed no longer; or the old one has ended
    known = {entry.serial_number for entry in old}
    # By the CA's date, so that all agents do so at the same time, however late each of them polls. A date that lies far
    # ahead of our clock holds nothing back.
    return any(
        entry.serial_number not in known and -CLOCK_SKEW <= now - entry.revocation_date_utc < hold for entry in new
    )


def _file_name(crl: x509.CertificateRevocationList) -> str | None:
    """The name under which the CA publishes it; None for one that is not this CA's."""
    try:
        return crl_name(crl)
    except (x509.ExtensionNotFound, ValueError, IndexError):
        return None


def _points(certificate: x509.Certificate) -> x509.CRLDistributionPoints | tuple[()]:
    try:
        return certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return ()


def _key_id(authority: x509.Certificate) -> str:
    try:
        return authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except (x509.ExtensionNotFound, ValueError):
        raise AnswerRefused("CA certificate", got="no key identifier") from None
