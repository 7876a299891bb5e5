"""Steps of migrations that change a table of PostgreSQL while it is in use.

They run outside of a transaction, as in Alembic's `autocommit_block`. Each may be broken off at any
moment, and does what is left of it when it is run again.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Executable, text


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


def create_index(connection: Connection, name: str, definition: str) -> None:
    """Makes an index concurrently, and anew where one was broken off, which leaves it invalid."""
    query = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    found = ask(connection, query, name=name)
    if found and found[0].indisvalid:
        return
    if found:
        run(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    run(connection, f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


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
