"""Fresh, migrated databases for tests: SQLite files, and databases of real servers."""

import asyncio
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

import asyncmy
import asyncpg

from service.tables import metadata
from tests.support import template
from tests.support.template import Process

NewDatabase = Callable[..., str]

KINDS = ("sqlite", "postgresql", "mysql")
# The kinds that a server serves.
SERVED = ("postgresql", "mysql")
# They stay empty without `live on`.
RECORDED = ("changes", "live")
# The others. Those that refer to others come before them.
EMPTIED = [table for table in reversed(metadata.sorted_tables) if table.name not in RECORDED]
TABLES = [table.name for table in EMPTIED]
# Those whose ids the database gives.
NUMBERED = [table.name for table in EMPTIED if table.autoincrement_column is not None]
ROOT = Path(__file__).parents[2]
SETTINGS = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
# What the drivers raise for a server that can't be reached, refuses, or ends the connection.
UNREACHABLE = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncmy.errors.Error,
)


def environment(**variables: str) -> dict[str, str]:
    """The process's environment without the service's settings, and with these variables.

    The commands of the requirements are on PATH, as a platform puts them there.
    """
    kept = {key: os.environ[key] for key in os.environ if key not in SETTINGS}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables


def start(
    command: Sequence[str],
    stdout: IO[Any],
    stderr: IO[Any],
    cwd: Path = ROOT,
    **variables: str,
) -> Process:
    """Starts a command with files for its output; as a fork of the template where that is the same.

    It isn't the same if the interpreter itself may read one of the variables.
    """
    env = environment(**variables)
    if variables.keys() <= SETTINGS | {"TMPDIR", "SSL_CERT_FILE"} and template.can_fork(command):
        return template.fork(command, cwd, env, stdout.fileno(), stderr.fileno())
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from the project's root."""
    return run_in(ROOT, *command, **variables)


def run_in(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from a folder."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = start(command, stdout, stderr, folder, **variables)
        try:
            status = process.wait(300)
        finally:
            process.kill()
            process.wait()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, status, stdout.read(), stderr.read())


def alembic(
    database_url: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Alembic's command on the database."""
    command = (sys.executable, "-m", "alembic", *arguments)
    return run(*command, DATABASE_URL=database_url, **variables)


def migrate(database_url: str) -> None:
    result = alembic(database_url, "upgrade", "head")
    assert result.returncode == 0, result.stderr


def kind_of(database_url: str) -> str:
    """The kind of the database, as in `KINDS`."""
    scheme = urlsplit(database_url).scheme
    return {"postgres": "postgresql", "mariadb": "mysql"}.get(scheme, scheme)


def name_of(database_url: str) -> str:
    """The name of a database of a server."""
    return urlsplit(database_url).path[1:]


class Connection(Protocol):
    """A connection to a server, beside the service's."""

    async def rows(self, statement: str) -> Sequence[Any]:
        """Runs a statement and gives its rows."""

    async def close(self) -> None: ...


class PostgresqlConnection:
    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def rows(self, statement: str) -> Sequence[Any]:
        return await self._connection.fetch(statement)

    async def close(self) -> None:
        await self._connection.close(timeout=5)


class MysqlConnection:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, statement: str) -> Sequence[Any]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement)
            rows: Sequence[Any] = await cursor.fetchall()
        return rows

    async def close(self) -> None:
        await self._connection.ensure_closed()


async def connect(database_url: str) -> Connection:
    """Connects to a database of a server."""
    if kind_of(database_url) == "postgresql":
        return PostgresqlConnection(await asyncpg.connect(database_url))
    parts = urlsplit(database_url)
    connection = await asyncmy.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=unquote(parts.password or ""),
        database=parts.path[1:] or None,
        autocommit=True,
        # A row may have the id 0.
        init_command="SET sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO'",
    )
    return MysqlConnection(connection)


Run = Callable[[str], Any]


Fetch = Callable[[str], Sequence[Any]]


@contextmanager
def fetching(database_url: str) -> Iterator[Fetch]:
    """A connection. Yields a function that runs a statement and gives its rows."""
    if kind_of(database_url) == "sqlite":
        path = database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            yield lambda statement: file.execute(statement).fetchall()
        return
    with asyncio.Runner() as runner:
        connection = runner.run(connect(database_url))
        try:
            yield lambda statement: runner.run(connection.rows(statement))
        finally:
            with suppress(*UNREACHABLE):
                runner.run(connection.close())


@contextmanager
def session(database_url: str) -> Iterator[Run]:
    """A connection. Yields a function that runs a statement and gives its first value.

    Each statement is committed at once, unless one begins a transaction.
    """
    with fetching(database_url) as fetch:

        def run(statement: str) -> Any:
            rows = fetch(statement)
            return rows[0][0] if rows and rows[0] else None

        yield run


def fetch(database_url: str, statement: str) -> list[tuple[Any, ...]]:
    """Runs a statement outside the service, and gives its rows."""
    with fetching(database_url) as fetch:
        return [tuple(row) for row in fetch(statement)]


def execute(database_url: str, *statements: str) -> Any:
    """Runs statements outside the service, and gives the first value of the last."""
    with session(database_url) as run:
        return [run(statement) for statement in statements][-1]


