"""The tables of an authorization server. Times are whole seconds since the epoch, UTC."""

from __future__ import annotations

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
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("revoked", sa.Boolean, nullable=False),
)
