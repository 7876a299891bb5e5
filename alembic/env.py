"""Runs the migrations on DATABASE_URL, with the drivers that the service uses itself."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging.config import fileConfig
from typing import Any
from uuid import uuid4

import asyncpg
from sqlalchemy import Connection, event, pool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from alembic import context
from service import settings
from service.database.connecting import connect
from service.tables import metadata

DRIVERS = {
    "mysql+asyncmy": "mysql+asyncmy",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
# The drivers' own errors; SQLAlchemy and Alembic may hide them behind theirs.
DRIVERS_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.Error,
)

# The advisory lock of a run: any number that others don't use. MySQL's locks have names, and
# belong to no database.
LOCK = 7_236_274_165
TRY_LOCK = f"SELECT pg_try_advisory_lock({LOCK})"
TRY_LOCK_FOR_TRANSACTION = f"SELECT pg_try_advisory_xact_lock({LOCK})"
TRY_LOCK_BY_NAME = f"SELECT GET_LOCK(concat('{LOCK}-', md5(database())), 0)"
POLL_SECONDS = 0.5
# How long a run on SQLite waits for another one.
FILE_SECONDS = 600

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
logger = logging.getLogger("alembic.notes")

url = make_url(settings.DATABASE_URL)
url = url.set(drivername=DRIVERS[url.drivername])
is_sqlite = url.drivername == "sqlite+aiosqlite"
is_mysql = url.drivername == "mysql+asyncmy"
if is_sqlite:
    import migrating_sqlite  # noqa: F401 - Alembic finds its class
if is_mysql:
    from asyncmy.errors import MySQLError

    import migrating_mysql
    from service.database.mysql_sessions import Refused

    DRIVERS_ERRORS += (MySQLError, Refused)


def include_name(name: str | None, kind: str, parents: object) -> bool:
    # Only servers with pg_trgm have the first one. The others are written differently in each
    # database's SQL. So the tables in Python have none of them.
    return name not in ("notes_search", "notes_large", "text_bytes", "text_is_large")


def run(connection: Connection) -> None:
    context.configure(
        connection,
        target_metadata=metadata,
        include_name=include_name,
        # On SQLite one run is one transaction: all or nothing, and one at a time.
        transactional_ddl=True,
        transaction_per_migration=connection.dialect.name != "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
    if is_mysql:
        migrating_mysql.refuse_other_characters(connection)


async def run_online() -> None:
    options: dict[str, Any] = {}
    if is_sqlite:
        options["timeout"] = FILE_SECONDS
    elif is_mysql:
        options["async_creator_fn"] = migrating_mysql.connect
    else:
        options |= settings.DATABASE_ARGUMENTS
        options["async_creator_fn"] = connect
        options["ssl"] = settings.DATABASE_SSL
        options["timeout"] = settings.DATABASE_CONNECT_TIMEOUT
        options["server_settings"] = settings.DATABASE_SERVER_SETTINGS
        # PgBouncer may give each transaction another connection, where names may be taken.
        options |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        options["prepared_statement_name_func"] = lambda: f"__alembic_{uuid4()}__"
    engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=options)
    if not (is_sqlite or is_mysql):
        # The snapshot of another isolation would be one that CREATE INDEX CONCURRENTLY waits for.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    if is_sqlite:
        event.listen(engine.sync_engine, "connect", set_up_file)
        event.listen(engine.sync_engine, "begin", begin_immediate)
    async with engine.connect() as connection:
        if is_sqlite:
            await connection.run_sync(run)
        else:
            async with turn(engine, connection):
                await connection.run_sync(run)
    await engine.dispose()


def set_up_file(file: Any, _: object) -> None:
    # Else the driver would begin no transaction before it changes a table.
    file.isolation_level = None
    cursor = file.cursor()
    # Readers and a writer don't wait for each other; the file keeps this.
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@asynccontextmanager
async def turn(engine: AsyncEngine, connection: AsyncConnection) -> AsyncIterator[None]:
    """Waits until no other run migrates the database, and keeps others waiting."""
    if is_mysql or not await is_pooled(connection):
        # If this process is killed, the session keeps the lock until its last statement has ended.
        await take(connection, TRY_LOCK_BY_NAME if is_mysql else TRY_LOCK)
        await connection.commit()
        yield
        return
    # Through PgBouncer nothing but a transaction stays on one connection.
    async with engine.connect() as holder:
        await take(holder, TRY_LOCK_FOR_TRANSACTION)
        # Another statement has to follow, for CREATE INDEX CONCURRENTLY would wait for the last
        # one's snapshot.
        await holder.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await refuse_a_pool_of_one(connection)
        yield


async def is_pooled(connection: AsyncConnection) -> bool:
    """Whether there is a pooler in between, which has told its own number for the session."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    number = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar()
    await connection.rollback()
    return bool(number != raw.get_server_pid())


async def refuse_a_pool_of_one(connection: AsyncConnection) -> None:
    """Ends the run if the pooler gives no connection besides the one that holds the lock."""
    try:
        async with asyncio.timeout(settings.DATABASE_CONNECT_TIMEOUT):
            await connection.execute(text("SELECT 1"))
            await connection.rollback()
    except TimeoutError:
        raise SystemExit(
            "Migrations need two connections at the same time, and the pooler of DATABASE_URL gave"
            " one. Give it a larger pool, or migrate with the server's own address"
        ) from None


async def take(connection: AsyncConnection, try_lock: str) -> None:
    # No transaction stays open in between, which CREATE INDEX CONCURRENTLY would wait for.
    waits = False
    while not (await connection.execute(text(try_lock))).scalar():
        await connection.rollback()
        if not waits:
            waits = True
            logger.info("Waiting for another run to end")
        await asyncio.sleep(POLL_SECONDS)


def run_offline() -> None:
    """Prints the SQL instead (`alembic upgrade head --sql`)."""
    context.configure(
        url=url, target_metadata=metadata, literal_binds=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


def tell(error: BaseException) -> str:
    """The trouble with the database, in a line without the password."""
    place = url.set(drivername=url.get_backend_name(), query={}).render_as_string()
    silence = f"no answer within {settings.DATABASE_CONNECT_TIMEOUT:g} s"
    return f"Database {place}: {type(error).__name__}: {' '.join(str(error).split()) or silence}"


if context.is_offline_mode():
    run_offline()
else:
    try:
        asyncio.run(run_online())
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DRIVERS_ERRORS):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise SystemExit(tell(cause)) from None