BEGIN = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "BEGIN", "mysql": "BEGIN"}


@contextmanager
def holding(database_url: str, *statements: str) -> Iterator[None]:
    """Runs statements in a transaction that is open until the block ends, and then committed.

    Nobody else can write to SQLite's file meanwhile.
    """
    with session(database_url) as run:
        for statement in (BEGIN[kind_of(database_url)], *statements):
            run(statement)
        yield
        run("COMMIT")


@contextmanager
def _locked_on_mysql(database_url: str, tables: list[str]) -> Iterator[None]:
    # A transaction doesn't lock a table against reads there.
    with session(database_url) as run:
        run("LOCK TABLES " + ", ".join(f"{table} WRITE" for table in tables))
        yield
        run("UNLOCK TABLES")


def locked(database_url: str, *tables: str) -> AbstractContextManager[None]:
    """Locks the tables, or that of the notes, until the block ends.

    On SQLite, other programs can still read.
    """
    tables = tables or ("notes",)
    match kind_of(database_url):
        case "sqlite":
            return holding(database_url)
        case "postgresql":
            return holding(database_url, f"LOCK TABLE {', '.join(tables)}")
    return _locked_on_mysql(database_url, list(tables))


# Counts the connections to the database that wait for a lock on a table.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE db = database() AND state = 'Waiting for table metadata lock'",
}


# Counts the other connections to the database.
CONNECTED = {
    # Autovacuum is in the view, too.
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE db = database() AND id <> connection_id()",
}


def connected(database_url: str) -> int:
    """How many connections there are to the database of a server."""
    return int(execute(database_url, CONNECTED[kind_of(database_url)]))


def waiting(database_url: str) -> int:
    """How many connections to the database of a server wait for a lock on a table."""
    return int(execute(database_url, WAITING[kind_of(database_url)]))


def fill(database_url: str, count: int, text: str = "note") -> None:
    """Stores notes with the ids 1 to count. Odd ids are completed."""
    numbers = f"SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}"
    is_mysql = kind_of(database_url) == "mysql"
    with session(database_url) as run:
        if is_mysql:
            run(f"SET max_recursive_iterations = {count + 1}")
        run(
            f"INSERT INTO notes (text, completed) WITH RECURSIVE numbers(n) AS ({numbers})"
            f" SELECT '{text}', n % 2 = 1 FROM numbers WHERE n > 0"
        )
        if is_mysql:
            # It leaves out some ids after that many rows.
            run("ALTER TABLE notes AUTO_INCREMENT = 1")


def clear(database_url: str) -> None:
    """Empties every table. Ids begin with 1 again."""
    with session(database_url) as run:
        clear_by(run, kind_of(database_url))


def clear_by(run: Run, kind: str) -> None:
    """Empties every table by a connection to a database of a kind."""
    match kind:
        case "sqlite":
            run("PRAGMA synchronous = OFF")
            run("BEGIN IMMEDIATE")
            for table in (*TABLES, "sqlite_sequence"):
                run(f"DELETE FROM {table}")
            run("COMMIT")
        case "postgresql":
            # TRUNCATE would make new files for tables and indexes.
            for table in TABLES:
                run(f"DELETE FROM {table}")
            sequences = (f"setval('{table}_id_seq', 1, false)" for table in NUMBERED)
            run(f"SELECT {', '.join(sequences)}")
        case _:
            # TRUNCATE refuses a table that another refers to, even an empty one.
            run("SET foreign_key_checks = 0")
            for table in TABLES:
                if run(
                    f"SELECT auto_increment > 1 OR EXISTS (SELECT 1 FROM {table})"
                    " FROM information_schema.tables"
                    f" WHERE table_schema = database() AND table_name = '{table}'"
                ):
                    run(f"TRUNCATE {table}")
            run("SET foreign_key_checks = 1")


def create(server_url: str, template: str = "", name: str = "") -> str:
    """Creates a database on the server, empty or a copy of another, and returns its URL.

    The other database is given by its name.
    """
    with fetching(server_url) as fetch:
        return create_by(fetch, server_url, template, name)


def create_by(fetch: Fetch, server_url: str, template: str = "", name: str = "") -> str:
    """Creates a database by a connection to the server."""
    name = name or f"test_{secrets.token_hex(6)}"
    if kind_of(server_url) == "postgresql":
        statement = f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}"
        # Otherwise newer servers write all of it to their logs.
        ((version,),) = fetch("SHOW server_version_num")
        if int(version) >= 150_000:
            statement += " STRATEGY file_copy"
        fetch(statement)
    else:
        fetch(f"CREATE DATABASE {name}")
        if template:
            fetch(f"USE {name}")
            version = "alembic_version"
            for table in (version, *RECORDED, *reversed(TABLES)):
                # `CREATE TABLE ... LIKE` leaves out foreign keys.
                ((_, statement),) = fetch(f"SHOW CREATE TABLE {template}.{table}")
                fetch(statement)
            fetch(f"INSERT INTO {version} SELECT * FROM {template}.{version}")
            # Tests count the connections to the new one.
            fetch("USE information_schema")
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


def drop(server_url: str, database_url: str) -> None:
    name = name_of(database_url)
    if kind_of(server_url) == "postgresql":
        execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')
    else:
        execute(server_url, f"DROP DATABASE {name}")
