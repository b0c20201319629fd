"""The CA's memory: certificates, revocations and revocation lists. The one file of `pki` that knows SQL.

SQLite in WAL mode with full synchronisation: when a method that writes returns, the row survives a crash of the
process and of the machine. Another database is another URL.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    exists,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pki.errors import (
    AuthorityDamaged,
    AuthorityMissing,
    AuthorityNotValid,
    DatabaseLocked,
    DuplicateCertificate,
    StoreError,
)
from pki.profiles import CRL_RETENTION, RevokedSerial
from trust.identity import thumbprint

DATABASE_FILE = "ca.db"
BUSY_TIMEOUT = timedelta(seconds=5)  # a transaction takes milliseconds; longer means that somebody holds the lock
SCHEMA_VERSION = 1

_metadata = MetaData()

_settings = Table(
    "settings",
    _metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("schema_version", Integer, nullable=False),
    Column("trust_domain", String(255), nullable=False),
    Column("crl_base_url", String(2048)),
)
_certificates = Table(
    "certificates",
    _metadata,
    Column("id", Integer, primary_key=True),  # the order of issuing
    Column("serial", String(40), nullable=False, unique=True),  # lower-case hex: SQL integers are too short
    Column("kind", String(12), nullable=False),
    Column("issuer", String(64), nullable=False, index=True),  # key id of the CA that signed it
    Column("spiffe_id", String(2048), nullable=False, index=True),
    Column("thumbprint", String(43), nullable=False, unique=True),
    Column("not_before", BigInteger, nullable=False),  # seconds since 1970
    Column("not_after", BigInteger, nullable=False, index=True),
    Column("der", LargeBinary, nullable=False),
)
_revocations = Table(
    "revocations",
    _metadata,
    Column("serial", String(40), ForeignKey(_certificates.c.serial), primary_key=True),
    Column("revoked_at", BigInteger, nullable=False),
    Column("reason", String(32), nullable=False),
)
_crls = Table(
    "crls",
    _metadata,
    Column("issuer", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("stale", Boolean, nullable=False),  # something was revoked since
    Column("der", LargeBinary, nullable=False),
)
_records = select(_certificates, _revocations.c.revoked_at, _revocations.c.reason).select_from(
    _certificates.outerjoin(_revocations)
)
# One statement, made once: a certificate is stored only if its issuer has not been revoked.
_columns = [column for column in _certificates.c if column.name != "id"]
_add = insert(_certificates).from_select(
    _columns,
    select(*(bindparam(column.name, type_=column.type) for column in _columns)).where(
        ~exists().where(_revocations.c.serial == bindparam("issuer_serial"))
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is decided once, when a CA is made."""

    trust_domain: str
    crl_base_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One certificate that this CA has made."""

    serial: int
    kind: str  # "root", "intermediate" or "agent"
    issuer: str  # key id of the CA that signed it, hex
    spiffe_id: str
    thumbprint: str  # x5t#S256
    not_before: datetime
    not_after: datetime
    der: bytes = field(repr=False)
    revoked_at: datetime | None = None
    reason: x509.ReasonFlags | None = None

    @classmethod
    def of(cls, certificate: x509.Certificate, *, kind: str, issuer: str, spiffe_id: str) -> Record:
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
        )

    @property
    def certificate(self) -> x509.Certificate:
        if thumbprint(self.der) != self.thumbprint:
            raise _damaged(f"certificate {self.serial:x} is not the one that was stored")
        return x509.load_der_x509_certificate(self.der)

    def status(self, now: datetime) -> str:
        """ "revoked", "expired", "not yet valid" or "valid"; revoked outweighs the rest."""
        if self.revoked_at is not None:
            return "revoked"
        if now > self.not_after:
            return "expired"
        return "valid" if now >= self.not_before else "not yet valid"


class Store:
    """The database of one CA; safe for threads, and for several processes at once."""

    def __init__(self, url: str | URL) -> None:
        patience = BUSY_TIMEOUT.total_seconds()
        self._engine = create_engine(url, pool_timeout=patience, connect_args={"timeout": patience})
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(immediate=True)
        # Threads queue here, in turn, instead of waking up in SQLite's own waiting loop.
        self._turn = threading.Lock()

    @classmethod
    def create(cls, folder: Path, settings: Settings, records: list[Record]) -> None:
        """Make the database of a new CA, with its first certificates, and close it."""
        path = folder / DATABASE_FILE
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        store = cls(URL.create("sqlite", database=str(path)))
        try:
            with store._write() as connection:
                _metadata.create_all(connection)
                connection.execute(
                    insert(_settings).values(
                        id=1,
                        schema_version=SCHEMA_VERSION,
                        trust_domain=settings.trust_domain,
                        crl_base_url=settings.crl_base_url,
                    )
                )
                for record in records:
                    connection.execute(insert(_certificates), _row(record))
        finally:
            store.close()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the database in a CA's folder; one that is not there is not made."""
        path = folder / DATABASE_FILE
        if not path.is_file():
            raise AuthorityMissing(
                f"no CA in {folder}", expected=f"a folder with {DATABASE_FILE}", do="make one with `a2a-pki init`"
            )
        return cls(URL.create("sqlite", database=str(path)))

    def close(self) -> None:
        self._engine.dispose()

    def settings(self) -> Settings:
        with self._read() as connection:
            row = connection.execute(select(_settings)).mappings().one_or_none()
        if row is None or row["schema_version"] != SCHEMA_VERSION:
            got = "nothing" if row is None else f"schema {row['schema_version']}"
            raise StoreError("CA database", got=got, expected=f"schema {SCHEMA_VERSION}")
        return Settings(trust_domain=row["trust_domain"], crl_base_url=row["crl_base_url"])

    def add(self, record: Record, *, issuer_serial: int) -> None:
        """Remember a certificate, durably, before anybody gets it.

        Raises:
            AuthorityNotValid: the issuer has been revoked, perhaps by another process and a moment ago.
            DuplicateCertificate: the serial number or the certificate is there already.
        """
        with self._write() as connection:
            if connection.execute(_add, {**_row(record), "issuer_serial": _hex(issuer_serial)}).rowcount != 1:
                raise AuthorityNotValid("intermediate CA has been revoked", expected="a CA that may issue")

    def find(self, serial: int) -> Record | None:
        with self._read() as connection:
            row = connection.execute(_records.where(_certificates.c.serial == _hex(serial))).mappings().first()
        return None if row is None else _record(row)

    def records(
        self, *, kind: str | None = None, spiffe_id: str | None = None, ends_after: datetime | None = None
    ) -> list[Record]:
        """The certificates, oldest first, narrowed by whatever is given."""
        query = _records.order_by(_certificates.c.id)
        if kind is not None:
            query = query.where(_certificates.c.kind == kind)
        if spiffe_id is not None:
            query = query.where(_certificates.c.spiffe_id == spiffe_id)
        if ends_after is not None:
            query = query.where(_certificates.c.not_after >= int(ends_after.timestamp()))
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def revoke(self, record: Record, *, reason: x509.ReasonFlags, now: datetime) -> None:
        """Remember a revocation; the first one stays, with its reason and date."""
        known = select(_revocations.c.serial).where(_revocations.c.serial == _hex(record.serial))
        with self._write() as connection:
            if connection.execute(known).first() is not None:
                return
            connection.execute(
                insert(_revocations).values(
                    serial=_hex(record.serial), revoked_at=int(now.timestamp()), reason=reason.value
                )
            )
            connection.execute(update(_crls).where(_crls.c.issuer == record.issuer).values(stale=True))

    def crl(
        self,
        issuer: str,
        *,
        now: datetime,
        fresh: Callable[[x509.CertificateRevocationList], bool],
        make: Callable[[int, list[RevokedSerial]], x509.CertificateRevocationList],
    ) -> x509.CertificateRevocationList:
        """The revocation list of an issuer: the stored one while it is `fresh`, or a new one with the next number.

        A new one is made inside the transaction, so that no revocation and no number is lost between two processes.
        """
        stored = select(_crls).where(_crls.c.issuer == issuer)
        with self._read() as connection:
            row = connection.execute(stored).mappings().first()
        if (current := _fresh(row, fresh)) is not None:  # an empty list is a list too
            return current
        with self._write() as connection:
            row = connection.execute(stored).mappings().first()
            if (current := _fresh(row, fresh)) is not None:  # somebody else was faster
                return current
            number = 1 if row is None else row["number"] + 1
            crl = make(number, _revoked(connection, issuer, now - CRL_RETENTION))
            values = {"number": number, "stale": False, "der": crl.public_bytes(Encoding.DER)}
            if row is None:
                connection.execute(insert(_crls).values(issuer=issuer, **values))
            else:
                connection.execute(update(_crls).where(_crls.c.issuer == issuer).values(**values))
        return crl

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _own_errors(), _intact(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """One durable transaction: committed when the block ends, undone when it raises."""
        if not self._turn.acquire(timeout=BUSY_TIMEOUT.total_seconds()):
            raise _locked()
        try:
            with _own_errors(), self._writing.begin() as connection:
                yield connection
        finally:
            self._turn.release()


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by us, in `_begin`
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
    cursor.execute("PRAGMA fullfsync = ON")  # on macOS: for the disk, and not only for its cache
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes the lock at the start: a reader that turns writer half-way would fail at once, without waiting.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise DuplicateCertificate("certificate cannot be stored", got=error.orig, expected="a new serial") from error
    except PoolTimeout as error:
        raise _locked() from error
    except DBAPIError as error:
        primary = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the rest is the extended code
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _locked() from error
        raise StoreError("CA database", got=error.orig, expected="a readable and writable database") from error


@contextmanager
def _intact() -> Iterator[None]:
    """While rows are read, and nothing else is done: a value of another kind than was written is damage."""
    try:
        yield
    except (ValueError, TypeError, OverflowError, OSError) as error:  # the last two: times beyond all calendars
        raise _damaged(error) from None


def _damaged(got: object) -> AuthorityDamaged:
    return AuthorityDamaged("CA database is damaged", got=got, expected="what was written", do="restore a backup")


def _locked() -> DatabaseLocked:
    return DatabaseLocked(
        "CA database is locked",
        got=f"no turn within {BUSY_TIMEOUT.total_seconds():g} s",
        expected="a free database",
        do="end the other program that uses it, or try again",
    )


def _fresh(
    row: RowMapping | None, fresh: Callable[[x509.CertificateRevocationList], bool]
) -> x509.CertificateRevocationList | None:
    if row is None or row["stale"]:
        return None
    with _intact():
        crl = x509.load_der_x509_crl(row["der"])
    return crl if fresh(crl) else None


def _revoked(connection: Connection, issuer: str, ends_after: datetime) -> list[RevokedSerial]:
    query = (
        select(_revocations)
        .join(_certificates)
        .where(_certificates.c.issuer == issuer, _certificates.c.not_after >= int(ends_after.timestamp()))
        .order_by(_revocations.c.revoked_at, _revocations.c.serial)
    )
    with _intact():
        return [
            RevokedSerial(
                serial=int(row["serial"], 16),
                revoked_at=_time(row["revoked_at"]),
                reason=x509.ReasonFlags(row["reason"]),
            )
            for row in connection.execute(query).mappings()
        ]


def _row(record: Record) -> dict[str, Any]:
    return {
        "serial": _hex(record.serial),
        "kind": record.kind,
        "issuer": record.issuer,
        "spiffe_id": record.spiffe_id,
        "thumbprint": record.thumbprint,
        "not_before": int(record.not_before.timestamp()),
        "not_after": int(record.not_after.timestamp()),
        "der": record.der,
    }


def _record(row: RowMapping) -> Record:
    return Record(
        serial=int(row["serial"], 16),
        kind=row["kind"],
        issuer=row["issuer"],
        spiffe_id=row["spiffe_id"],
        thumbprint=row["thumbprint"],
        not_before=_time(row["not_before"]),
        not_after=_time(row["not_after"]),
        der=bytes(row["der"]),
        revoked_at=None if row["revoked_at"] is None else _time(row["revoked_at"]),
        reason=None if row["reason"] is None else x509.ReasonFlags(row["reason"]),
    )


def _hex(serial: int) -> str:
    return f"{serial:040x}"


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
