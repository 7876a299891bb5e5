"""The tables, in pure SQLAlchemy: Alembic imports this with no web framework installed."""

import sqlalchemy

metadata = sqlalchemy.MetaData()

notes = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("text", sqlalchemy.String, nullable=False),
    sqlalchemy.Column("completed", sqlalchemy.Boolean, nullable=False),
    # An id is never given again after its note is deleted, as on PostgreSQL.
    sqlite_autoincrement=True,
)
