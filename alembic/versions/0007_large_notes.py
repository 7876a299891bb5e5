"""Index the large notes, so that a page without any is read only once

Revision ID: 0007
Revises: 0006
"""

from alembic import context, op
from migrating import create_index

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

DEFINITION = "notes ((id + 0)) WHERE octet_length(text) > 1998"


def upgrade() -> None:
    if op.get_context().dialect.name == "mysql":
        # There an index has neither expressions nor conditions, and the length of a text is
        # known only to those who read the whole text.
        op.execute(
            "ALTER TABLE notes"
            " ADD COLUMN text_bytes INTEGER UNSIGNED AS (octet_length(text)) STORED,"
            " ADD COLUMN text_is_large BOOLEAN AS (octet_length(text) > 1998) STORED,"
            " ADD INDEX notes_large (text_is_large, id)"
        )
        return
    if op.get_context().dialect.name == "sqlite":
        bytes_of_text = "length(CAST(text AS BLOB))"
        op.execute(f"CREATE INDEX notes_large ON notes (id + 0) WHERE {bytes_of_text} > 1998")
        return
    with op.get_context().autocommit_block():
        if context.is_offline_mode():
            op.execute(f"CREATE INDEX CONCURRENTLY notes_large ON {DEFINITION}")
        else:
            create_index(op.get_bind(), "notes_large", DEFINITION)


def downgrade() -> None:
    if op.get_context().dialect.name == "mysql":
        columns = "DROP COLUMN text_bytes, DROP COLUMN text_is_large"
        op.execute(f"ALTER TABLE notes DROP INDEX notes_large, {columns}")
    else:
        op.execute("DROP INDEX IF EXISTS notes_large")
