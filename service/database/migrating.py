"""Steps of migrations that change a table of PostgreSQL while it is in use.

They run outside of a transaction, as in Alembic's `autocommit_block`. Each may be broken off at any
moment, and does the rest of its work when it is run again.
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
PAUSE_SECONDS = 0.5
BATCH = 1000


def run(connection: Connection, *statements: str) -> None:
    """Runs statements, several of them in a transaction, and raises asyncpg's errors.

    They go in one message, so that PgBouncer gives them one connection.
    """
    raw: Any = connection.connection.dbapi_connection
    raw.run_async(lambda driver: driver.execute("; ".join(statements)))


def ask(connection: Connection, statement: Executable, **values: Any) -> Sequence[Any]:
    """Runs a statement in a transaction of its own, and gives its rows."""
    run(connection, "BEGIN")
    rows = connection.execute(statement, values).all()
    run(connection, "COMMIT")
    return rows


def change_briefly(connection: Connection, *statements: str) -> None:
    """Runs statements that lock a table, in a transaction of their own.

    Others wait for moments only: a transaction that waits for a lock on a table holds up all later
    ones, so it gives up soon and tries again.
    """
    waits = False
    while True:
        try:
            run(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'", *statements)
            return
        except asyncpg.LockNotAvailableError:
            if not waits:
                waits = True
                logger.info("Waiting for others who use the table")
            time.sleep(PAUSE_SECONDS)


def fill(connection: Connection, name: str, value: Any) -> int:
    """Puts a value where a column of notes is NULL, some notes at a time; gives how many."""
    notes = table("notes", column("id", BigInteger), column(name))
    behind = notes.c.id > bindparam("after", type_=BigInteger)
    batch = select(notes.c.id).where(behind).order_by(notes.c.id).limit(BATCH).cte("batch")
    change = notes.update().values({name: value}).returning(notes.c.id)
    changed = change.where(notes.c.id == batch.c.id, notes.c[name].is_(None)).cte("changed")
    statement = select(
        select(func.max(batch.c.id)).scalar_subquery(),
        select(func.count()).select_from(changed).scalar_subquery(),
    )
    count, after = 0, -(2**63)
    while after is not None:
        ((after, filled),) = ask(connection, statement, after=after)
        count += filled
    return count


def forbid_null(connection: Connection, name: str, value: Any) -> int:
    """Fills a column of notes, and makes it NOT NULL; gives how many notes had NULL there."""
    check = f"notes_{name}_filled"
    filled = fill(connection, name, value)
    change_briefly(
        connection,
        f"ALTER TABLE notes DROP CONSTRAINT IF EXISTS {check},"
        f" ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID",
    )
    # Others may have written NULL meanwhile; from now on they can't.
    filled += fill(connection, name, value)
    # This reads all notes without a lock. PostgreSQL then believes it, and reads nothing.
    run(connection, f"ALTER TABLE notes VALIDATE CONSTRAINT {check}")
    change_briefly(
        connection,
        f"ALTER TABLE notes ALTER {name} SET NOT NULL",
        f"ALTER TABLE notes DROP CONSTRAINT {check}",
    )
    return filled


def create_index(connection: Connection, name: str, definition: str, unique: bool = False) -> None:
    """Makes an index concurrently, and anew where one was broken off, which leaves it invalid."""
    query = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    found = ask(connection, query, name=name)
    if found and found[0].indisvalid:
        return
    if found:
        run(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    kind = "UNIQUE INDEX" if unique else "INDEX"
    run(connection, f"CREATE {kind} CONCURRENTLY {name} ON {definition}")


def create_search_index(connection: Connection) -> None:
    """Makes the index that serves `q=`, where pg_trgm is there."""
    query = text(
        "SELECT quote_ident(nspname) FROM pg_extension"
        " JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'pg_trgm'"
    )
    for (schema,) in ask(connection, query):
        create_index(
            connection,
            "notes_search",
            f'notes USING gin (coalesce(folded, lower(text COLLATE "C")) {schema}.gin_trgm_ops)',
        )


def change_ids(connection: Connection, kind: str, most: int) -> None:
    """Gives the ids of notes another type, `bigint` or `integer`; new ones end at `most`.

    A new column is filled beside the old one and takes its place. Its indexes are made and it is
    NOT NULL beforehand, so that the exchange reads no notes. Objects that depend on the old column,
    such as views, make it fail.
    """
    query = text(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
        " WHERE attrelid = 'notes'::regclass AND attname IN ('id', 'new_id')"
    )
    types = {row.attname: row.format_type for row in ask(connection, query)}
    remove = (
        "DROP TRIGGER IF EXISTS notes_new_id ON notes",
        "DROP FUNCTION IF EXISTS notes_new_id()",
    )
    if types.get("new_id", kind) != kind or (types["id"] == kind and "new_id" in types):
        # A change the other way was broken off.
        change_briefly(connection, *remove, "ALTER TABLE notes DROP COLUMN new_id")
    if types["id"] == kind:
        return
    ((last,),) = ask(connection, text("SELECT coalesce(max(id), 0) FROM notes"))
    if last > most:
        raise SystemExit(f"There are notes with ids over {most}, which {kind} can't hold.")

    query = text(
        "SELECT quote_ident(conname), pg_get_expr(adbin, adrelid),"
        " pg_get_serial_sequence('notes', 'id')"
        " FROM pg_constraint JOIN pg_attrdef ON adrelid = conrelid"
        " JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum AND attname = 'id'"
        " WHERE conrelid = 'notes'::regclass AND contype = 'p'"
    )
    ((key, default, sequence),) = ask(connection, query)
    change_briefly(
        connection,
        f"ALTER TABLE notes ADD COLUMN IF NOT EXISTS new_id {kind}",
        *remove,
        "CREATE FUNCTION notes_new_id() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN NEW.new_id := NEW.id; RETURN NEW; END'",
        "CREATE TRIGGER notes_new_id BEFORE INSERT OR UPDATE ON notes"
        " FOR EACH ROW EXECUTE FUNCTION notes_new_id()",
    )
    # From here on the trigger fills the column of every note that is written.
    forbid_null(connection, "new_id", literal_column("notes.id"))
    create_index(connection, "notes_new_id", "notes (new_id)", unique=True)
    create_index(connection, "notes_new_completed", "notes (completed, new_id)")
    if last:
        # Else PostgreSQL would plan without knowing anything of the column, for some time.
        run(connection, "ANALYZE notes")

    change_briefly(
        connection,
        "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE",
        *remove,
        f"ALTER SEQUENCE {sequence} AS {kind} MAXVALUE {most} OWNED BY notes.new_id",
        f"ALTER TABLE notes DROP CONSTRAINT {key}, ALTER new_id SET DEFAULT {default}",
        f"ALTER TABLE notes ADD CONSTRAINT {key} PRIMARY KEY USING INDEX notes_new_id",
        "ALTER TABLE notes DROP COLUMN id",
        "ALTER TABLE notes RENAME new_id TO id",
        "ALTER INDEX notes_new_completed RENAME TO notes_completed",
    )
