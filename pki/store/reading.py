"""Everything that is only read, from the database as it is now or from one moment of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

from cryptography import x509
from sqlalchemy import Column, ColumnElement, Connection, RowMapping, Select, func, literal, select

from pki.errors import LedgerDamaged
from pki.profiles import BACKDATE, CRL_RETENTION, RevokedSerial
from pki.records import (
    CertificateStatus,
    IssuerRecord,
    LedgerRow,
    ListRow,
    PendingKey,
    Record,
    SealedHead,
    Settings,
    TokenRecord,
)
from pki.store import rows
from pki.store.database import damaged, intact, own_errors
from pki.store.schema import bans, certificates, crls, heads, issuers, ledger, pending_keys, settings, tokens
from pki.store.statements import every, fetch, one

_BEFORE_ALL = -(1 << 63)  # the smallest number that a database knows: somebody else may have written any
_PAGE = 1000  # rows that are held at once where many are streamed
_STATUS = 'SELECT "issuer", "revoked_at", "reason" FROM "certificates" WHERE "serial" = ?'
_HEAD_COLUMNS = ("size", "root", "time", "frontier", "jws")
_HEAD = 'SELECT "size", "root", "time", "frontier", "jws" FROM "heads" ORDER BY "size" DESC LIMIT 1'


class Filters(TypedDict, total=False):
    """Which certificates; what is left out or None does not narrow."""

    kind: str | None
    spiffe_id: str | None
    pattern: str | None  # on the SPIFFE ID: `*` is any text, `?` one character
    issuer: str | None
    ends_after: datetime | None  # at that time or later
    ends_before: datetime | None  # before that time
    revoked: bool | None


class Counts(TypedDict):
    """How many certificates there are, the CA's own included; pruned ones are not counted any more."""

    total: int
    valid: int  # neither expired nor revoked
    expired: int
    revoked: int
    last_hour: int  # issued within it
    last_day: int


