"""The tables of an authorization server. Times are whole seconds since the epoch, UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

METADATA = sa.MetaData()
TOKENS = sa.Table(
    "oauth_tokens",
    METADATA,
    sa.Column("token_id", sa.String(64), primary_key=True),
    sa.Column("parent_id", sa.String(64), nullable=True),
    sa.Column("root_id", sa.String(64), nullable=False, index=True),
    sa.Column("root_issued_at", sa.BigInteger, nullable=False),
    sa.Column("client_id", sa.String(2048), nullable=False),
    sa.Column("agent_id", sa.String(2048), nullable=True),  # of the client, which may have another name
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("revoked", sa.Boolean, nullable=False),
    sa.Index("ix_oauth_tokens_held", "client_id", "expires_at"),  # how many a client holds (`allowances`)
)

ASSERTIONS = sa.Table(
    "oauth_used_assertions",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),  # digest of issuer and `jti`
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

APPROVALS = sa.Table(
    "oauth_approvals",
    METADATA,
    sa.Column("approval_id", sa.String(16), primary_key=True),
    sa.Column("request", sa.String(64), nullable=False, unique=True),  # digest of what is asked for
    sa.Column("client_id", sa.String(2048), nullable=False, index=True),
    sa.Column("agent_id", sa.String(2048), nullable=False),
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("actors", sa.Text, nullable=False),
    sa.Column("resource", sa.String(2048), nullable=False),
    sa.Column("scope", sa.String(4096), nullable=False),
    sa.Column("message", sa.String(256), nullable=False),
    sa.Column("asked_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("decided_at", sa.BigInteger, nullable=True),
)

SIGNING_KEYS = sa.Table(
    "oauth_signing_keys",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kid", sa.String(64), nullable=False, unique=True),
    sa.Column("alg", sa.String(16), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Column("pem", sa.Text, nullable=False),  # PKCS#8, encrypted
)

# One row: how many revocations there were, counted in the transaction of each, so that of two signed lists of revoked
# tokens (`trust.oauth.denylist.document`) it is known which has seen more.
REVOCATIONS = sa.Table(
    "oauth_revocations",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)

# Clients that were registered by command, and the names of others that are disabled: those have no rights here.
CLIENTS = sa.Table(
    "oauth_clients",
    METADATA,
    sa.Column("name", sa.String(2048), primary_key=True),  # client_id, or a pattern
    sa.Column("rights", sa.Text, nullable=True),  # JSON
    sa.Column("needs_secret", sa.Boolean, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False, index=True),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
)

CLIENT_SECRETS = sa.Table(
    "oauth_client_secrets",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),  # SHA-256 in hex
    sa.Column("name", sa.String(2048), nullable=False, index=True),
    sa.Column("ends_at", sa.BigInteger, nullable=True),  # of one that was replaced
)

# One row: how many changes to clients there were. Whoever changes them holds it until the end of its transaction, and
# whoever records a token waits for that.
CLIENT_CHANGES = sa.Table(
    "oauth_client_changes",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)

# What people have decided by command, until a running server has told its audit trail (`decisions`).
DECISIONS = sa.Table(
    "oauth_decisions",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("decided_by", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("decided_at", sa.BigInteger, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),  # JSON
    sa.Column("taken_until", sa.BigInteger, nullable=True),  # by a server that is telling it
    sqlite_autoincrement=True,  # no number is used twice
)

# One row: the issuer whose tokens, keys and revocations these are.
ISSUER = sa.Table(
    "oauth_issuer",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("issuer", sa.Text, nullable=False),
)

# One row: the form of the database, `upgrading.VERSION`. A database of before has no such table, and only tokens.
SCHEMA = sa.Table("oauth_schema", METADATA, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))


def seconds_of(time: datetime) -> int:
    return int(time.timestamp())


def time_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
