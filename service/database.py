"""The one database, its options, and what its drivers raise when it is in trouble."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
from databases import Database

from service import settings

# What the drivers raise when the database is away, full, slow, refusing or not migrated. Everything
# else is a defect of this service and stays an error 500.
TROUBLE = (
    OSError,  # its subclass TimeoutError too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.UndefinedTableError,
    sqlite3.OperationalError,
)

CLOSE_SECONDS = 5


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Seconds to wait for another writer.
        return {"timeout": settings.DATABASE_TIMEOUT}
    return {
        # No connection is opened at the start, so the service starts while the database is away.
        "min_size": 0,
        "max_size": settings.DATABASE_POOL_MAX,
        "timeout": settings.DATABASE_TIMEOUT,
        "command_timeout": settings.DATABASE_TIMEOUT,
        "ssl": settings.DATABASE_SSL,
    }


database = Database(settings.DATABASE_URL, **_options(settings.DATABASE_URL))


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time."""
    await database.connect()
    try:
        yield
    finally:
        # What is left of the time between SIGTERM and SIGKILL; asyncpg then closes by force.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await database.disconnect()


@asynccontextmanager
async def available() -> AsyncIterator[None]:
    """Turns what the drivers raise for trouble into DatabaseUnavailable, within bounded time."""
    try:
        # databases itself waits without end for a connection of an exhausted pool.
        async with asyncio.timeout(settings.DATABASE_TIMEOUT):
            yield
    except TROUBLE as error:
        raise DatabaseUnavailable(str(error)) from error
