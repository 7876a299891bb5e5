"""Migrations on MySQL and MariaDB: their types, and statements that can be repeated.

Each DDL statement is a transaction of its own there. So a run may be interrupted between the
statements of a migration, and the next run begins that migration again.
"""

import asyncio
import logging
import time
from typing import Any

import asyncmy
from alembic.ddl.mysql import MySQLImpl
from sqlalchemy import Column, Connection, String, func, inspect, select, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from service import settings
from service.database.mysql_sessions import NOT_UTF8, CannotStoreUTF8, set_up, with_tls

# It warns of the name of a primary key, which MySQL ignores.
logging.getLogger("asyncmy").setLevel(logging.ERROR)
logger = logging.getLogger("alembic.notes")

# Here "a" differs from "A" and from "a ". Others say 'a' = 'a '. Each server reads its own part.
COLLATION = "/*M! utf8mb4_nopad_bin *//*!80000 utf8mb4_0900_bin */"

LOCK_SECONDS = 1
RETRY_SECONDS = 0.5
# SQLAlchemy commits by itself, and reads names in quotes.
LIMITS = (
    "SET autocommit = 0, default_storage_engine = InnoDB, sql_quote_show_create = 1,"
    f" lock_wait_timeout = {LOCK_SECONDS}"
)

LOCK_WAIT_TIMEOUT = 1205
TABLE_EXISTS = 1050
# What the statement should make is there, or what it should remove is not.
DONE = (
    1051,  # no such table
    1060,  # the column exists
    1061,  # the index exists
    1091,  # no such column or index
)


@compiles(String, "mysql")
def _compile_string(kind: String, compiler: Any, **options: Any) -> str:
    name = "LONGTEXT" if kind.length is None else f"VARCHAR({kind.length})"
    return f"{name} CHARACTER SET utf8mb4 COLLATE {COLLATION}"


class RepeatableDDL(MySQLImpl):
    """Alembic's operations for MySQL. Each does nothing if an interrupted run has done it."""

    __dialect__ = "mysql"

    def _exec(self, construct: Any, *arguments: Any, **options: Any) -> Any:
        """A statement that waits for a table's lock blocks all later ones on the table.

        So each try waits only for LOCK_SECONDS.
        """
        waits = False
        while True:
            try:
                return super()._exec(construct, *arguments, **options)
            except DBAPIError as error:
                code = error.orig.args[0] if error.orig and error.orig.args else None
                if code != LOCK_WAIT_TIMEOUT:
                    if code in DONE or (code == TABLE_EXISTS and self._is_made(construct)):
                        return None
                    raise
            if not waits:
                waits = True
                logger.info("Waiting for a lock on the table")
            time.sleep(RETRY_SECONDS)

    def compare_type(self, inspector_column: Column[Any], metadata_column: Column[Any]) -> bool:
        """Whether the types differ. Texts are all compiled above, so only lengths can differ."""
        found, wanted = (
            column.type.dialect_impl(self.dialect) for column in (inspector_column, metadata_column)
        )
        if isinstance(found, String) and isinstance(wanted, String):
            return found.length != wanted.length
        return super().compare_type(inspector_column, metadata_column)

    def _is_made(self, construct: Any) -> bool:
        """Whether the table is one that an interrupted run has made: the same, and empty."""
        if not (isinstance(construct, CreateTable) and isinstance(self.connection, Connection)):
            return False
        made = construct.element
        found = {column["name"] for column in inspect(self.connection).get_columns(made.name)}
        if found != set(made.columns.keys()):
            return False
        return not self.connection.scalar(select(func.count()).select_from(table(made.name)))


def refuse_other_characters(connection: Connection) -> None:
    """Raises CannotStoreUTF8 if a column of this service can't store all texts."""
    if found := connection.scalar(text(NOT_UTF8)):
        raise CannotStoreUTF8(found)


async def connect(**arguments: Any) -> asyncmy.Connection:
    """A connection for Alembic. Raises Refused, OSError and TimeoutError."""

    async def open_with(options: dict[str, Any]) -> asyncmy.Connection:
        # asyncmy may ignore errors of statements that it prepares.
        return await asyncmy.connect(
            **{**arguments, **options, "password": "", "stmt_cache_size": 0}
        )

    async with asyncio.timeout(settings.DATABASE_CONNECT_TIMEOUT):
        connection = await with_tls(open_with)
        await set_up(connection, LIMITS)
        return connection
