"""Fresh, migrated databases for tests: SQLite files and databases of a real PostgreSQL."""

import asyncio
import os
import re
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

NewDatabase = Callable[[str], str]

TABLES = ("notes", "idempotency_keys", "users")
ROOT = Path(__file__).parents[2]
SETTINGS = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def environment(**variables: str) -> dict[str, str]:
    """The process's environment without the service's settings, and with these variables.

    The commands of the requirements are on PATH, as a platform puts them there.
    """
    kept = {key: os.environ[key] for key in os.environ if key not in SETTINGS}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from the project's root."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def alembic(
    database_url: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Alembic's command on the database."""
    command = (sys.executable, "-m", "alembic", *arguments)
    return run(*command, DATABASE_URL=database_url, **variables)


def migrate(database_url: str) -> None:
    result = alembic(database_url, "upgrade", "head")
    assert result.returncode == 0, result.stderr


def execute(database_url: str, *statements: str) -> Any:
    """Runs statements outside the service, and gives the first value of the last."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            rows = [file.execute(statement).fetchone() for statement in statements]
            file.commit()
        return rows[-1] and rows[-1][0]

    async def run() -> Any:
        connection = await asyncpg.connect(database_url)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(run())


@contextmanager
def holding(database_url: str, *statements: str) -> Iterator[None]:
    """Runs statements in a transaction that is open until the block ends, and then committed.

    Nobody else can write to SQLite's file meanwhile.
    """
    if database_url.startswith("sqlite"):
        path = database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            for statement in ("BEGIN IMMEDIATE", *statements):
                file.execute(statement)
            yield
            file.execute("COMMIT")
        return
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(database_url))
        try:
            for statement in ("BEGIN", *statements):
                runner.run(connection.execute(statement))
            yield
            runner.run(connection.execute("COMMIT"))
        finally:
            runner.run(connection.close())


def locked(database_url: str, tables: str = "notes") -> AbstractContextManager[None]:
    """Locks the tables until the block ends. On SQLite, other programs can still read."""
    if database_url.startswith("sqlite"):
        return holding(database_url)
    return holding(database_url, f"LOCK TABLE {tables}")


def fill(database_url: str, count: int, text: str = "note") -> None:
    """Stores notes with the ids 1 to count. Odd ids are completed."""
    numbers = f"SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}"
    execute(
        database_url,
        f"INSERT INTO notes (text, completed) WITH RECURSIVE numbers(n) AS ({numbers})"
        f" SELECT '{text}', n % 2 = 1 FROM numbers WHERE n > 0",
    )


def clear(database_url: str) -> None:
    """Empties every table. Ids begin with 1 again."""
    if database_url.startswith("sqlite"):
        execute(database_url, *(f"DELETE FROM {table}" for table in (*TABLES, "sqlite_sequence")))
    else:
        execute(database_url, f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY")


def create_postgresql(server_url: str, template: str | None = None) -> str:
    """Creates a database on the server, empty or a copy of another, and returns its URL."""
    name = f"test_{secrets.token_hex(6)}"
    source = urlsplit(template).path[1:] if template else "template0"
    execute(server_url, f'CREATE DATABASE {name} TEMPLATE "{source}"')
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


def drop_postgresql(server_url: str, database_url: str) -> None:
    execute(server_url, f'DROP DATABASE "{urlsplit(database_url).path[1:]}" WITH (FORCE)')
