"""Everything in one database: CAs with their states and keys, tokens, bans, shards, and a ledger over all of it.

What was issued and revoked before enters the ledger as it is found: the ledger vouches for it from now on.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from cryptography import x509

from pki import ledger
from pki.records import IssuerRecord, Record, State

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PAGE = 1000


def upgrade() -> None:
    connection = op.get_bind()
    for name in ("settings", "certificates", "revocations", "crls"):
        op.rename_table(name, f"old_{name}")
    for column in ("issuer", "spiffe_id", "not_after"):
        op.drop_index(f"ix_certificates_{column}", "old_certificates")
    tables = _create()
    _Copy(connection, tables, context.config.attributes).run()
    for name in ("revocations", "certificates", "settings", "crls"):
        op.drop_table(f"old_{name}")


class _Copy:
    def __init__(self, connection: sa.Connection, tables: dict[str, sa.Table], given: dict[Any, Any]) -> None:
        self._connection = connection
        self._tables = tables
        self._keys: dict[str, bytes] = given.get("keys", {})  # kind to the PEM of the file beside the database
        self._now: datetime = given["now"]
        self._tree = ledger.Frontier()

    def run(self) -> None:
        old = self._connection.execute(sa.text("SELECT * FROM old_settings")).mappings().first()
        if old is None:
            return  # a database without a CA
        cas = self._certificates()
        self._issuers(cas)
        self._revocations()
        self._lists()
        self._head(old["trust_domain"])
        values = {
            "id": 1,
            "trust_domain": old["trust_domain"],
            "crl_base_url": old["crl_base_url"],
            "name_constraint": any(_is_constrained(record) for record, _ in cas),
            "bundle_sequence": max(1, sum(record.kind == "root" for record, _ in cas)),
        }
        self._connection.execute(sa.insert(self._tables["settings"]), values)

    def _certificates(self) -> list[tuple[Record, bool]]:
        """The CAs among them, and whether each is revoked."""
        cas = []
        page = sa.text(
            "SELECT c.*, r.revoked_at FROM old_certificates c LEFT JOIN old_revocations r ON r.serial = c.serial"
            " WHERE c.id > :last ORDER BY c.id LIMIT :page"
        )
        last = -1
        while found := self._connection.execute(page, {"last": last, "page": _PAGE}).mappings().all():
            last = found[-1]["id"]
            records = [_record(row) for row in found]
            cas += [
                (record, row["revoked_at"] is not None)
                for record, row in zip(records, found, strict=True)
                if record.kind != "agent"
            ]
            start = self._append([ledger.entry_for_record(record) for record in records])
            lines = [
                {
                    "position": position,
                    "serial": row["serial"],
                    "kind": row["kind"],
                    "issuer": row["issuer"],
                    "shard": 0,
                    "spiffe_id": row["spiffe_id"],
                    "thumbprint": row["thumbprint"],
                    "not_before": row["not_before"],
                    "not_after": row["not_after"],
                    "der": bytes(row["der"]),
                }
                for position, row in enumerate(found, start)
            ]
            self._connection.execute(sa.insert(self._tables["certificates"]), lines)
        return cas

    def _issuers(self, cas: list[tuple[Record, bool]]) -> None:
        newest = {record.kind: record.serial for record, _ in cas}
        for record, revoked in cas:
            current = newest[record.kind] == record.serial
            issuer = IssuerRecord(
                key_id=_key_id(record),
                kind=record.kind,
                parent=record.issuer,
                state=State.REVOKED if revoked else State.ACTIVE if current else State.RETIRING,
                since=record.not_before,
                serial=record.serial,
                der=record.der,
                key_pem=self._keys.get(record.kind) if current else None,
            )
            line = {
                "key_id": issuer.key_id,
                "kind": issuer.kind,
                "parent": issuer.parent,
                "state": issuer.state.value,
                "since": int(issuer.since.timestamp()),
                "serial": f"{issuer.serial:040x}",
                "der": issuer.der,
                "key_pem": issuer.key_pem,
                "position": self._append([ledger.entry_for_issuer(issuer)]),
            }
            self._connection.execute(sa.insert(self._tables["issuers"]), line)

    def _revocations(self) -> None:
        query = sa.text(
            "SELECT c.*, r.revoked_at, r.reason FROM old_revocations r JOIN old_certificates c ON c.serial = r.serial"
            " ORDER BY r.revoked_at, c.id LIMIT :page OFFSET :start"
        )
        set_revoked = sa.text(
            "UPDATE certificates SET revoked_at = :at, reason = :why, revoked_position = :position"
            " WHERE serial = :serial"
        )
        start = 0
        while found := self._connection.execute(query, {"page": _PAGE, "start": start}).mappings().all():
            start += len(found)
            entries = [
                ledger.entry_for_revocation(
                    _record(row), reason=x509.ReasonFlags(row["reason"]), now=_time(row["revoked_at"])
                )
                for row in found
            ]
            lines = [
                {"at": row["revoked_at"], "why": row["reason"], "position": position, "serial": row["serial"]}
                for position, row in enumerate(found, self._append(entries))
            ]
            self._connection.execute(set_revoked, lines)

    def _lists(self) -> None:
        """Their numbers go on; the lists themselves are made anew."""
        for row in self._connection.execute(sa.text("SELECT * FROM old_crls")).mappings():
            line = {
                "issuer": row["issuer"],
                "shard": 0,
                "number": row["number"],
                "position": 0,
                "stale": True,
                "der": bytes(row["der"]),
                "base_number": row["number"],
                "base_position": 0,
                "base_at": 0,
            }
            self._connection.execute(sa.insert(self._tables["crls"]), line)

    def _append(self, entries: list[ledger.Entry]) -> int:
        start = self._tree.size
        encoded = [entry.encode() for entry in entries]
        leaves = [ledger.leaf_hash(data) for data in encoded]
        self._tree = self._tree.extended(leaves)
        lines = [
            {"position": position, "entry": data, "leaf": leaf}
            for position, (data, leaf) in enumerate(zip(encoded, leaves, strict=True), start)
        ]
        self._connection.execute(sa.insert(self._tables["ledger"]), lines)
        return start

    def _head(self, trust_domain: str) -> None:
        if self._tree.size:
            line = {
                "size": self._tree.size,
                "root": self._tree.root(),
                "time": int(self._now.timestamp()),
                "frontier": self._tree.to_bytes(),
            }
            self._connection.execute(sa.insert(self._tables["heads"]), line)


def _create() -> dict[str, sa.Table]:
    tables = [
        op.create_table(
            "settings",
            sa.Column("id", sa.Integer, autoincrement=False),
            sa.Column("trust_domain", sa.String(255), nullable=False),
            sa.Column("crl_base_url", sa.String(2048)),
            sa.Column("public_url", sa.String(2048)),
            sa.Column("name_constraint", sa.Boolean, nullable=False),
            sa.Column("bundle_sequence", sa.BigInteger, nullable=False),
            sa.Column("policy", sa.Text),
            sa.PrimaryKeyConstraint("id", name="pk_settings"),
        ),
        op.create_table(
            "issuers",
            sa.Column("key_id", sa.String(64)),
            sa.Column("kind", sa.String(12), nullable=False),
            sa.Column("parent", sa.String(64), nullable=False),
            sa.Column("state", sa.String(12), nullable=False),
            sa.Column("since", sa.BigInteger, nullable=False),
            sa.Column("serial", sa.String(40), nullable=False),
            sa.Column("der", sa.LargeBinary, nullable=False),
            sa.Column("key_pem", sa.LargeBinary),
            sa.Column("key_uri", sa.String(2048)),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.PrimaryKeyConstraint("key_id", name="pk_issuers"),
            sa.UniqueConstraint("serial", name="uq_issuers_serial"),
        ),
        op.create_table(
            "pending_keys",
            sa.Column("key_id", sa.String(64)),
            sa.Column("since", sa.BigInteger, nullable=False),
            sa.Column("csr", sa.LargeBinary, nullable=False),
            sa.Column("key_pem", sa.LargeBinary),
            sa.Column("key_uri", sa.String(2048)),
            sa.PrimaryKeyConstraint("key_id", name="pk_pending_keys"),
        ),
        op.create_table(
            "certificates",
            sa.Column("position", _POSITION, autoincrement=False),
            sa.Column("serial", sa.String(40), nullable=False),
            sa.Column("kind", sa.String(12), nullable=False),
            sa.Column("issuer", sa.String(64), nullable=False),
            sa.Column("shard", sa.Integer, nullable=False),
            sa.Column("spiffe_id", sa.String(2048), nullable=False),
            sa.Column("thumbprint", sa.String(43), nullable=False),
            sa.Column("not_before", sa.BigInteger, nullable=False),
            sa.Column("not_after", sa.BigInteger, nullable=False),
            sa.Column("der", sa.LargeBinary, nullable=False),
            sa.Column("revoked_at", sa.BigInteger),
            sa.Column("reason", sa.String(32)),
            sa.Column("revoked_position", sa.BigInteger),
            sa.PrimaryKeyConstraint("position", name="pk_certificates"),
            sa.UniqueConstraint("serial", name="uq_certificates_serial"),
            sa.UniqueConstraint("thumbprint", name="uq_certificates_thumbprint"),
        ),
        op.create_table(
            "bans",
            sa.Column("spiffe_id", sa.String(2048)),
            sa.Column("since", sa.BigInteger, nullable=False),
            sa.PrimaryKeyConstraint("spiffe_id", name="pk_bans"),
        ),
        op.create_table(
            "tokens",
            sa.Column("id", sa.String(64)),
            sa.Column("digest", sa.LargeBinary, nullable=False),
            sa.Column("spiffe_id", sa.String(2048), nullable=False),
            sa.Column("dns_names", sa.Text, nullable=False),
            sa.Column("lifetime", sa.BigInteger, nullable=False),
            sa.Column("created_at", sa.BigInteger, nullable=False),
            sa.Column("expires_at", sa.BigInteger, nullable=False),
            sa.Column("used_at", sa.BigInteger),
            sa.Column("used_by", sa.LargeBinary),
            sa.Column("serial", sa.String(40)),
            sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        ),
        op.create_table(
            "crls",
            sa.Column("issuer", sa.String(64)),
            sa.Column("shard", sa.Integer, autoincrement=False),
            sa.Column("number", sa.BigInteger, nullable=False),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("stale", sa.Boolean, nullable=False),
            sa.Column("der", sa.LargeBinary, nullable=False),
            sa.Column("base_number", sa.BigInteger, nullable=False),
            sa.Column("base_position", sa.BigInteger, nullable=False),
            sa.Column("base_at", sa.BigInteger, nullable=False),
            sa.Column("delta_der", sa.LargeBinary),
            sa.PrimaryKeyConstraint("issuer", "shard", name="pk_crls"),
        ),
        op.create_table(
            "ledger",
            sa.Column("position", _POSITION, autoincrement=False),
            sa.Column("entry", sa.LargeBinary, nullable=False),
            sa.Column("leaf", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint("position", name="pk_ledger"),
        ),
        op.create_table(
            "heads",
            sa.Column("size", _POSITION, autoincrement=False),
            sa.Column("root", sa.LargeBinary, nullable=False),
            sa.Column("time", sa.BigInteger, nullable=False),
            sa.Column("frontier", sa.LargeBinary, nullable=False),
            sa.Column("jws", sa.Text),
            sa.PrimaryKeyConstraint("size", name="pk_heads"),
        ),
    ]
    for column in ("spiffe_id", "not_before", "not_after"):
        op.create_index(f"ix_certificates_{column}", "certificates", [column])
    op.create_index("ix_tokens_expires_at", "tokens", ["expires_at"])
    op.create_index("ix_certificates_issuer_shard", "certificates", ["issuer", "shard", "not_after"])
    revoked = sa.text("revoked_at IS NOT NULL")
    op.create_index(
        "ix_certificates_revoked",
        "certificates",
        ["issuer", "shard", "not_after"],
        sqlite_where=revoked,
        postgresql_where=revoked,
    )
    return {table.name: table for table in tables}


def _record(row: sa.RowMapping) -> Record:
    return Record(
        serial=int(row["serial"], 16),
        kind=row["kind"],
        issuer=row["issuer"],
        spiffe_id=row["spiffe_id"],
        thumbprint=row["thumbprint"],
        not_before=_time(row["not_before"]),
        not_after=_time(row["not_after"]),
        der=bytes(row["der"]),
    )


def _key_id(record: Record) -> str:
    ski = record.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return ski.digest.hex()


def _is_constrained(record: Record) -> bool:
    try:
        record.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return False
    return True


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
