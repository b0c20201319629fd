"""The tables. `migrations/` leads to exactly these from every earlier version; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

REVISION = "0003"  # the Alembic revision that this code reads and writes

# Every constraint has a name, so that migrations can speak of it on every database.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)
_POSITION = BigInteger().with_variant(Integer, "sqlite")  # there, an INTEGER primary key is the row's own number

# Alembic's own table stands apart: it is no data, and Alembic does not compare it.
version = Table(
    "alembic_version",
    MetaData(naming_convention=metadata.naming_convention),
    Column("version_num", String(32), primary_key=True),
)
settings = Table(
    "settings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("trust_domain", String(255), nullable=False),
    Column("crl_base_url", String(2048)),
    Column("public_url", String(2048)),
    Column("name_constraint", Boolean, nullable=False),
    Column("bundle_sequence", BigInteger, nullable=False),  # grows whenever the published roots change
    Column("policy", Text),
)
issuers = Table(
    "issuers",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("kind", String(12), nullable=False),
    Column("parent", String(64), nullable=False),
    Column("state", String(12), nullable=False),
    Column("since", BigInteger, nullable=False),  # all times: seconds since 1970
    Column("serial", String(40), nullable=False, unique=True),  # lower-case hex: SQL integers are too short
    Column("der", LargeBinary, nullable=False),
    Column("key_pem", LargeBinary),
    Column("key_uri", String(2048)),
    Column("position", BigInteger, nullable=False),  # of its first ledger entry: the order in which they came
)
pending_keys = Table(
    "pending_keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("since", BigInteger, nullable=False),
    Column("csr", LargeBinary, nullable=False),
    Column("key_pem", LargeBinary),
    Column("key_uri", String(2048)),
)
certificates = Table(
    "certificates",
    metadata,
    Column("position", _POSITION, primary_key=True, autoincrement=False),  # of its ledger entry: the order of issuing
    Column("serial", String(40), nullable=False, unique=True),
    Column("kind", String(12), nullable=False),
    Column("issuer", String(64), nullable=False),  # key id of the CA that signed it
    Column("shard", Integer, nullable=False),
    Column("spiffe_id", String(2048), nullable=False, index=True),
    Column("thumbprint", String(43), nullable=False, unique=True),
    Column("not_before", BigInteger, nullable=False, index=True),
    Column("not_after", BigInteger, nullable=False, index=True),
    Column("der", LargeBinary, nullable=False),
    Column("revoked_at", BigInteger),
    Column("reason", String(32)),
    Column("revoked_position", BigInteger),  # of the ledger entry of the revocation: the order of revoking
)
Index(
    "ix_certificates_issuer_shard",
    certificates.c.issuer,
    certificates.c.shard,
    certificates.c.not_after,
)
_revoked = text("revoked_at IS NOT NULL")
Index(  # revoked certificates are few: issuing does not touch this one, and a list reads nothing else
    "ix_certificates_revoked",
    certificates.c.issuer,
    certificates.c.shard,
    certificates.c.not_after,
    sqlite_where=_revoked,
    postgresql_where=_revoked,
)
bans = Table(
    "bans",
    metadata,
    Column("spiffe_id", String(2048), primary_key=True),
    Column("since", BigInteger, nullable=False),
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("spiffe_id", String(2048), nullable=False),
    Column("dns_names", Text, nullable=False),  # a JSON list
    Column("lifetime", BigInteger, nullable=False),  # seconds
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("used_at", BigInteger),
    Column("used_by", LargeBinary),
    Column("serial", String(40)),
    Column("seal", Text, nullable=False),  # by a CA: who can write a row, and has no key, makes no token
)
crls = Table(
    "crls",
    metadata,
    Column("issuer", String(64), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),  # the ledger's size when it was made: what it can know of
    Column("stale", Boolean, nullable=False),  # something was revoked since
    Column("der", LargeBinary, nullable=False),
    Column("base_number", BigInteger, nullable=False),  # the list that the delta is relative to,
    Column("base_position", BigInteger, nullable=False),  # the ledger's size when that was made,
    Column("base_at", BigInteger, nullable=False),  # and the time
    Column("delta_der", LargeBinary),
)
ledger = Table(
    "ledger",
    metadata,
    Column("position", _POSITION, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
)
heads = Table(
    "heads",
    metadata,
    Column("size", _POSITION, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    Column("jws", Text),
)
DATA = tuple(metadata.sorted_tables)  # what a backup holds
