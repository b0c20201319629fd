"""One-time tokens are sealed by a CA. Those of before are not, and live for a day at most: they are made anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Spelt out once more, as in revision 0002: a migration is history, and must not change when another one does.
    op.drop_table("tokens")
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
        sa.Column("seal", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
    )
    op.create_index("ix_tokens_expires_at", "tokens", ["expires_at"])
