"""The tables, in pure SQLAlchemy: Alembic imports this with no web framework installed."""

from typing import Any, Protocol

import sqlalchemy

metadata = sqlalchemy.MetaData()


class Row(Protocol):
    """A row of any table, as either driver gives it; columns are taken by name."""

    def __getitem__(self, name: str, /) -> Any: ...


# 64 bits on either database; SQLite numbers rows by itself for the type INTEGER only.
ID = sqlalchemy.BigInteger().with_variant(sqlalchemy.Integer, "sqlite")

notes = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("text", sqlalchemy.String, nullable=False),
    sqlalchemy.Column("completed", sqlalchemy.Boolean, nullable=False),
    # The text without regard to case, as Python's str.casefold has it, where the text is not ASCII.
    # What lower() does with the rest of Unicode depends on the server and its locale.
    sqlalchemy.Column("folded", sqlalchemy.String),
    sqlalchemy.Index("notes_completed", "completed", "id"),
    # An id is never given again after its note is deleted, as on PostgreSQL.
    sqlite_autoincrement=True,
)

# The answers to writes with an Idempotency-Key, kept for a day.
idempotency_keys = sqlalchemy.Table(
    "idempotency_keys",
    metadata,
    # The client's key; where it is a user's, behind the user's id and a quote.
    sqlalchemy.Column("key", sqlalchemy.String, primary_key=True),
    # SHA-256 of the request, in hexadecimal digits.
    sqlalchemy.Column("fingerprint", sqlalchemy.String, nullable=False),
    # The notes that were stored, as JSON; NULL only within the transaction that stores them.
    sqlalchemy.Column("response", sqlalchemy.String),
    # Seconds since the epoch.
    sqlalchemy.Column("created_at", sqlalchemy.BigInteger, nullable=False, index=True),
)

# Who may come in where ACCESS is token.
users = sqlalchemy.Table(
    "users",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    # In lower case.
    sqlalchemy.Column("username", sqlalchemy.String(64), nullable=False, unique=True),
    sqlalchemy.Column("is_active", sqlalchemy.Boolean, nullable=False),
    # Seconds since the epoch.
    sqlalchemy.Column("created_at", sqlalchemy.BigInteger, nullable=False),
    # SHA-256 of the user's token, in hexadecimal digits; the token itself is kept nowhere.
    sqlalchemy.Column("token_sha256", sqlalchemy.String(64), nullable=False, unique=True),
    sqlalchemy.CheckConstraint("username = lower(username)", name="users_username_lower"),
    sqlite_autoincrement=True,
)
