"""Search by text, filter by completed, and safe retries

Revision ID: 0002
Revises: 0001
"""

import logging

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic")

notes = sa.table("notes", sa.column("id"), sa.column("text"), sa.column("folded"))


def upgrade() -> None:
    op.add_column("notes", sa.Column("folded", sa.String()))
    if not context.is_offline_mode():
        fold_notes()
    op.create_index("notes_completed", "notes", ["completed", "id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("response", sa.String()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    if op.get_context().dialect.name == "postgresql":
        index_search()


def fold_notes() -> None:
    """Fills the new column of the notes that are there, a thousand at a time."""
    connection = op.get_bind()
    after = 0
    page = sa.select(notes.c.id, notes.c.text).order_by(notes.c.id).limit(1000)
    while rows := connection.execute(page.where(notes.c.id > after)).all():
        for note_id, text in rows:
            if not text.isascii():
                folded = notes.update().values(folded=text.casefold())
                connection.execute(folded.where(notes.c.id == note_id))
        after = rows[-1].id


def index_search() -> None:
    """Makes the index that serves `q=`, where the server lets it."""
    if not context.is_offline_mode():
        try:
            with op.get_bind().begin_nested():
                op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        except DBAPIError as error:
            reason = str(error.orig).splitlines()[0]
            logger.warning(
                "pg_trgm is missing, so searching with q= reads every note; once someone has run"
                " CREATE EXTENSION pg_trgm, run the CREATE INDEX of this migration: %s",
                reason,
            )
            return
    op.execute(
        "CREATE INDEX notes_search ON notes USING gin"
        ' (coalesce(folded, lower(text COLLATE "C")) gin_trgm_ops)'
    )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP INDEX IF EXISTS notes_search")
    op.drop_table("idempotency_keys")
    op.drop_index("notes_completed", "notes")
    op.drop_column("notes", "folded")
