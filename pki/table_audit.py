"""Part of the audit of a ledger (`pki.ledger_audit`): do the tables say what the entries say?

Certificates and revocations are compared in a temporary SQLite database on disk, so that memory stays small at any
size. What has no entry of its own is signed, and measured by what has: tokens by the seal of a CA and by the
certificates that were issued, revocation lists by their signatures and by the revocations that they have to name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from pki import enrolment
from pki.errors import EnrolmentTokenForged
from pki.ledger import Entry, entry_for_record, leaf_hash
from pki.list_names import crl_file_name, crl_name
from pki.profiles import BACKDATE, CRL_RETENTION
from pki.records import LedgerRow, ListRow, Record, TokenRecord
from trust.identity import thumbprint

MAX_PROBLEMS = 1000  # of a database that is altogether another one, the rest says nothing new

SCRATCH = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE issued (serial TEXT PRIMARY KEY, position INTEGER, facts BLOB, issuer TEXT, shard INTEGER,
                     not_after INTEGER, role TEXT, pruned INTEGER NOT NULL DEFAULT 0);
CREATE INDEX ending ON issued (pruned, issuer, not_after);
CREATE TABLE revoked (serial TEXT PRIMARY KEY, position INTEGER, says TEXT);
CREATE TABLE row (serial TEXT PRIMARY KEY, facts BLOB, says TEXT, spiffe_id TEXT, position INTEGER,
                  revoked_position INTEGER);
CREATE TABLE pruned (position INTEGER, issuer TEXT, before INTEGER, removed INTEGER);
CREATE TABLE retired (serial TEXT PRIMARY KEY, position INTEGER, before INTEGER);
BEGIN;
"""


class Tables(Protocol):
    """What is compared with the ledger here."""

    def each_record(self) -> Iterator[Record]: ...
    def each_token(self) -> Iterator[TokenRecord]: ...
    def each_list(self) -> Iterator[ListRow]: ...
    def ledger_rows(self, start: int = 0) -> Iterator[LedgerRow]: ...


