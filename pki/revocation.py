"""What the CA tells the world about revocation: lists by issuer and shard, their deltas, and answers to OCSP requests.

A shard is 65,536 certificates issued one after the other. Its list names the revoked ones among them, so it does not
grow with the CA, and a revocation makes one list new and not all. A list lives for a day; it is made anew at half its
life, or when something was revoked, with the next number; until then the same one comes back, and no key is needed.

The complete list is always the newest word. Where it is long, a delta list beside it has what was revoked since the
list that its holders may have kept for half a life, so that they need not fetch all of it again. Measured with serial
numbers of 20 octets and a reason each: an entry is 53 octets, a list of 1,000 is 53 kB, of 6,500 (a tenth of a shard)
345 kB, while a delta of ten is 1 kB. Below 1,000 entries a delta would save less than fetching it costs.

Not every verifier understands partitions. OpenSSL does. NSS refuses such a list, for it knows no critical extension of
lists. GnuTLS does not look at the distribution point, and asks the first list of the issuer that it finds: give it the
one list that the certificate names, and no other. A CA without URLs publishes one complete list of each issuer, which
all three read as it is meant.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import keys, list_profiles, ocsp, profiles
from pki.errors import AuthorityDamaged, KeyStoreError, PKIError, RequestRefused, StoreError, UnknownName
from pki.keys import Signer
from pki.list_names import crl_file_name, crl_name
from pki.profiles import Issuer, RevokedSerial, Urls
from pki.records import CertificateStatus, Issue, IssuerRecord, Record, State
from pki.store import Store
from trust.bundles import RevocationLists
from trust.clock import utc

DELTA_FROM = 1_000  # entries: see above
_ISSUERS_AGE = timedelta(seconds=1)  # how long another process's rotation or pruning may go unnoticed by OCSP
_FILE = re.compile(r"([0-9a-f]{40})(?:-([1-9][0-9]{0,8}))?(\.delta)?\.crl", re.ASCII)


class Revocations:
    """The published revocation state of one CA. Safe for threads and several processes.

    Args:
        signer_of: the key of a CA by its key id; asked only when something has to be signed.
        serials: where the serial numbers of OCSP signers come from.
    """

    def __init__(
        self,
        store: Store,
        signer_of: Callable[[str], Signer],
        urls: Urls,
        *,
        serials: Callable[[], int] = x509.random_serial_number,
    ) -> None:
        self._store = store
        self._signer_of = signer_of
        self._urls = urls
        self._serials = serials
        self._own_id = f"spiffe://{store.settings().trust_domain}"
        self._lists = RevocationLists()
        self._kept: dict[tuple[str, int, bool], _Kept] = {}
        self._known: _Known | None = None
        self._signers: dict[str, ocsp.OcspSigner] = {}
        self._making_signer = threading.Lock()

    def lists(self, now: datetime) -> RevocationLists:
        """The complete lists of every CA that is not pruned, the revoked ones included, and of all their shards.

        Also those that the next certificates will name: whoever goes by lists refuses a certificate without one, and
        asks for new ones every few minutes only.

        What has not changed is the same object as before, so that whoever has indexed it need not do so again. A CA
        whose key is offline, and about which something new would have to be signed, has no list until it is.

        Raises:
            WrongPassword, KeyStoreError: a list has to be made, and its key cannot be used.
            AuthorityDamaged, StoreError: the database.
        """
        found = []
        for record in self._store.issuers():
            for shard in self._shards(record, now):
                try:
                    found.append(self._complete(record, shard, now).crl)
                except KeyStoreError:
                    if record.online:
                        raise
        previous = self._lists.crls
        if len(found) != len(previous) or any(new is not old for new, old in zip(found, previous, strict=True)):
            self._lists = RevocationLists.of(found)
        return self._lists

    def names(self, now: datetime) -> tuple[str, ...]:
        """The file names of the complete lists that there are, in the order of `lists`; nothing is signed for it.

        Whoever wants all lists asks here: shards are counted over all CAs, so those of one CA begin anywhere.
        """
        return tuple(
            crl_file_name(record.key_id, shard)
            for record in self._store.issuers()
            for shard in self._shards(record, now)
        )

    def missing(self, now: datetime) -> tuple[str, ...]:
        """The names without a list that verifiers would accept at `now`: never made, ended, or older than a revocation.

        Nothing is signed for it. A list that this process has not seen yet is read, once.
        """
        missing = []
        for record in self._store.issuers():
            for shard in self._shards(record, now):
                kept = self._stored(record, shard, now)
                if kept is None or not kept.begins <= now < kept.ends:
                    missing.append(crl_file_name(record.key_id, shard))
        return tuple(missing)

    def published(self, now: datetime) -> dict[str, bytes]:
        """Every file below the CRL base URL, deltas included, DER by name."""
        files = {}
        for crl in self.lists(now).crls:
            name = crl_name(crl)
            files[name] = self.named(name, now)
            if _has_delta(crl):
                delta = f"{name.removesuffix('.crl')}.delta.crl"
                files[delta] = self.named(delta, now)
        return files

    def named(self, file_name: str, now: datetime) -> bytes:
        """One list or delta, DER, by the last part of its URL.

        Raises:
            UnknownName: there is no such list: another CA, a shard without certificates, a delta that does not pay.
            WrongPassword, KeyStoreError, AuthorityDamaged, StoreError: as `lists`.
        """
        unknown = UnknownName("revocation list", got=file_name, expected="one that a certificate of this CA names")
        parts = _FILE.fullmatch(file_name)
        if parts is None:
            raise unknown
        key_id, shard, is_delta = parts[1], int(parts[2] or 0), parts[3] is not None
        record = next((one for one in self._store.issuers() if one.key_id == key_id), None)
        # Asked for first: a list that is made is also stored, and strangers choose the names.
        if record is None or shard not in self._shards(record, now):
            raise unknown
        complete = self._complete(record, shard, now)
        if not is_delta:
            return complete.der
        delta = self._delta(record, shard, now) if _has_delta(complete.crl) else None
        if delta is None:
            raise unknown
        return delta.der

    def sign_for_long(self, key_id: str, signer: Signer, *, lifetime: timedelta, now: datetime) -> None:
        """Make the list of a CA whose key goes offline, or is at hand for a moment, to last until it is at hand again.

        What is revoked meanwhile is on no list until this is called again. Whoever is shown the old list until its end
        does not hear of it even then, so `lifetime` is best no longer than the next ceremony is away.

        Raises:
            UnknownName: no such CA.
        """
        record = next((one for one in self._store.issuers() if one.key_id == key_id), None)
        if record is None:
            raise UnknownName("CA", got=key_id, expected="one of this authority")
        issuer = Issuer.of(record.certificate)
        for shard in self._store.shards(key_id, now):

            def make(number: int, revoked: list[RevokedSerial], shard: int = shard) -> x509.CertificateRevocationList:
                builder = list_profiles.revocation_list(
                    revoked, issuer=issuer, number=number, now=now, urls=self._urls, shard=shard, lifetime=lifetime
                )
                return keys.sign_crl(builder, signer)

            self._store.crl(key_id, shard, now=now, fresh=lambda _: False, make=make)

    def respond(self, request: bytes, now: datetime) -> bytes:
        """Answer an OCSP request, DER to DER. What cannot be answered gets an answer that says so, not an exception.

        1. A request that is malformed, too large, or about several certificates: malformedRequest.
        2. One about a CA that is not ours, or that cannot name a responder now (revoked, expired, offline, locked):
           unauthorized, which is RFC 5019's word for "ask somebody else".
        3. A serial number that this CA has not issued, or has forgotten: unknown. Otherwise good or revoked, expired
           or not, for as long as the certificate is remembered.

        Raises:
            AuthorityDamaged, StoreError: the database cannot be used.
        """
        # 1.
        try:
            question = ocsp.parse(request)
        except RequestRefused:
            return ocsp.MALFORMED

        # 2.
        record = self._asked_about(question.issuer, now)
        if record is None:
            return ocsp.UNAUTHORIZED
        try:
            signer = self._ocsp_signer(record, now)
        except (AuthorityDamaged, StoreError):
            raise
        except PKIError:
            return ocsp.UNAUTHORIZED

        # 3. A serial number of another of our CAs is not one of this CA's.
        status = self._store.status(question.serial)
        if status.issuer != record.key_id:
            status = CertificateStatus(known=False)
        return ocsp.answer(question, status, signer=signer, now=now)

    def _shards(self, record: IssuerRecord, now: datetime) -> list[int]:
        """The shards whose lists are published: at most two more than have certificates, however strangers guess."""
        found = set(self._store.shards(record.key_id, now))
        if record.kind == "intermediate" and record.state in (State.PREPARED, State.ACTIVE) and self._urls.crl_base:
            current = self._store.newest_shard()
            found |= {current, current + 1}
        return sorted(found)

    def _complete(self, record: IssuerRecord, shard: int, now: datetime) -> _Kept:
        place = (record.key_id, shard, False)

        def due(kept: _Kept) -> bool:
            # Nobody can renew the list of an offline CA before its end.
            return not kept.begins <= now < (kept.middle if record.online else kept.ends)

        # Asked every few seconds, for lists of megabytes that change twice a day.
        kept = self._kept.get(place)
        if kept is not None and not due(kept) and self._store.crl_number(record.key_id, shard) == kept.number:
            return kept
        issuer = Issuer.of(record.certificate)

        def fresh(crl: x509.CertificateRevocationList) -> bool:
            return not due(self._keep(place, crl, issuer))

        def make(number: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
            builder = list_profiles.revocation_list(
                revoked,
                issuer=issuer,
                number=number,
                now=now,
                urls=self._urls,
                shard=shard,
                with_delta=len(revoked) >= DELTA_FROM,
            )
            return keys.sign_crl(builder, self._signer_of(record.key_id))

        return self._keep(place, self._store.crl(record.key_id, shard, now=now, fresh=fresh, make=make), issuer)

    def _stored(self, record: IssuerRecord, shard: int, now: datetime) -> _Kept | None:
        """The list in the store, current or not; None where there is none, or one that lacks a revocation."""
        number, place = self._store.crl_number(record.key_id, shard), (record.key_id, shard, False)
        kept = self._kept.get(place)
        if number is None or (kept is not None and kept.number == number):
            return kept if number is not None else None

        def make(_number: int, _revoked: list[RevokedSerial]) -> NoReturn:
            raise UnknownName("revocation list", got="none that is up to date", expected="one")

        try:
            crl = self._store.crl(record.key_id, shard, now=now, fresh=lambda _: True, make=make)
        except UnknownName:  # something was revoked a moment ago
            return None
        return self._keep(place, crl, Issuer.of(record.certificate))

    def _delta(self, record: IssuerRecord, shard: int, now: datetime) -> _Kept | None:
        issuer = Issuer.of(record.certificate)
        place = (record.key_id, shard, True)

        def fresh(delta: x509.CertificateRevocationList) -> bool:
            kept = self._keep(place, delta, issuer)
            return kept.begins <= now < kept.ends

        def make(number: int, base_number: int, since: list[RevokedSerial]) -> x509.CertificateRevocationList:
            builder = list_profiles.delta_list(
                since, issuer=issuer, number=number, base_number=base_number, now=now, urls=self._urls, shard=shard
            )
            return keys.sign_crl(builder, self._signer_of(record.key_id))

        delta = self._store.delta(record.key_id, shard, fresh=fresh, make=make)
        return None if delta is None else self._keep(place, delta, issuer)

    def _keep(self, place: tuple[str, int, bool], crl: x509.CertificateRevocationList, issuer: Issuer) -> _Kept:
        """The list with its bytes, verified; one that was kept before comes back as the same object.

        To verify and to write a long list takes tens of milliseconds, and a signature is made for one list only. What
        is published is always what was verified: bytes that were changed under the same signature are not.
        """
        kept = self._kept.get(place)
        if kept is None or kept.crl.signature != crl.signature:
            end = crl.next_update_utc
            own = crl.is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]
            key_id, shard, is_delta = place
            # The list of another shard, in the wrong row, is signed as well.
            if end is None or not own or crl_name(crl) != crl_file_name(key_id, shard, delta=is_delta):
                raise AuthorityDamaged("CA database is damaged", got="another revocation list", do="restore a backup")
            der = crl.public_bytes(Encoding.DER)
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            kept = self._kept[place] = _Kept(crl=crl, der=der, number=number, begins=crl.last_update_utc, ends=end)
        return kept

    def _asked_about(self, issuer: ocsp.IssuerHash, now: datetime) -> IssuerRecord | None:
        known = self._known
        if known is None or not timedelta(0) <= now - known.at < _ISSUERS_AGE or issuer not in known.by_hash:
            records = self._store.issuers()
            by_hash = {name: record for record in records for name in ocsp.IssuerHash.all_of(record.certificate)}
            self._known = known = _Known(at=now, by_hash=by_hash)
        return known.by_hash.get(issuer)

    def _ocsp_signer(self, record: IssuerRecord, now: datetime) -> ocsp.OcspSigner:
        """The signer of a CA, of this process: its key is in memory only, and dies with it."""
        if record.state is State.REVOKED:
            raise KeyStoreError("CA is revoked", expected="one whose word counts")
        signer = self._signers.get(record.key_id)
        if signer is not None and signer.good_for_a_full_answer(now):
            return signer
        with self._making_signer:
            signer = self._signers.get(record.key_id)
            if signer is None or not signer.good_for_a_full_answer(now):
                try:
                    signer = self._signers[record.key_id] = self._new_ocsp_signer(record, now)
                except PKIError:
                    if signer is None or not signer.good(now):
                        raise
        return signer

    def _new_ocsp_signer(self, record: IssuerRecord, now: datetime) -> ocsp.OcspSigner:
        issuer = Issuer.of(record.certificate)
        if not issuer.not_before <= now < issuer.not_after:
            raise KeyStoreError("CA is not valid now", expected="one whose word counts")
        key = keys.generate()
        builder = profiles.ocsp_signer(key.public_key(), issuer=issuer, serial=self._serials(), now=now)
        certificate = keys.sign(builder, self._signer_of(record.key_id))
        # It enters store and ledger like everything that the CA signs. Nobody looks for it on a list.
        made = Record.of(certificate, kind="ocsp", issuer=record.key_id, spiffe_id=self._own_id)
        self._store.issue(Issue(record=made, now=utc(now)))
        return ocsp.OcspSigner(certificate=certificate, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A list of ours."""

    crl: x509.CertificateRevocationList
    der: bytes
    number: int
    begins: datetime
    ends: datetime

    @property
    def middle(self) -> datetime:
        return self.begins + (self.ends - self.begins) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The CAs, by all the ways in which OCSP requests name them, as they were at a time."""

    at: datetime
    by_hash: dict[ocsp.IssuerHash, IssuerRecord]


def _has_delta(crl: x509.CertificateRevocationList) -> bool:
    return any(extension.oid == x509.FreshestCRL.oid for extension in crl.extensions)
