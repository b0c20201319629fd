"""Revocations, changes of the CAs, and pruning: what each of them does inside its one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from pki import ledger
from pki.errors import StateChanged, UnknownSerial
from pki.profiles import CRL_RETENTION
from pki.records import IssuerRecord, Record, State
from pki.store import rows
from pki.store.appending import Journal
from pki.store.database import intact
from pki.store.reading import read_issuers, read_sequence
from pki.store.schema import certificates, crls, issuers, pending_keys, settings, tokens
from pki.store.statements import chunks

PUBLISHED = (State.PREPARED, State.ACTIVE, State.RETIRING)  # roots that agents are told to trust
_revoke = (
    update(certificates)
    .where(certificates.c.serial == bindparam("of"))
    .values(revoked_at=bindparam("at"), reason=bindparam("why"), revoked_position=bindparam("where"))
)


def revoke(
    connection: Connection, journal: Journal, serials: Sequence[int], *, reason: x509.ReasonFlags, now: datetime
) -> list[Record]:
    known = read_issuers(connection)
    _revoke_all(connection, journal, serials, reason, now, known)
    _count_roots(connection, journal, known)
    found = _by_serial(connection, serials)
    return [found[serial] for serial in serials]


def change_issuers(
    connection: Connection,
    journal: Journal,
    *,
    add: Sequence[tuple[IssuerRecord, Record]],
    states: Mapping[str, State],
    now: datetime,
    expect: Mapping[str, State] | None,
    keys: Mapping[str, bytes | None] = {},
    revoked: Sequence[int] = (),
) -> None:
    if revoked:  # while the CA that signed the last head is still one that may
        journal.check(now)
    before = read_issuers(connection)
    known = {issuer.key_id: issuer for issuer in before}
    if expect is not None:
        _same_states(known, expect)
    same_password(before, keys)
    for issuer, record in add:
        position = journal.add(ledger.entry_for_record(record))
        connection.execute(insert(certificates).values(rows.record_row(record, position)))
        connection.execute(
            insert(issuers).values(rows.issuer_row(issuer, journal.add(ledger.entry_for_issuer(issuer))))
        )
        connection.execute(delete(pending_keys).where(pending_keys.c.key_id == issuer.key_id))
    for key_id, state in states.items():
        if key_id not in known or (known[key_id].state is State.REVOKED and state is not State.REVOKED):
            got = "a revoked one" if key_id in known else "unknown"
            raise StateChanged(f"CA {key_id}", got=got, expected="a CA of ours that has not been revoked")
        _set_state(connection, journal, known[key_id], state, now)
    _revoke_all(connection, journal, revoked, x509.ReasonFlags.ca_compromise, now, before)
    _count_roots(connection, journal, before)


def _same_states(known: Mapping[str, IssuerRecord], expect: Mapping[str, State]) -> None:
    """Not only those that are changed: of two who add the next CA, one has decided without knowing of it."""
    for key_id in sorted(known.keys() | expect.keys()):
        got = known[key_id].state if key_id in known else "none"
        expected = expect.get(key_id, "none")
        if got != expected:
            raise StateChanged(f"CA {key_id}", got=got, expected=expected, do="look again: somebody was faster")


def same_password(known: Sequence[IssuerRecord], keys: Mapping[str, bytes | None]) -> None:
    """Nobody has changed the password while a key was made: what it was encrypted with would open no other one.

    Raises:
        StateChanged: somebody has.
    """
    for issuer in known:
        if issuer.key_id in keys and issuer.key_pem is not None and issuer.key_pem != keys[issuer.key_id]:
            raise StateChanged(
                "keys of the CA", got="other ones than before", expected="the same password", do="start again with it"
            )


def prune(connection: Connection, journal: Journal, *, issuer: str | None, now: datetime) -> int:
    connection.execute(delete(tokens).where(tokens.c.expires_at <= rows.seconds(now)))
    known = read_issuers(connection)
    done = [one for one in known if one.state in (State.RETIRING, State.REVOKED) and issuer in (None, one.key_id)]
    if issuer is not None and not done:
        raise StateChanged(f"CA {issuer}", got="unknown, or in use", expected="a CA that is retiring or revoked")
    before = now - CRL_RETENTION
    removed = 0
    for one in done:
        # A certificate of a CA goes with the CA's own row, below, and not before it.
        old = and_(
            certificates.c.issuer == one.key_id,
            certificates.c.not_after < rows.seconds(before),
            certificates.c.kind.not_in(("root", "intermediate")),
        )
        if gone := connection.execute(delete(certificates).where(old)).rowcount:
            journal.add(ledger.entry_for_pruning(one.key_id, before=before, removed=gone, now=now))
            removed += gone
    # Intermediates before the roots that signed them.
    for one in sorted(done, key=lambda item: item.kind == "root"):
        own = certificates.c.serial == rows.hex_of(one.serial)
        left = select(func.count()).select_from(certificates).where(certificates.c.issuer == one.key_id, ~own)
        if one.not_after >= before or connection.execute(left).scalar_one():
            continue
        removed += connection.execute(delete(certificates).where(own)).rowcount
        connection.execute(delete(issuers).where(issuers.c.key_id == one.key_id))
        connection.execute(delete(crls).where(crls.c.issuer == one.key_id))
        journal.add(ledger.entry_for_retirement(one, now))
    _count_roots(connection, journal, known)
    return removed


def _set_state(connection: Connection, journal: Journal, issuer: IssuerRecord, state: State, now: datetime) -> None:
    if issuer.state is state:
        return
    changed = replace(issuer, state=state, since=rows.moment(rows.seconds(now)))
    values = {"state": state.value, "since": rows.seconds(now)}
    connection.execute(update(issuers).where(issuers.c.key_id == issuer.key_id).values(**values))
    journal.add(ledger.entry_for_issuer(changed))


def _revoke_all(
    connection: Connection,
    journal: Journal,
    serials: Sequence[int],
    reason: x509.ReasonFlags,
    now: datetime,
    known: list[IssuerRecord],
) -> None:
    """Certificates, and the CAs whose certificates they are."""
    found = _by_serial(connection, serials)
    for serial in serials:
        if serial not in found:
            raise UnknownSerial("serial number", got=f"{serial:x}", expected="one that this CA has issued")
    _revoke_records(connection, journal, found.values(), reason, now)
    for issuer in known:
        if issuer.serial in found:
            _set_state(connection, journal, issuer, State.REVOKED, now)


def _revoke_records(
    connection: Connection, journal: Journal, records: Iterable[Record], reason: x509.ReasonFlags, now: datetime
) -> None:
    fresh = [record for record in records if record.revoked_at is None]
    if not fresh:
        return
    connection.execute(
        _revoke,
        [
            {
                "of": rows.hex_of(record.serial),
                "at": rows.seconds(now),
                "why": reason.value,
                "where": journal.add(ledger.entry_for_revocation(record, reason=reason, now=now)),
            }
            for record in fresh
        ],
    )
    for issuer, shard in {(record.issuer, record.shard) for record in fresh}:
        stale = update(crls).where(crls.c.issuer == issuer, crls.c.shard == shard).values(stale=True)
        connection.execute(stale)


def _count_roots(connection: Connection, journal: Journal, before: list[IssuerRecord]) -> None:
    """The bundle's sequence grows whenever the roots that it publishes are others than before."""
    if _roots(before) != _roots(read_issuers(connection)):
        connection.execute(update(settings).values(bundle_sequence=read_sequence(connection, more=1)))
        journal.counted = True


def _roots(known: list[IssuerRecord]) -> set[str]:
    return {one.key_id for one in known if one.kind == "root" and one.state in PUBLISHED}


def _by_serial(connection: Connection, serials: Sequence[int]) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for some in chunks([rows.hex_of(serial) for serial in serials]):
        query = select(certificates).where(certificates.c.serial.in_(some))
        with intact():
            records = [rows.record_of(row) for row in connection.execute(query).mappings()]
        found.update((record.serial, record) for record in records)
    return found
