"""The name of a user at an identity provider

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa

from alembic import context, op
from migrating import change_briefly

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NAMES = ("issuer", "subject")


def is_in_use() -> bool:
    return op.get_context().dialect.name == "postgresql" and not context.is_offline_mode()


def upgrade() -> None:
    if is_in_use():
        with op.get_context().autocommit_block():
            # Users are few.
            change_briefly(
                op.get_bind(),
                *(
                    f"ALTER TABLE users ADD COLUMN IF NOT EXISTS {name} varchar(255)"
                    for name in NAMES
                ),
                "CREATE UNIQUE INDEX IF NOT EXISTS users_identity ON users (issuer, subject)",
            )
    else:
        for name in NAMES:
            op.add_column("users", sa.Column(name, sa.String(255)))
        op.create_index("users_identity", "users", [*NAMES], unique=True)


def downgrade() -> None:
    """The users stay, but nothing tells any more who they are."""
    if is_in_use():
        with op.get_context().autocommit_block():
            drop = ", ".join(f"DROP COLUMN IF EXISTS {name}" for name in NAMES)
            change_briefly(op.get_bind(), f"ALTER TABLE users {drop}")
    else:
        op.drop_index("users_identity", "users")
        for name in NAMES:
            op.drop_column("users", name)
