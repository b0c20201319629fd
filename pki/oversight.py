"""What a CA says about itself: its certificates, its CAs, its lists and its ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Unpack

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pki import health, ledger_audit, proofs, rotation
from pki.errors import AuthorityDamaged, LedgerDamaged, UnknownSerial, WrongPassword
from pki.health import PublishedList
from pki.issuers import Issuers
from pki.ledger import entry_for_record
from pki.ledger_audit import LedgerReport
from pki.profiles import Urls
from pki.proofs import Inclusion
from pki.records import IssuerRecord, Record, Settings, State
from pki.revocation import Revocations
from pki.store import Counts, Store
from pki.store.reading import Filters
from pki.tokens import Tokens
from trust.bundles import RevocationLists, TrustBundle
from trust.clock import Clock
from trust.identity import AgentID


class Oversight(Tokens):
    """The part of a `CertificateAuthority` that answers."""

    def __init__(
        self, store: Store, issuers: Issuers, settings: Settings, *, clock: Clock, serials: Callable[[], int]
    ) -> None:
        super().__init__(store, issuers, settings, clock=clock, serials=serials)
        self.revocations = Revocations(store, issuers.signer, Urls.of(settings), serials=serials)

    def find(self, serial: int) -> Record:
        """The certificate with that serial number.

        Raises:
            UnknownSerial: this CA has made no such certificate.
        """
        record = self._store.find(serial)
        if record is None:
            raise UnknownSerial("serial number", got=f"{serial:x}", expected="one that this CA has issued")
        return record

    def find_thumbprint(self, x5t: str) -> Record | None:
        """The certificate with that thumbprint (x5t#S256); None: this CA has made no such certificate."""
        return self._store.find_thumbprint(x5t)

    def certificates(self, *, agent_id: AgentID | None = None, **filters: Unpack[Filters]) -> list[Record]:
        """The certificates that this CA has made, oldest first, narrowed by whatever is given."""
        if agent_id is not None:
            filters["spiffe_id"] = str(agent_id)
        return self._store.records(**filters)

    def counts(self, now: datetime | None = None) -> Counts:
        """How many certificates there are, by state and age."""
        return self._store.counts(self._moment(now))

    def bundle(self) -> TrustBundle:
        """The roots of the trust domain, for everybody who is to trust its agents."""
        while True:
            # Read twice: what is published under one number is always the same.
            sequence = self._store.bundle_sequence()
            roots = [
                one.certificate
                for one in self.published_issuers()
                if one.kind == "root" and one.state is not State.REVOKED
            ]
            if self._store.bundle_sequence() == sequence:
                hint = int(rotation.REFRESH_HINT.total_seconds())
                return TrustBundle(
                    trust_domain=self.trust_domain, roots=tuple(roots), sequence=sequence, refresh_hint=hint
                )

    def ca_certificates(self) -> tuple[x509.Certificate, ...]:
        """All CA certificates that chains may need: roots of the bundle first, then intermediates."""
        alive = [record for record in self.published_issuers() if record.state is not State.REVOKED]
        return tuple(record.certificate for kind in ("root", "intermediate") for record in alive if record.kind == kind)

    def crl(self, now: datetime | None = None) -> RevocationLists:
        """The revocation lists of every CA, each current at `now`.

        Each lives 24 hours and is made anew at half its life or after a revocation, with the next number; until
        then the same one comes back, and no password is needed.
        """
        return self.revocations.lists(self._moment(now))

    def published_lists(self) -> tuple[PublishedList, ...]:
        """The revocation lists as they were last made, current or not; no key is needed."""
        return health.published_lists(self._store, self._moment(None))

    def issuers(self) -> list[IssuerRecord]:
        """The CAs of this authority, oldest first."""
        return self._store.issuers()

    def published_issuers(self) -> list[IssuerRecord]:
        """As `issuers`, but for rows that somebody has put into the database who has no key of this CA."""
        return [record for record in self._store.issuers() if self._store.is_covered(record)]

    # The ledger.

    def ledger_head(self) -> str:
        """The signed head (JWS) of the ledger as it is now: whoever keeps it can tell if the past is changed.

        Raises:
            WrongPassword: the newest head is not signed yet, and the CA was opened without its password.
        """
        head = self._store.sealed_head()
        if head is None:
            raise LedgerDamaged("ledger", got="no tree head", expected="one", do="restore a backup")
        if head.jws is None:
            raise WrongPassword(
                "head of the ledger is not signed", got="no open key", expected="the password of the CA"
            )
        return head.jws

    def prove(self, serial: int) -> Inclusion:
        """Show that the ledger has the issuance of a certificate, under its head as it is now.

        `pki.proofs` says how somebody who has neither the ledger nor this CA verifies it.

        Raises:
            UnknownSerial: this CA has made no such certificate.
            LedgerDamaged: the ledger does not show it.
            WrongPassword: as `ledger_head`.
        """
        entry = entry_for_record(self.find(serial)).encode()
        signed = self.ledger_head()
        with self._store.snapshot() as books:
            return proofs.prove(entry, [row.leaf for row in books.ledger_rows()], signed)

    def last_write(self) -> datetime | None:
        """When this CA has written something last; None: never."""
        head = self._store.head()
        return None if head is None else head.time

    def audit_ledger(self, head: str | None = None, *, root: str | None = None) -> LedgerReport:
        """Compare the ledger with everything else in the database, and with what was kept elsewhere.

        Args:
            head: what `ledger_head` gave once.
            root: the fingerprint of the root (`sha256:...`). Without one of the two, the database is only compared
                with itself, and one that was replaced as a whole, keys and all, is not noticed.
        """
        with self._store.snapshot() as books:
            public = {record.key_id: _public_key(record) for record in books.issuers()}
            return ledger_audit.audit(books, keys=public, head=head, root=root)


def _public_key(record: IssuerRecord) -> ec.EllipticCurvePublicKey:
    key = record.certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthorityDamaged("CA database is damaged", got=type(key).__name__, expected="an EC key")
    return key
