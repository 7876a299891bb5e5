"""Migrations that run beside a test."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from sqlalchemy import Column, String, Text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateColumn

from service.tables import notes
from tests.support import databases
from tests.support.databases import CONNECTED
from tests.support.template import Process

# The newest migration that tests of migrations know, and all columns of notes then. A service with
# more fields has later ones.
NEWEST = "0010"
COLUMNS = {"id", "text", "completed", "folded", "owner_id"}
LATER = [column for column in notes.columns if column.name not in COLUMNS]
DIALECTS: dict[str, Any] = {"postgresql": postgresql, "mysql": mysql}


class Migration(NamedTuple):
    """A run of Alembic's command, and the file with its output."""

    process: Process
    output: IO[str]

    def printed(self) -> str:
        """The output of a migration, which has to succeed."""
        status = self.process.wait(300)
        self.output.seek(0)
        printed = self.output.read()
        assert status == 0, printed
        return printed


@contextmanager
def migrating(url: str, *command: str) -> Iterator[Migration]:
    """Runs Alembic's command beside the block."""
    with tempfile.TemporaryFile("w+") as output:
        process = databases.start(
            [sys.executable, "-m", "alembic", *(command or ("upgrade", "head"))],
            output,
            output,
            DATABASE_URL=url,
        )
        try:
            yield Migration(process, output)
        finally:
            process.kill()
            process.wait()


def migrate_to(url: str, version: str) -> None:
    """Makes the tables of an old version, and the columns of notes that came after NEWEST.

    Today's service needs these columns also while the table is migrated.
    """
    result = databases.alembic(url, "upgrade", version)
    assert result.returncode == 0, result.stderr
    dialect = DIALECTS[databases.kind_of(url)].dialect()
    for column in LATER:
        # MySQL has no String without a length.
        is_long = isinstance(column.type, String) and column.type.length is None
        added: Column[Any] = Column(
            column.name,
            Text() if is_long else column.type,
            nullable=column.nullable,
            server_default=getattr(column.server_default, "arg", None),
        )
        definition = CreateColumn(added).compile(dialect=dialect)
        databases.execute(url, f"ALTER TABLE notes ADD COLUMN {definition}")


def migrate_on(url: str) -> None:
    """Makes the tables of today from those of `migrate_to`, by the later migrations."""
    for column in LATER:
        databases.execute(url, f"ALTER TABLE notes DROP COLUMN {column.name}")
    databases.migrate(url)


def backends(url: str, condition: str) -> int:
    """How many of the database's other connections meet a condition on the server's list."""
    return int(databases.execute(url, f"{CONNECTED[databases.kind_of(url)]} AND {condition}"))


# Only who migrates holds an advisory lock, or one with a name.
MIGRATES = {
    "postgresql": "datname = current_database()"
    " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
    "mysql": "id = is_used_lock(concat('7236274165-', md5(database())))",
}
WAITS = {
    "postgresql": f"{MIGRATES['postgresql']} AND wait_event_type = 'Lock'",
    "mysql": f"{MIGRATES['mysql']} AND state = 'Waiting for table metadata lock'",
}


def migrates(url: str) -> bool:
    """Whether a run of migrations has its turn."""
    return backends(url, MIGRATES[databases.kind_of(url)]) > 0


def waits(url: str) -> bool:
    """Whether a run of migrations waits for a lock."""
    return backends(url, WAITS[databases.kind_of(url)]) > 0
