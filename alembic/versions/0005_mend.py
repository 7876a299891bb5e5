"""Mend tables that others made, and indexes that were broken off

The tables of the FastAPI example may hold NULL, and on SQLite give a deleted note's id again.

Revision ID: 0005
Revises: 0004
"""

import json
import logging

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from alembic import context, op
from migrating import create_index, create_search_index, forbid_null

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic")

# The values that take the place of NULL.
FILLING = {"text": "", "completed": False}

notes = sa.table("notes", sa.column("text", sa.String()), sa.column("completed", sa.Boolean()))


def upgrade() -> None:
    if context.is_offline_mode():
        print_filling()
    elif op.get_context().dialect.name == "sqlite":
        mend_sqlite()
    elif op.get_context().dialect.name == "mysql":
        mend_mysql()
    else:
        names = nullable()
        with op.get_context().autocommit_block():
            mend_postgresql(names)


def fill(name: str) -> sa.Update:
    return sa.update(notes).values({name: FILLING[name]}).where(notes.c[name].is_(None))


def print_filling() -> None:
    for name in FILLING:
        op.execute(fill(name))
        if op.get_context().dialect.name != "sqlite":
            op.alter_column("notes", name, nullable=False, existing_type=notes.c[name].type)


def nullable() -> list[str]:
    """The columns that may hold NULL and shouldn't."""
    found = sa.inspect(op.get_bind()).get_columns("notes")
    return [column["name"] for column in found if column["nullable"] and column["name"] in FILLING]


def tell(name: str, count: int) -> None:
    if count:
        value = json.dumps(FILLING[name])
        logger.warning("%s was NULL in %d of the notes, and is %s now", name, count, value)


def mend_postgresql(names: list[str]) -> None:
    connection = op.get_bind()
    for name in names:
        tell(name, forbid_null(connection, name, FILLING[name]))
    create_index(connection, "notes_completed", "notes (completed, id)")
    create_search_index(connection)


def mend_mysql() -> None:
    connection = op.get_bind()
    for name in FILLING:
        filled = connection.execute(fill(name)).rowcount
        while True:
            try:
                # This also changes the type, character set and collation to those of 0001.
                op.alter_column("notes", name, nullable=False, existing_type=notes.c[name].type)
                break
            except DBAPIError:
                # Others may have written NULL meanwhile.
                again = connection.execute(fill(name)).rowcount
                if not again:
                    raise
                filled += again
        tell(name, filled)


def mend_sqlite() -> None:
    connection = op.get_bind()
    names = nullable()
    for name in names:
        tell(name, connection.execute(fill(name)).rowcount)
    made = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = 'notes'"))
    if names or "AUTOINCREMENT" not in made:
        options = {"sqlite_autoincrement": True}
        with op.batch_alter_table("notes", recreate="always", table_kwargs=options) as batch:
            for name in names:
                batch.alter_column(name, nullable=False)


def downgrade() -> None:
    """Nothing to undo: the tables are as 0001 makes them."""
