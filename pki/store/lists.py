"""Revocation lists: kept until they are stale, made inside a transaction, with numbers that only grow.

RFC 5280 section 5.2.3: whoever has a list takes no other with a smaller number for a newer one. So a number is one
more than the last, and at least the time in seconds: where a row was deleted or counted back, nothing begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from pki.profiles import CRL_LIFETIME, CRL_RETENTION, RevokedSerial
from pki.store import rows
from pki.store.database import Database, damaged, intact
from pki.store.reading import read_revoked, read_size
from pki.store.schema import certificates, crls

MakeList = Callable[[int, list[RevokedSerial]], x509.CertificateRevocationList]
MakeDelta = Callable[[int, int, list[RevokedSerial]], x509.CertificateRevocationList]
Fresh = Callable[[x509.CertificateRevocationList], bool]

# How far beyond the time in seconds a CA may have counted, or somebody else has: more lists than seconds are not made,
# and a clock that is wrong is not wrong by more. A number once signed is for ever, so what is further is not signed.
MARGIN = timedelta(days=36525)
BASE_LIFETIME = CRL_LIFETIME / 2  # a delta is relative to a list that is at most that old


def crl(
    database: Database, issuer: str, shard: int, *, now: datetime, fresh: Fresh, make: MakeList
) -> x509.CertificateRevocationList:
    with database.read() as connection:
        row = _row(connection, issuer, shard)
    if (current := _complete(row, fresh)) is not None:  # an empty list is a list too
        return current
    with database.write() as connection:
        row = _row(connection, issuer, shard)
        if (current := _complete(row, fresh)) is not None:  # somebody else was faster
            return current
        at, size = rows.seconds(now), read_size(connection)
        number = next_number(None if row is None else row["number"], at)
        made = make(number, read_revoked(connection, issuer, shard, _listable(now)))
        values = {
            "number": number,
            "position": size,
            "stale": False,
            "der": made.public_bytes(Encoding.DER),
            "delta_der": None,
        }
        base_at = 0 if row is None or type(row["base_at"]) is not int else row["base_at"]
        if not 0 <= at - base_at < BASE_LIFETIME.total_seconds():
            values |= {"base_number": number, "base_position": size, "base_at": at}
        if row is None:
            connection.execute(insert(crls).values(issuer=issuer, shard=shard, **values))
        else:
            connection.execute(update(crls).where(*_is(issuer, shard)).values(**values))
    return made


def next_number(last: object, at: int) -> int:
    """The number of a list that is made now.

    Args:
        last: the number of the one before, as its row says it; None: there is none.
        at: now, in seconds.

    Raises:
        AuthorityDamaged: nobody has counted to `last`.
    """
    if last is None:
        return at
    if type(last) is not int or last >= at + MARGIN.total_seconds():
        raise damaged(f"number {last!r} of a revocation list, to which nobody has counted")
    return max(last + 1, at)


def current_number(database: Database, issuer: str, shard: int) -> int | None:
    columns = select(crls.c.number).where(*_is(issuer, shard), ~crls.c.stale)
    with database.read() as connection:
        number: int | None = connection.execute(columns).scalar()
    return number


def delta(
    database: Database, issuer: str, shard: int, *, fresh: Fresh, make: MakeDelta
) -> x509.CertificateRevocationList | None:
    with database.read() as connection:
        row = _row(connection, issuer, shard)
    if row is None or (current := _delta(row, fresh)) is not None:
        return None if row is None else current
    with database.write() as connection:
        row = _row(connection, issuer, shard)
        if row is None or (current := _delta(row, fresh)) is not None:
            return None if row is None else current
        with intact():
            complete = x509.load_der_x509_crl(row["der"])
        number = complete.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if row["number"] != number or type(row["base_number"]) is not int or not 0 <= row["base_number"] <= number:
            raise damaged("a revocation list and a row with other numbers")
        position = certificates.c.revoked_position
        since = (position >= row["base_position"], position < row["position"])
        made = make(number, row["base_number"], read_revoked(connection, issuer, shard, *since))
        values = {"delta_der": made.public_bytes(Encoding.DER)}
        connection.execute(update(crls).where(*_is(issuer, shard)).values(**values))
    return made


def _listable(now: datetime) -> ColumnElement[bool]:
    return certificates.c.not_after >= rows.seconds(now - CRL_RETENTION)


def _is(issuer: str, shard: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return crls.c.issuer == issuer, crls.c.shard == shard


def _row(connection: Connection, issuer: str, shard: int) -> RowMapping | None:
    return connection.execute(select(crls).where(*_is(issuer, shard))).mappings().first()


def _complete(row: RowMapping | None, fresh: Fresh) -> x509.CertificateRevocationList | None:
    return None if row is None or row["stale"] else _loaded(row["der"], fresh)


def _delta(row: RowMapping, fresh: Fresh) -> x509.CertificateRevocationList | None:
    return None if row["delta_der"] is None else _loaded(row["delta_der"], fresh)


def _loaded(der: bytes, fresh: Fresh) -> x509.CertificateRevocationList | None:
    with intact():
        found = x509.load_der_x509_crl(der)
    return found if fresh(found) else None
