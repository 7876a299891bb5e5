"""Tables for the changes of resources that are followed

Nothing is recorded before `python -m service live on`.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from alembic import context, op
from migrating import change_briefly

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

metadata = sa.MetaData()
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("xid", sa.BigInteger(), nullable=False),
    sa.Column("resource", sa.String(63), nullable=False),
    sa.Column("row_id", sa.BigInteger(), nullable=False),
    sa.Column("old", sa.String()),
    sa.Column("new", sa.String()),
    sa.Column("size", sa.BigInteger(), nullable=False),
    sa.Column("at", sa.BigInteger(), nullable=False),
    sqlite_autoincrement=True,
)
index = sa.Index("changes_resource", changes.c.resource, changes.c.xid, changes.c.seq)
live = sa.Table(
    "live",
    metadata,
    sa.Column("resource", sa.String(63), primary_key=True),
    sa.Column("life", sa.String(32), nullable=False),
    sa.Column("columns", sa.String(), nullable=False),
    sa.Column("place", sa.String(100), nullable=False),
    sa.Column("swept", sa.BigInteger(), nullable=False),
)


# Functions that `live on` has made, with their triggers. Writes would fail without the tables.
DROP_TRIGGERS = """
DO $$ DECLARE name regprocedure;
BEGIN
    FOR name IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE proname LIKE 'live\\_%' AND prorettype = 'trigger'::regtype
        AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'changes'::regclass)
    LOOP
        EXECUTE 'DROP FUNCTION ' || name || ' CASCADE';
    END LOOP;
END $$
"""
SQLITE_TRIGGERS = """
SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'live\\_%' ESCAPE '\\'
"""


def upgrade() -> None:
    exists = op.get_context().dialect.name != "mysql"
    op.execute(CreateTable(changes, if_not_exists=True))
    op.execute(CreateIndex(index, if_not_exists=exists))
    op.execute(CreateTable(live, if_not_exists=True))


def downgrade() -> None:
    """Changes are not recorded any more, and those that were are lost."""
    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        if context.is_offline_mode():
            op.execute(DROP_TRIGGERS)
        else:
            with op.get_context().autocommit_block():
                change_briefly(op.get_bind(), DROP_TRIGGERS)
    elif dialect == "sqlite" and not context.is_offline_mode():
        for (name,) in op.get_bind().execute(sa.text(SQLITE_TRIGGERS)).all():
            op.execute(f'DROP TRIGGER "{name}"')
    op.drop_table("live")
    op.drop_table("changes")
