"""What the database drivers raise in trouble."""

import sqlite3

import asyncpg

# What the drivers raise when the database is away, full, slow, refusing or not migrated. Everything
# else is a defect of this service and stays an error 500.
TROUBLE = (
    OSError,  # its subclass TimeoutError too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SequenceGeneratorLimitExceededError,  # no ids are left
    asyncpg.TransactionRollbackError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    sqlite3.OperationalError,
)

# A connection that was lost, as after a restart of the server.
LOST = (
    ConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

# A statement that was surely not carried out, as its connection is out of date: since it was
# prepared a table has changed, or the server has become read-only.
REFUSED = (asyncpg.InvalidCachedStatementError, asyncpg.ReadOnlySQLTransactionError)


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""

    def reason(self) -> str:
        """What is the matter, in a sentence without details."""
        cause = self.__cause__
        missing = isinstance(cause, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError)
        if missing or "no such" in str(cause):
            return f"The database is not migrated: {type(cause).__name__}"
        return f"The database is unavailable: {type(cause).__name__}"
