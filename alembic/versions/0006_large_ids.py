"""Ids of 64 bits, up to the largest that JSON's readers take exactly

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa

from alembic import context, op
from migrating import change_briefly, change_ids

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TYPES = {"bigint": sa.BigInteger(), "integer": sa.Integer()}
MOST = {"bigint": 2**53 - 1, "integer": 2**31 - 1}


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        change("bigint")
    elif op.get_context().dialect.name == "mysql":
        change_mysql("bigint")
    else:
        # SQLite's ids have 64 bits already, and AUTOINCREMENT knows no other end.
        op.execute(
            f"CREATE TRIGGER notes_last_id AFTER INSERT ON notes WHEN NEW.id > {MOST['bigint']}"
            " BEGIN SELECT RAISE(ABORT, 'no ids are left'); END"
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        change("integer")
    elif op.get_context().dialect.name == "mysql":
        change_mysql("integer")
    else:
        op.execute("DROP TRIGGER notes_last_id")


def change_mysql(kind: str) -> None:
    # AUTO_INCREMENT has no end, so the service looks at each new id.
    for table in ("notes", "users"):
        op.alter_column(
            table,
            "id",
            type_=TYPES[kind],
            existing_type=sa.Integer(),
            existing_nullable=False,
            existing_autoincrement=True,
        )


def change(kind: str) -> None:
    most = MOST[kind]
    if context.is_offline_mode():
        # This locks the tables while they are written anew.
        for table in ("notes", "users"):
            op.alter_column(table, "id", type_=TYPES[kind])
            op.execute(f"ALTER SEQUENCE {table}_id_seq AS {kind} MAXVALUE {most}")
        return
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        change_ids(connection, kind, most)
        # Users are few.
        change_briefly(
            connection,
            f"ALTER TABLE users ALTER id TYPE {kind}",
            f"ALTER SEQUENCE users_id_seq AS {kind} MAXVALUE {most}",
        )