class Reads(ABC):
    """The questions that a store, or a snapshot of one, answers."""

    @abstractmethod
    def _read(self) -> AbstractContextManager[Connection]: ...

    def settings(self) -> Settings:
        with intact():
            return rows.settings_of(self._settings())

    def policy_text(self) -> str | None:
        """The policy file, as it was given; None: the CA has none."""
        with intact():
            return rows.optional_text(self._settings()["policy"])

    def bundle_sequence(self) -> int:
        """The sequence number of the trust bundle: grows whenever the roots to be published change."""
        with intact():
            return int(self._settings()["bundle_sequence"])

    def find(self, serial: int) -> Record | None:
        return self._record(certificates.c.serial, rows.hex_of(serial))

    def find_thumbprint(self, x5t: str) -> Record | None:
        return self._record(certificates.c.thumbprint, x5t)

    def find_thumbprints(self, several: Collection[str]) -> dict[str, Record]:
        """As `find_thumbprint`, for several in one look."""
        with self._read() as connection:
            found = [rows.record_of(row) for row in every(connection, certificates.c.thumbprint, several)]
        return {record.thumbprint: record for record in found}

    def status(self, serial: int) -> CertificateStatus:
        """What a status responder may say: one look into one index."""
        with self._read() as connection:
            found = fetch(connection, _STATUS, (rows.hex_of(serial),))
            if not found:
                return CertificateStatus(known=False)
            issuer, revoked_at, reason = found[0]
            return CertificateStatus(
                known=True,
                issuer=issuer,
                revoked_at=None if revoked_at is None else rows.moment(revoked_at),
                reason=None if reason is None else x509.ReasonFlags(reason),
            )

    def records(self, **filters: Unpack[Filters]) -> list[Record]:
        """The certificates, oldest first, narrowed by whatever is given."""
        with self._read() as connection:
            query = select(certificates).where(*_conditions(connection, filters)).order_by(certificates.c.position)
            return [rows.record_of(row) for row in connection.execute(query).mappings()]

    def each_record(self, **filters: Unpack[Filters]) -> Iterator[Record]:
        """As `records`, in pages: any number of certificates in little memory."""
        position = certificates.c.position

        def page(connection: Connection, last: int) -> Select[Any]:
            conditions = _conditions(connection, filters)
            return select(certificates).where(position > last, *conditions).order_by(position).limit(_PAGE)

        for row in self._pages(page, "position", _BEFORE_ALL):
            with intact():
                record = rows.record_of(row)
            yield record

    def counts(self, now: datetime) -> Counts:
        at = rows.seconds(now)
        not_before, not_after = certificates.c.not_before, certificates.c.not_after
        revoked = certificates.c.revoked_at.is_not(None)
        live = not_after >= at
        since = [rows.seconds(now - BACKDATE - ago) for ago in (timedelta(hours=1), timedelta(days=1))]
        # Five counts, because each of them reads one index and no table.
        with self._read() as connection:

            def count(*conditions: ColumnElement[bool]) -> int:
                return connection.execute(
                    select(func.count()).select_from(certificates).where(*conditions)
                ).scalar_one()

            total, unexpired = count(), count(live)
            all_revoked, revoked_live = count(revoked), count(revoked, live)
            last_hour, last_day = (count(not_before >= start) for start in since)
        return Counts(
            total=total,
            valid=unexpired - revoked_live,
            expired=total - unexpired,
            revoked=all_revoked,
            last_hour=last_hour,
            last_day=last_day,
        )

    def shards(self, issuer: str, now: datetime) -> list[int]:
        """The shards of an issuer that need a revocation list: 0, and those with certificates that may be listed."""
        own, shard = certificates.c.issuer == issuer, certificates.c.shard
        found, last, ends = {0}, -1, rows.seconds(now - CRL_RETENTION)
        with self._read() as connection:
            # From shard to shard through the index: a look or two for each, however many certificates it has.
            while (
                following := connection.execute(select(func.min(shard)).where(own, shard > last)).scalar()
            ) is not None:
                last = following
                newest = select(func.max(certificates.c.not_after)).where(own, shard == literal(last))
                if connection.execute(newest).scalar_one() >= ends:
                    found.add(last)
            return sorted(found)  # here, because what is no number is damage

    def bans(self) -> list[tuple[str, datetime]]:
        with self._read() as connection:
            found = connection.execute(select(bans.c.spiffe_id, bans.c.since).order_by(bans.c.since, bans.c.spiffe_id))
            return [(spiffe_id, rows.moment(since)) for spiffe_id, since in found]

    def is_banned(self, spiffe_id: str) -> bool:
        with self._read() as connection:
            return one(connection, bans.c.spiffe_id, spiffe_id) is not None

    def token(self, token_id: str) -> TokenRecord | None:
        with self._read() as connection:
            row = one(connection, tokens.c.id, token_id)
            return None if row is None else rows.token_of(row)

    def find_tokens(self, several: Collection[str]) -> dict[str, TokenRecord]:
        """As `token`, for several in one look."""
        with self._read() as connection:
            found = [rows.token_of(row) for row in every(connection, tokens.c.id, several)]
        return {token.id: token for token in found}

    def tokens(self, now: datetime) -> list[TokenRecord]:
        """The tokens that have not expired, used or not, oldest first."""
        query = select(tokens).where(tokens.c.expires_at > rows.seconds(now)).order_by(tokens.c.created_at, tokens.c.id)
        with self._read() as connection:
            return [rows.token_of(row) for row in connection.execute(query).mappings()]

    def each_token(self) -> Iterator[TokenRecord]:
        """All tokens that are there, also expired ones, as stored."""
        for row in self._pages(
            lambda _, last: select(tokens).where(tokens.c.id > last).order_by(tokens.c.id).limit(_PAGE), "id", ""
        ):
            with intact():
                found = rows.token_of(row)
            yield found

    def each_list(self) -> Iterator[ListRow]:
        """The revocation lists that are there, as stored; one at a time, because they can be long."""
        with self._read() as connection:
            places = connection.execute(select(crls.c.issuer, crls.c.shard).order_by(crls.c.issuer, crls.c.shard)).all()
        for issuer, shard in places:
            with self._read() as connection:
                query = select(crls).where(crls.c.issuer == issuer, crls.c.shard == shard)
                row = connection.execute(query).mappings().first()
            if row is not None:
                with intact():
                    found = rows.list_of(row)
                yield found

    def issuers(self) -> list[IssuerRecord]:
        """The CAs, oldest first."""
        with self._read() as connection:
            return read_issuers(connection)

    def pending_key(self) -> PendingKey | None:
        """The key that waits for its certificate."""
        with self._read() as connection:
            row = connection.execute(select(pending_keys)).mappings().first()
            return None if row is None else rows.pending_of(row)

    def ledger_size(self) -> int:
        with self._read() as connection:
            return read_size(connection)

    def ledger_rows(self, start: int = 0) -> Iterator[LedgerRow]:
        """The rows from position `start` on, as stored; none of it is verified here.

        From 0 on means all of them, also those at positions that cannot be.
        """
        position = ledger.c.position
        for row in self._pages(
            lambda _, last: select(ledger).where(position > last).order_by(position).limit(_PAGE),
            "position",
            start - 1 if start > 0 else _BEFORE_ALL,
        ):
            with intact():
                found = rows.ledger_row_of(row)
            yield found

    def heads(self) -> Iterator[SealedHead]:
        """All tree heads, the smallest first, as stored."""
        for row in self._pages(
            lambda _, last: select(heads).where(heads.c.size > last).order_by(heads.c.size).limit(_PAGE),
            "size",
            _BEFORE_ALL,
        ):
            with intact():
                found = rows.head_of(row)
            yield found

    def head(self) -> SealedHead | None:
        """The newest tree head."""
        with self._read() as connection:
            return read_head(connection)

    def _settings(self) -> RowMapping:
        with self._read() as connection:
            row = connection.execute(select(settings)).mappings().one_or_none()
        if row is None:
            raise damaged("no settings")
        return row

    def _record(self, key: Column[str], value: str) -> Record | None:
        with self._read() as connection:
            row = one(connection, key, value)
            return None if row is None else rows.record_of(row)

    def _pages(self, page: Any, key: str, last: Any) -> Iterator[RowMapping]:
        """Rows in ascending order of `key`; no connection is held while the caller works on them."""
        while True:
            with self._read() as connection:
                found = connection.execute(page(connection, last)).mappings().all()
            yield from found
            if len(found) < _PAGE:
                return
            last = found[-1][key]


