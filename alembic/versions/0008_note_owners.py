"""The owner of a note, and indexes of an owner's notes

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa

from alembic import context, op
from migrating import change_briefly, create_index

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# The indexes, and their columns.
INDEXES = {"notes_owner": "owner_id, id", "notes_owner_completed": "owner_id, completed, id"}
# What has no owner is in no index, and costs nothing. MySQL's indexes have no condition.
CONDITION = "owner_id IS NOT NULL"
OWNER = sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"))


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            upgrade_postgresql()
        return
    op.add_column("notes", OWNER)
    if op.get_context().dialect.name == "mysql":
        # One statement reads the table once.
        added = (f"ADD INDEX {name} ({columns})" for name, columns in INDEXES.items())
        op.execute(f"ALTER TABLE notes {', '.join(added)}")
        return
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON notes ({columns}) WHERE {CONDITION}")


def upgrade_postgresql() -> None:
    if context.is_offline_mode():
        op.add_column("notes", OWNER)
    else:
        column = "ALTER TABLE notes ADD COLUMN IF NOT EXISTS owner_id bigint"
        change_briefly(op.get_bind(), column)
    for name, columns in INDEXES.items():
        definition = f"notes ({columns}) WHERE {CONDITION}"
        if context.is_offline_mode():
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        else:
            create_index(op.get_bind(), name, definition)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql" and not context.is_offline_mode():
        with op.get_context().autocommit_block():
            # The indexes go with the column.
            change_briefly(op.get_bind(), "ALTER TABLE notes DROP COLUMN IF EXISTS owner_id")
        return
    for name in INDEXES:
        op.drop_index(name, "notes")
    op.drop_column("notes", "owner_id")
