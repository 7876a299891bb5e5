"""Several tokens for each user, and when each was last used

Each user's token `default` stays in the table of users, the only place that the version before
knows.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from alembic import context, op
from migrating import change_briefly

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

metadata = sa.MetaData()
users = sa.Table("users", metadata, sa.Column("id", sa.BigInteger(), primary_key=True))
tokens = sa.Table(
    "tokens",
    metadata,
    # The type of the ids of users.
    sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.BigInteger(), nullable=False),
    sa.Column("expires_at", sa.BigInteger()),
    sa.Column("read_only", sa.Boolean(), nullable=False),
    sa.Column("last_used_at", sa.BigInteger()),
    sa.PrimaryKeyConstraint("user_id", "name"),
    sa.ForeignKeyConstraint(
        ["user_id"], ["users.id"], name="tokens_user_id_fkey", ondelete="CASCADE"
    ),
)


def is_in_use() -> bool:
    return op.get_context().dialect.name == "postgresql" and not context.is_offline_mode()


def upgrade() -> None:
    create = CreateTable(tokens, if_not_exists=True)
    if is_in_use():
        with op.get_context().autocommit_block():
            connection = op.get_bind()
            # The foreign key locks the users for a moment, too.
            change_briefly(
                connection,
                str(create.compile(dialect=connection.dialect)),
                "ALTER TABLE users ADD COLUMN IF NOT EXISTS token_used_at bigint",
            )
    else:
        op.execute(create)
        op.add_column("users", sa.Column("token_used_at", sa.BigInteger()))


def downgrade() -> None:
    """Tokens other than `default` are lost."""
    if is_in_use():
        with op.get_context().autocommit_block():
            change_briefly(
                op.get_bind(),
                "DROP TABLE IF EXISTS tokens",
                "ALTER TABLE users DROP COLUMN IF EXISTS token_used_at",
            )
    else:
        op.drop_table("tokens")
        op.drop_column("users", "token_used_at")
