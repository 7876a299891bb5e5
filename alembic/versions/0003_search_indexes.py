"""Fold the notes that are there, and index them for search and filters

On PostgreSQL outside of one great transaction, and without keeping others from the table meanwhile.
If it is broken off, another run does only the rest.

Revision ID: 0003
Revises: 0002
"""

import logging

import asyncpg
import sqlalchemy as sa

from alembic import context, op
from migrating import create_index, create_search_index, run

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic")

notes = sa.table("notes", sa.column("id"), sa.column("text"), sa.column("folded"))

# CREATE EXTENSION's errors for an extension that is not there, or not for this role.
MISSING = (
    asyncpg.UndefinedFileError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.InsufficientPrivilegeError,
)


def upgrade() -> None:
    if context.is_offline_mode():
        print_indexes()
    elif op.get_context().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            fold_notes()
            create_index(op.get_bind(), "notes_completed", "notes (completed, id)")
            index_search()
    else:
        fold_notes()
        op.create_index("notes_completed", "notes", ["completed", "id"])


def print_indexes() -> None:
    with op.get_context().autocommit_block():
        columns = ["completed", "id"]
        op.create_index("notes_completed", "notes", columns, postgresql_concurrently=True)
        if op.get_context().dialect.name == "postgresql":
            op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            op.execute(
                "CREATE INDEX CONCURRENTLY notes_search ON notes USING gin"
                ' (coalesce(folded, lower(text COLLATE "C")) gin_trgm_ops)'
            )


def fold_notes() -> None:
    """Fills the new column of the notes that aren't ASCII, a thousand at a time."""
    connection = op.get_bind()
    page = sa.select(notes.c.id, notes.c.text).order_by(notes.c.id).limit(1000)
    fold = (
        sa.update(notes)
        .values(folded=sa.bindparam("new_folded"))
        .where(notes.c.id == sa.bindparam("note_id"), notes.c.text == sa.bindparam("old_text"))
    )
    after = 0
    while rows := connection.execute(page.where(notes.c.id > after)).all():
        changes = [
            {"note_id": note_id, "old_text": text, "new_folded": text.casefold()}
            for note_id, text in rows
            if text is not None and not text.isascii()
        ]
        if changes:
            connection.execute(fold, changes)
        after = rows[-1].id


def index_search() -> None:
    """Makes the index that serves `q=`, where the server lets it."""
    connection = op.get_bind()
    try:
        run(connection, "CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except MISSING as error:
        logger.warning(
            "pg_trgm is missing, so searching with q= reads every note; once someone has run"
            " CREATE EXTENSION pg_trgm, run the CREATE INDEX of this migration: %s",
            str(error).splitlines()[0],
        )
    create_search_index(connection)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP INDEX IF EXISTS notes_search")
    op.drop_index("notes_completed", "notes")
