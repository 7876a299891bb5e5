"""All tables, in SQLAlchemy alone: Alembic imports this without a web framework."""

from typing import Any, Protocol

import sqlalchemy

# A migration can drop a foreign key by its name, which is the one that PostgreSQL gives. The other
# names are SQLAlchemy's own.
NAMES = {"fk": "%(table_name)s_%(column_0_name)s_fkey", "ix": "ix_%(column_0_label)s"}
metadata = sqlalchemy.MetaData(naming_convention=NAMES)


class Row(Protocol):
    """A row of any table, from any driver. Columns are read by name."""

    def __getitem__(self, name: str, /) -> Any: ...


# 64 bits on all databases. SQLite generates ids only for the type INTEGER.
ID = sqlalchemy.BigInteger().with_variant(sqlalchemy.Integer, "sqlite")
# MySQL indexes no text without a length.
KEY = sqlalchemy.String().with_variant(sqlalchemy.String(300), "mysql")


def sorted_text(length: int) -> sqlalchemy.String:
    """A text that each database sorts by code points. PostgreSQL's locale sorts others."""
    of_postgresql = sqlalchemy.String(length, collation="C")
    return sqlalchemy.String(length).with_variant(of_postgresql, "postgresql")


# The name of the column with the id of the user whose a row is, in each table that has one.
OWNER = "owner_id"


def owned_index(name: str, *columns: str) -> sqlalchemy.Index:
    """An index of an owner's rows. Where an index can have a condition, others cost nothing."""
    condition = sqlalchemy.column(OWNER).is_not(None)
    return sqlalchemy.Index(
        name, OWNER, *columns, postgresql_where=condition, sqlite_where=condition
    )


notes = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("text", sqlalchemy.String, nullable=False),
    sqlalchemy.Column("completed", sqlalchemy.Boolean, nullable=False),
    # The text after Python's str.casefold, or NULL if it is ASCII. For other characters the
    # database's lower() depends on the server and its locale.
    sqlalchemy.Column("folded", sqlalchemy.String),
    # Who created it; NULL without a user.
    sqlalchemy.Column(OWNER, ID),
    sqlalchemy.Index("notes_completed", "completed", "id"),
    owned_index("notes_owner", "id"),
    owned_index("notes_owner_completed", "completed", "id"),
    # The id of a deleted note is not reused, as on PostgreSQL.
    sqlite_autoincrement=True,
)

# The answers to writes with an Idempotency-Key, kept for a day.
idempotency_keys = sqlalchemy.Table(
    "idempotency_keys",
    metadata,
    # The client's key. For a user: the user's id, a quote and the client's key.
    sqlalchemy.Column("key", KEY, primary_key=True),
    # SHA-256 of the request, in hexadecimal.
    sqlalchemy.Column("fingerprint", sqlalchemy.String, nullable=False),
    # The first response, as JSON. NULL only within the transaction of the first request.
    sqlalchemy.Column("response", sqlalchemy.String),
    # Seconds since the epoch.
    sqlalchemy.Column("created_at", sqlalchemy.BigInteger, nullable=False, index=True),
)

# The users for ACCESS=token and private.
users = sqlalchemy.Table(
    "users",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    # In lower case.
    sqlalchemy.Column("username", sqlalchemy.String(64), nullable=False, unique=True),
    sqlalchemy.Column("is_active", sqlalchemy.Boolean, nullable=False),
    # Seconds since the epoch.
    sqlalchemy.Column("created_at", sqlalchemy.BigInteger, nullable=False),
    # SHA-256 of the user's token `default`, in hexadecimal. The token itself is not stored. A user
    # without it has a value that begins with a hyphen instead.
    sqlalchemy.Column("token_sha256", sqlalchemy.String(64), nullable=False, unique=True),
    # When the token was last used, to the hour. NULL if it never was.
    sqlalchemy.Column("token_used_at", sqlalchemy.BigInteger),
    # The identity provider of the user, and the user's name there. NULL for other users.
    sqlalchemy.Column("issuer", sqlalchemy.String(255)),
    sqlalchemy.Column("subject", sqlalchemy.String(255)),
    sqlalchemy.Index("users_identity", "issuer", "subject", unique=True),
    sqlalchemy.CheckConstraint("username = lower(username)", name="users_username_lower"),
    sqlite_autoincrement=True,
)

# The other tokens of users.
tokens = sqlalchemy.Table(
    "tokens",
    metadata,
    sqlalchemy.Column(
        "user_id", ID, sqlalchemy.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    # In lower case.
    sqlalchemy.Column("name", sqlalchemy.String(64), primary_key=True),
    sqlalchemy.Column("token_sha256", sqlalchemy.String(64), nullable=False, unique=True),
    # Seconds since the epoch. A token without an end has NULL.
    sqlalchemy.Column("created_at", sqlalchemy.BigInteger, nullable=False),
    sqlalchemy.Column("expires_at", sqlalchemy.BigInteger),
    sqlalchemy.Column("read_only", sqlalchemy.Boolean, nullable=False),
    sqlalchemy.Column("last_used_at", sqlalchemy.BigInteger),
)

# What happened to the rows of resources that are followed, kept for a day. Triggers record it.
changes = sqlalchemy.Table(
    "changes",
    metadata,
    sqlalchemy.Column("seq", ID, primary_key=True),
    # The transaction's number on PostgreSQL; 0 on SQLite, which has one writer at a time.
    sqlalchemy.Column("xid", sqlalchemy.BigInteger, nullable=False),
    sqlalchemy.Column("resource", sqlalchemy.String(63), nullable=False),
    sqlalchemy.Column("row_id", sqlalchemy.BigInteger, nullable=False),
    # Columns of the row before, as JSON: those that say who gets to know of it. NULL of a new row.
    sqlalchemy.Column("old", sqlalchemy.String),
    # Columns of the row as it is now, as JSON: also those that are shown. NULL of a deleted row.
    sqlalchemy.Column("new", sqlalchemy.String),
    # The length of `new`.
    sqlalchemy.Column("size", sqlalchemy.BigInteger, nullable=False),
    # Microseconds since the epoch.
    sqlalchemy.Column("at", sqlalchemy.BigInteger, nullable=False),
    sqlalchemy.Index("changes_resource", "resource", "xid", "seq"),
    sqlite_autoincrement=True,
)

# The resources whose changes are recorded.
live = sqlalchemy.Table(
    "live",
    metadata,
    sqlalchemy.Column("resource", sqlalchemy.String(63), primary_key=True),
    # A random name, another one each time that the recording begins.
    sqlalchemy.Column("life", sqlalchemy.String(32), nullable=False),
    # The columns that are recorded, as JSON.
    sqlalchemy.Column("columns", sqlalchemy.String, nullable=False),
    # The server, the database and its table of changes: a restored one has another order.
    sqlalchemy.Column("place", sqlalchemy.String(100), nullable=False),
    # Changes up to this transaction (SQLite: this number of a change) may be missing: they were
    # deleted, or came before the first one that was recorded. -1 if that was of an empty table.
    sqlalchemy.Column("swept", sqlalchemy.BigInteger, nullable=False),
)
