"""Runs the migrations on DATABASE_URL, with the drivers that the service uses itself."""

import asyncio
from logging.config import fileConfig
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, pool
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import context
from service import settings
from service.tables import metadata

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

url = make_url(settings.DATABASE_URL)
url = url.set(drivername=DRIVERS[url.drivername])


def include_name(name: str | None, kind: str, parents: object) -> bool:
    # Only servers with pg_trgm have this index, so the tables in Python don't.
    return not (kind == "index" and name == "notes_search")


def run(connection: Connection) -> None:
    context.configure(
        connection,
        target_metadata=metadata,
        include_name=include_name,
        transaction_per_migration=True,
        # SQLite can't alter a table in place; batch mode rebuilds it.
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    options: dict[str, Any] = {}
    if url.drivername != "sqlite+aiosqlite":
        options |= settings.DATABASE_ARGUMENTS
        options["ssl"] = settings.DATABASE_SSL
        options["timeout"] = settings.DATABASE_CONNECT_TIMEOUT
        options["server_settings"] = settings.DATABASE_SERVER_SETTINGS
        if not settings.DATABASE_STATEMENT_CACHE:
            # PgBouncer may give each transaction another connection, where names may be taken.
            options |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
            options["prepared_statement_name_func"] = lambda: f"__alembic_{uuid4()}__"
    engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=options)
    async with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            # Readers and a writer don't wait for each other; the file keeps this.
            await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            await connection.commit()
        await connection.run_sync(run)
    await engine.dispose()


def run_offline() -> None:
    """Prints the SQL instead (`alembic upgrade head --sql`)."""
    context.configure(
        url=url, target_metadata=metadata, literal_binds=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    asyncio.run(run_online())
