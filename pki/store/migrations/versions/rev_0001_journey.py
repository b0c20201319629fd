"""The first schema: certificates, revocations and one revocation list a CA; keys were files beside the database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("trust_domain", sa.String(255), nullable=False),
        sa.Column("crl_base_url", sa.String(2048)),
    )
    op.create_table(
        "certificates",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("serial", sa.String(40), nullable=False, unique=True),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("issuer", sa.String(64), nullable=False, index=True),
        sa.Column("spiffe_id", sa.String(2048), nullable=False, index=True),
        sa.Column("thumbprint", sa.String(43), nullable=False, unique=True),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False, index=True),
        sa.Column("der", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "revocations",
        sa.Column("serial", sa.String(40), sa.ForeignKey("certificates.serial"), primary_key=True),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
    )
    op.create_table(
        "crls",
        sa.Column("issuer", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("stale", sa.Boolean, nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
    )