class Snapshot(Reads):
    """All answers are of the moment at which the first question was asked."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with own_errors(), intact():
            yield self.connection


# Far beyond what a CA can count to, and far below what its heads can say (JSON's 2^53).
MAX_SEQUENCE = 2**40


def read_issuers(connection: Connection) -> list[IssuerRecord]:
    return [rows.issuer_of(row) for row in connection.execute(select(issuers).order_by(issuers.c.position)).mappings()]


def read_size(connection: Connection) -> int:
    size: int = connection.execute(select(func.coalesce(func.max(heads.c.size), 0))).scalar_one()
    return size


def read_sequence(connection: Connection, *, more: int = 0) -> int:
    """The number of the trust bundle, or so many more; LedgerDamaged where that is none."""
    sequence: object = connection.execute(select(settings.c.bundle_sequence)).scalar_one()
    if type(sequence) is not int or not 0 <= sequence < MAX_SEQUENCE - more:
        raise LedgerDamaged(
            "number of the trust bundle", got="one that this CA has not counted to", expected=f"below {MAX_SEQUENCE}"
        )
    return sequence + more


def read_head(connection: Connection) -> SealedHead | None:
    found = fetch(connection, _HEAD)
    return rows.head_of(dict(zip(_HEAD_COLUMNS, found[0], strict=True))) if found else None


def read_revoked(
    connection: Connection, issuer: str, shard: int, *conditions: ColumnElement[bool]
) -> list[RevokedSerial]:
    """The revoked certificates of one issuer's shard, in the order of their revocation."""
    query = (
        select(certificates.c.serial, certificates.c.revoked_at, certificates.c.reason)
        .where(
            certificates.c.issuer == issuer,
            certificates.c.shard == shard,
            certificates.c.revoked_at.is_not(None),
            *conditions,
        )
        .order_by(certificates.c.revoked_position)
    )
    with intact():
        return [
            RevokedSerial(serial=int(serial, 16), revoked_at=rows.moment(at), reason=x509.ReasonFlags(reason))
            for serial, at, reason in connection.execute(query)
        ]


def _conditions(connection: Connection, filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        certificates.c[name] == filters[name]
        for name in ("kind", "spiffe_id", "issuer")
        if filters.get(name) is not None
    ]
    if (pattern := filters.get("pattern")) is not None:
        found.append(_matches(connection, pattern))
    if (after := filters.get("ends_after")) is not None:
        found.append(certificates.c.not_after >= rows.seconds(after))
    if (before := filters.get("ends_before")) is not None:
        found.append(certificates.c.not_after < rows.seconds(before))
    if (revoked := filters.get("revoked")) is not None:
        revoked_at = certificates.c.revoked_at
        found.append(revoked_at.is_not(None) if revoked else revoked_at.is_(None))
    return found


def _matches(connection: Connection, pattern: str) -> ColumnElement[bool]:
    """Case matters, on SQLite too, where LIKE would not care; nothing but `*` and `?` is special."""
    if connection.dialect.name == "sqlite":
        return certificates.c.spiffe_id.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    for special in "\\%_":
        pattern = pattern.replace(special, "\\" + special)
    return certificates.c.spiffe_id.like(pattern.replace("*", "%").replace("?", "_"), escape="\\")