class Findings:
    """What an audit has found so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.more = 0  # that nobody will read
        self.last = "nothing"  # the row that could still be read

    def add(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        return (*self.problems, *([f"and {self.more} more"] if self.more else []))


class TableAudit:
    """The tables of one CA; `issued`, `revoked`, `pruned` and `retired` are filled from the ledger by `note`."""

    def __init__(
        self,
        tables: Tables,
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        scratch: sqlite3.Connection,
        findings: Findings,
    ) -> None:
        scratch.executescript(SCRATCH)
        self._tables = tables
        self._keys = keys
        self._scratch = scratch
        self._findings = findings

    def note(self, table: str, *values: object) -> bool:
        """Keep something from the ledger for later. Whether it was not there."""
        marks = ", ".join("?" * len(values))
        columns = {"issued": "(serial, position, facts, issuer, shard, not_after, role)"}.get(table, "")
        statement = f"INSERT OR IGNORE INTO {table} {columns} VALUES ({marks})"  # noqa: S608  our own names
        return self._scratch.execute(statement, values).rowcount == 1

    def is_revoked(self, serial: str) -> bool:
        return self._scratch.execute("SELECT 1 FROM revoked WHERE serial = ?", (serial,)).fetchone() is not None

    def is_ended_ca(self, serial: str | None, before: int) -> bool:
        """Whether the ledger knows that certificate as the one of a CA, and it ended before that time."""
        ended = "SELECT 1 FROM issued WHERE serial = ? AND role IN ('root', 'intermediate') AND not_after < ?"
        return self._scratch.execute(ended, (serial, before)).fetchone() is not None

    def read_certificates(self) -> None:
        for record in self._tables.each_record():
            says = None
            if record.revoked_at is not None:
                says = f"{int(record.revoked_at.timestamp())} {record.reason.value if record.reason else ''}"
            facts = leaf_hash(entry_for_record(record).encode())
            positions = (record.position, record.revoked_position)
            if not self.note("row", key_of(record.serial), facts, says, record.spiffe_id, *positions):
                self._findings.add(f"{who(record.serial, record.spiffe_id)} is there twice")
            if wrong := self._wrong(record):
                self._findings.add(f"{who(record.serial, record.spiffe_id)} {wrong}")
            self._findings.last = who(record.serial, record.spiffe_id)

    def compare(self, known: int) -> None:
        """Once the ledger has been read to its end.

        Args:
            known: its size when the tables were read.
        """
        self._compare_prunings()
        self._compare_certificates(known)
        self._compare_revocations(known)

    def check_tokens(self, known: int) -> None:
        """Read after `compare`. A seal cannot be made without a key; whether a token was used, the ledger says."""
        for token in self._tables.each_token():
            self._findings.last = f"token {token.id}"
            try:
                enrolment.check_seal(token, self._keys.get)
            except EnrolmentTokenForged as error:
                self._findings.add(str(error))
                continue
            serial = key_of(enrolment.serial(token.digest))
            found = self._scratch.execute("SELECT position FROM issued WHERE serial = ?", (serial,)).fetchone()
            if found is not None and token.used_at is None and found[0] < known:
                self._problem_at(found[0], f"its token {token.id} was made to look as if it were not used")
            if token.used_at is not None and (found is None or key_of(token.serial) != serial):
                self._findings.add(
                    f"token {token.id} looks as if it were used, and the ledger has no certificate for it"
                )

    def check_lists(self, known: int) -> None:
        """Read after `compare`."""
        for row in self._tables.each_list():
            name = crl_file_name(row.issuer, row.shard)
            self._findings.last = f"revocation list {name}"
            if wrong := self._wrong_list(row, name, known):
                self._findings.add(f"revocation list {name} {wrong}")

    def _problem_at(self, position: int, text: str) -> None:
        """A problem that is named by an entry, which is read again for it, unless nobody will see it."""
        if len(self._findings.problems) < MAX_PROBLEMS:
            row = next(self._tables.ledger_rows(position))
            text = f"entry {position} of the ledger ({Entry.decode(row.entry).describe()}): {text}"
        self._findings.add(text)

    def _wrong(self, record: Record) -> str | None:
        """What is wrong with the certificate itself."""
        if thumbprint(record.der) != record.thumbprint:
            return "is not the certificate that its thumbprint was made of"
        try:
            certificate = x509.load_der_x509_certificate(record.der)
            uris = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        except ValueError:
            return "is not a certificate"
        if (
            certificate.serial_number != record.serial
            or certificate.not_valid_before_utc != record.not_before
            or certificate.not_valid_after_utc != record.not_after
            or (uris != [record.spiffe_id] and record.kind != "ocsp")
        ):
            return "has a row that differs from the certificate"
        key = self._keys.get(record.issuer)
        if key is None:
            return f"is by a CA that is not known, {record.issuer}"
        try:
            verify_certificate(certificate, key)
        except (InvalidSignature, UnsupportedAlgorithm):
            return f"was not signed by its CA, {record.issuer}"
        return None

    def _compare_prunings(self) -> None:
        """Each pruning removed all that had ended, and says how many certificates that were."""
        mark = """UPDATE issued SET pruned = 1 WHERE pruned = 0 AND issuer = ? AND not_after < ? AND position < ?
                  AND role NOT IN ('root', 'intermediate')"""
        found = self._scratch.execute(
            "SELECT position, issuer, before, removed FROM pruned ORDER BY position"
        ).fetchall()
        for position, issuer, before, removed in found:
            count = self._scratch.execute(mark, (issuer, before, position)).rowcount
            if count != removed:
                self._problem_at(position, f"{removed} certificates removed, and {count} could be")

    def _compare_certificates(self, known: int) -> None:
        unlogged = "SELECT serial, spiffe_id FROM row WHERE serial NOT IN (SELECT serial FROM issued)"
        for serial, spiffe_id in self._scratch.execute(unlogged):
            self._findings.add(f"{who(int(serial, 16), spiffe_id)} was inserted: the ledger has no entry about it")
        differing = """SELECT issued.position, issued.facts = row.facts FROM issued JOIN row USING (serial)
                       WHERE issued.facts != row.facts OR issued.position != row.position"""
        for position, same in self._scratch.execute(differing):
            what = "the row of the certificate differs from this entry"
            self._problem_at(position, f"{what}: it is at another place in the order" if same else what)
        for (position,) in self._scratch.execute(_REMOVED, (known,)):
            self._problem_at(position, "the row of the certificate was removed")

    def _compare_revocations(self, known: int) -> None:
        inserted = """SELECT serial, spiffe_id FROM row
                      WHERE says IS NOT NULL AND serial NOT IN (SELECT serial FROM revoked)"""
        for serial, spiffe_id in self._scratch.execute(inserted):
            self._findings.add(f"{who(int(serial, 16), spiffe_id)} is revoked, and the ledger has no entry about it")
        # A row that says nothing about positions is none of a database.
        differing = """SELECT revoked.position, row.says FROM revoked JOIN row USING (serial)
                       WHERE revoked.says != row.says OR (row.says IS NULL AND revoked.position < ?)
                       OR (row.says IS NOT NULL AND row.position IS NOT NULL
                           AND revoked.position IS NOT row.revoked_position)"""
        for position, says in self._scratch.execute(differing, (known,)):
            self._problem_at(position, f"the revocation {'was removed' if says is None else 'differs from this entry'}")

    def _wrong_list(self, row: ListRow, name: str, known: int) -> str | None:
        """What is wrong with a revocation list. One that is stale is only good for its number."""
        key = self._keys.get(row.issuer)
        if key is None:
            return "is of a CA that is not known"
        crl = _list(row.der, key)
        number = None if crl is None else _number(crl)
        if number is not None and row.number < number:
            return f"has number {row.number}, and was published as number {number}"
        if crl is None:
            return "was not signed by its CA"
        if row.stale:
            return None
        if crl_name(crl) != name or number != row.number or row.position > known:
            return "is not the one that its CA has signed"
        since = "SELECT 1 FROM revoked JOIN issued USING (serial) WHERE issuer = ? AND shard = ?"
        late = f"{since} AND revoked.position >= ? AND revoked.position < ?"
        if self._scratch.execute(late, (row.issuer, row.shard, row.position, known)).fetchone() is not None:
            return "lacks what was revoked since, and is not marked as stale"
        listed = int((crl.last_update_utc + BACKDATE - CRL_RETENTION).timestamp())
        if wrong := self._wrong_content(crl, row, 0, listed):
            return wrong
        if row.delta_der is None:
            return None
        delta = _list(row.delta_der, key)
        if delta is None or crl_name(delta) != name.replace(".crl", ".delta.crl") or _number(delta) != row.number:
            return "has a delta that its CA has not signed for it"
        base = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number
        if base != row.base_number:
            return f"has a delta to number {base}, and the row says {row.base_number}"
        return self._wrong_content(delta, row, row.base_position, listed)

    def _wrong_content(self, crl: x509.CertificateRevocationList, row: ListRow, start: int, listed: int) -> str | None:
        """By the ledger: what was revoked from `start` on until the list was made, and had not ended long before."""
        query = """SELECT serial, not_after < ? FROM revoked JOIN issued USING (serial)
                   WHERE issuer = ? AND shard = ? AND revoked.position >= ? AND revoked.position < ?"""
        revoked = dict(self._scratch.execute(query, (listed, row.issuer, row.shard, start, row.position)))
        for entry in crl:
            serial = key_of(entry.serial_number) or ""
            if revoked.pop(serial, None) is None:
                return f"names {entry.serial_number:x}, and the ledger has no such revocation"
        for serial, ended in revoked.items():
            if not ended:
                return f"does not name {int(serial, 16):x}, which was revoked"
        return None


# An entry whose certificate is gone and was not pruned: not with the others of its CA, and not with its CA.
_REMOVED = """
SELECT position FROM issued WHERE position < ? AND pruned = 0 AND serial NOT IN (SELECT serial FROM row)
AND NOT EXISTS (SELECT 1 FROM retired WHERE retired.serial = issued.serial AND retired.position > issued.position
                AND issued.role IN ('root', 'intermediate') AND issued.not_after < retired.before)
ORDER BY position
"""


def key_of(serial: int | None) -> str | None:
    return None if serial is None else f"{serial:040x}"


def who(serial: int, spiffe_id: str) -> str:
    return f"certificate {serial:x} of {spiffe_id}"


def verify_certificate(certificate: x509.Certificate, key: ec.EllipticCurvePublicKey) -> None:
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None:
        raise InvalidSignature
    key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))


def _list(der: bytes, key: ec.EllipticCurvePublicKey) -> x509.CertificateRevocationList | None:
    """A list that was signed with that key; None for anything else."""
    try:
        crl = x509.load_der_x509_crl(der)
        return crl if crl.is_signature_valid(key) else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
