"""Steps of migrations that change a PostgreSQL table while it is in use.

They run outside of a transaction, in Alembic's `autocommit_block`. Each can be interrupted at any
time. The next run completes it.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import asyncpg
from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    bindparam,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)

logger = logging.getLogger("alembic.notes")

LOCK_TIMEOUT = "200ms"
RETRY_SECONDS = 0.5
BATCH_SIZE = 1000


def run(connection: Connection, *statements: str) -> None:
    """Runs statements, several of them in one transaction. Raises asyncpg's errors.

    They are one message, so PgBouncer runs them on one connection.
    """
    raw: Any = connection.connection.dbapi_connection
    raw.run_async(lambda driver: driver.execute("; ".join(statements)))


def query_rows(connection: Connection, statement: Executable, **values: Any) -> Sequence[Any]:
    """Runs a statement in its own transaction, and returns its rows."""
    run(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
    rows = connection.execute(statement, values).all()
    run(connection, "COMMIT")
    return rows


def change_briefly(connection: Connection, *statements: str) -> None:
    """Runs statements that lock a table, in their own transaction, until they succeed.

    A transaction that waits for a table lock blocks all later transactions on the table. So each
    try waits only for LOCK_TIMEOUT.
    """
    waits = False
    while True:
        try:
            run(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'", *statements)
            return
        except asyncpg.LockNotAvailableError:
            if not waits:
                waits = True
                logger.info("Waiting for a lock on the table")
            time.sleep(RETRY_SECONDS)


def fill_null(connection: Connection, name: str, value: Any) -> int:
    """Replaces NULL in a column of notes, in batches. Returns the number of changed notes."""
    notes = table("notes", column("id", BigInteger), column(name))
    is_next = notes.c.id > bindparam("after", type_=BigInteger)
    batch = select(notes.c.id).where(is_next).order_by(notes.c.id).limit(BATCH_SIZE).cte("batch")
    change = notes.update().values({name: value}).returning(notes.c.id)
    changed = change.where(notes.c.id == batch.c.id, notes.c[name].is_(None)).cte("changed")
    statement = select(
        select(func.max(batch.c.id)).scalar_subquery(),
        select(func.count()).select_from(changed).scalar_subquery(),
    )
    count, after = 0, -(2**63)
    while after is not None:
        ((after, filled),) = query_rows(connection, statement, after=after)
        count += filled
    return count


def forbid_null(connection: Connection, name: str, value: Any) -> int:
    """Replaces NULL in a column of notes, and makes it NOT NULL. Returns the number of changes."""
    check = f"notes_{name}_filled"
    filled = fill_null(connection, name, value)
    change_briefly(
        connection,
        f"ALTER TABLE notes DROP CONSTRAINT IF EXISTS {check},"
        f" ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID",
    )
    # Others may have written NULL before the constraint.
    filled += fill_null(connection, name, value)
    # This reads all notes without a lock that blocks writes. SET NOT NULL then reads nothing.
    run(connection, f"ALTER TABLE notes VALIDATE CONSTRAINT {check}")
    change_briefly(
        connection,
        f"ALTER TABLE notes ALTER {name} SET NOT NULL",
        f"ALTER TABLE notes DROP CONSTRAINT {check}",
    )
    return filled


def create_index(connection: Connection, name: str, definition: str, unique: bool = False) -> None:
    """Creates an index concurrently. Replaces an invalid one from an interrupted run."""
    query = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    found = query_rows(connection, query, name=name)
    if found and found[0].indisvalid:
        return
    if found:
        run(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    kind = "UNIQUE INDEX" if unique else "INDEX"
    run(connection, f"CREATE {kind} CONCURRENTLY {name} ON {definition}")


def create_search_index(connection: Connection) -> None:
    """Creates the index for `q=`, if pg_trgm is installed."""
    query = text(
        "SELECT quote_ident(nspname) FROM pg_extension"
        " JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'pg_trgm'"
    )
    for (schema,) in query_rows(connection, query):
        create_index(
            connection,
            "notes_search",
            f'notes USING gin (coalesce(folded, lower(text COLLATE "C")) {schema}.gin_trgm_ops)',
        )


def change_ids(connection: Connection, kind: str, maximum: int) -> None:
    """Changes the type of notes' ids to `bigint` or `integer`; new ids are at most `maximum`.

    It fills a new column, and then replaces the old column with it. The new column is indexed and
    NOT NULL before that, so the replacement reads no notes. It fails if other objects, such as
    views, depend on the old column.
    """
    query = text(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
        " WHERE attrelid = 'notes'::regclass AND attname IN ('id', 'new_id')"
    )
    types = {row.attname: row.format_type for row in query_rows(connection, query)}
    remove = (
        "DROP TRIGGER IF EXISTS notes_new_id ON notes",
        "DROP FUNCTION IF EXISTS notes_new_id()",
    )
    if types.get("new_id", kind) != kind or (types["id"] == kind and "new_id" in types):
        # A change in the other direction was interrupted.
        change_briefly(connection, *remove, "ALTER TABLE notes DROP COLUMN new_id")
    if types["id"] == kind:
        return
    ((last,),) = query_rows(connection, text("SELECT coalesce(max(id), 0) FROM notes"))
    if last > maximum:
        raise SystemExit(f"There are notes with ids over {maximum}, which {kind} can't hold.")

    query = text(
        "SELECT quote_ident(conname), pg_get_expr(adbin, adrelid),"
        " pg_get_serial_sequence('notes', 'id')"
        " FROM pg_constraint JOIN pg_attrdef ON adrelid = conrelid"
        " JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum AND attname = 'id'"
        " WHERE conrelid = 'notes'::regclass AND contype = 'p'"
    )
    ((key, default, sequence),) = query_rows(connection, query)
    change_briefly(
        connection,
        f"ALTER TABLE notes ADD COLUMN IF NOT EXISTS new_id {kind}",
        *remove,
        "CREATE FUNCTION notes_new_id() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN NEW.new_id := NEW.id; RETURN NEW; END'",
        "CREATE TRIGGER notes_new_id BEFORE INSERT OR UPDATE ON notes"
        " FOR EACH ROW EXECUTE FUNCTION notes_new_id()",
    )
    # From here on the trigger fills the column at every write.
    forbid_null(connection, "new_id", literal_column("notes.id"))
    create_index(connection, "notes_new_id", "notes (new_id)", unique=True)
    create_index(connection, "notes_new_completed", "notes (completed, new_id)")
    if last:
        # PostgreSQL needs statistics of the new column for good plans.
        run(connection, "ANALYZE notes")

    change_briefly(
        connection,
        "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE",
        *remove,
        f"ALTER SEQUENCE {sequence} AS {kind} MAXVALUE {maximum} OWNED BY notes.new_id",
        f"ALTER TABLE notes DROP CONSTRAINT {key}, ALTER new_id SET DEFAULT {default}",
        f"ALTER TABLE notes ADD CONSTRAINT {key} PRIMARY KEY USING INDEX notes_new_id",
        "ALTER TABLE notes DROP COLUMN id",
        "ALTER TABLE notes RENAME new_id TO id",
        "ALTER INDEX notes_new_completed RENAME TO notes_completed",
    )
