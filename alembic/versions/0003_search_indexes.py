"""Fold the notes that are there, and index them for search and filters

Outside of one great transaction, and without keeping others from the table meanwhile; what has been
done before it was broken off is not done again.

Revision ID: 0003
Revises: 0002
"""

import logging

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic")

notes = sa.table("notes", sa.column("id"), sa.column("text"), sa.column("folded"))


def upgrade() -> None:
    with op.get_context().autocommit_block():
        if not context.is_offline_mode():
            fold_notes()
        op.create_index(
            "notes_completed",
            "notes",
            ["completed", "id"],
            if_not_exists=True,
            postgresql_concurrently=True,
        )
        if op.get_context().dialect.name == "postgresql":
            index_search()


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
    try:
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        op.execute(
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS notes_search ON notes USING gin"
            ' (coalesce(folded, lower(text COLLATE "C")) gin_trgm_ops)'
        )
    except DBAPIError as error:
        logger.warning(
            "pg_trgm is missing, so searching with q= reads every note; once someone has run"
            " CREATE EXTENSION pg_trgm, run the CREATE INDEX of this migration: %s",
            str(error.orig).splitlines()[0],
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP INDEX IF EXISTS notes_search")
    op.drop_index("notes_completed", "notes")
