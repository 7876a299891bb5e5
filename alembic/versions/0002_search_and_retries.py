"""Columns and tables for search by text and for safe retries

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# MySQL indexes no text without a length. A key is a user's id, a quote and 255 characters at most.
KEY = sa.String().with_variant(sa.String(300), "mysql")


def upgrade() -> None:
    op.add_column("notes", sa.Column("folded", sa.String()))
    op.create_table(
        "idempotency_keys",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("response", sa.String()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_column("notes", "folded")
