"""What issuing a batch of certificates checks and writes, inside one transaction.

Checked for each certificate, in this order; one that is refused takes none of the others with it:

1. its issuer is a CA of ours that has not been revoked;
2. its ID is not banned;
3. the certificate that it renews is ours, and not revoked;
4. the one-time token that it burns is known, not used, and no certificate has the serial number that it is good for.

That no serial number and no certificate is stored twice is for the database's unique indexes to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from pki import ledger
from pki.errors import (
    AgentBanned,
    AuthorityNotValid,
    CertificateAlreadyRevoked,
    EnrolmentTokenUnknown,
    EnrolmentTokenUsed,
    PKIError,
)
from pki.records import Issue, State
from pki.store import rows
from pki.store.appending import Journal, Seal
from pki.store.guarding import Guard
from pki.store.schema import bans, certificates, issuers, tokens
from pki.store.statements import among, insert_many, run_many

_BURN = 'UPDATE "tokens" SET "used_at" = ?, "used_by" = ?, "serial" = ? WHERE "id" = ?'


def issue(
    connection: Connection, items: Sequence[Issue], *, trust_domain: str, seal: Seal | None, guard: Guard
) -> tuple[list[PKIError | None], int]:
    """Check the items, write those that pass; returns the error or None of each, and the ledger's new size.

    Raises:
        DuplicateCertificate: one of them is stored already; which one is not said, and the transaction is spoilt.
    """
    errors = _refusals(connection, items)
    passed = [item for item, error in zip(items, errors, strict=True) if error is None]
    journal = Journal(connection, guard)
    if passed:
        insert_many(
            connection,
            certificates,
            [rows.record_row(item.record, journal.add(ledger.entry_for_record(item.record))) for item in passed],
        )
        if burnt := [_burnt(item) for item in passed if item.burns is not None]:
            run_many(connection, _BURN, burnt)
        journal.write(trust_domain=trust_domain, now=max(item.now for item in passed), seal=seal)
    return errors, journal.size


def _refusals(connection: Connection, items: Sequence[Issue]) -> list[PKIError | None]:
    states = among(connection, issuers.c.key_id, {item.record.issuer for item in items}, issuers.c.state)
    banned = among(connection, bans.c.spiffe_id, {item.record.spiffe_id for item in items}, bans.c.since)
    renewed = among(
        connection,
        certificates.c.serial,
        {rows.hex_of(item.renews) for item in items if item.renews is not None},
        certificates.c.revoked_at,
    )
    burns = [item.burns for item in items if item.burns is not None]
    used = among(connection, tokens.c.id, {use.id for use in burns}, tokens.c.used_at)
    spent = among(
        connection, certificates.c.serial, {rows.hex_of(use.serial) for use in burns}, certificates.c.not_before
    )
    for use in burns:  # what the token's row says can be taken back by whoever can write it
        if use.id in used and used[use.id] is None:
            used[use.id] = spent.get(rows.hex_of(use.serial))
    return [_refusal(item, states, banned, renewed, used) for item in items]


def _refusal(
    item: Issue, states: dict[str, Any], banned: dict[str, Any], renewed: dict[str, Any], used: dict[str, Any]
) -> PKIError | None:
    record = item.record
    # (1) The issuer. Another process may have revoked it a moment ago.
    state = states.get(record.issuer)
    if state is None or state == State.REVOKED:
        got = f"CA {record.issuer}, " + ("unknown" if state is None else "revoked")
        return AuthorityNotValid("CA may not issue", got=got, expected="a CA that has not been revoked")
    # (2) The ID.
    if record.spiffe_id in banned:
        return AgentBanned(f"{record.spiffe_id} is banned", expected="an ID that is not", do="lift the ban first")
    # (3) The certificate that is renewed.
    if item.renews is not None:
        serial = rows.hex_of(item.renews)
        if serial not in renewed or renewed[serial] is not None:
            got = "unknown" if serial not in renewed else "revoked"
            return CertificateAlreadyRevoked(
                "certificate cannot be renewed", got=got, expected="one that is ours and not revoked", do="enrol again"
            )
    # (4) The token.
    if item.burns is not None:
        if item.burns.id not in used:
            return EnrolmentTokenUnknown("one-time token", got="an unknown one", expected="one that this CA has made")
        if used[item.burns.id] is not None:
            return EnrolmentTokenUsed(
                "one-time token", got="a used one", expected="one for this enrolment", do="make a new one"
            )
        used[item.burns.id] = item.now  # for the rest of this batch
    return None


def _burnt(item: Issue) -> tuple[Any, ...]:
    assert item.burns is not None  # noqa: S101  the caller's filter
    return rows.seconds(item.now), item.burns.key_digest, rows.hex_of(item.record.serial), item.burns.id
