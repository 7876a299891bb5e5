"""One migration history serves all kinds of databases."""

import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncmy
import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.pool import Pool

from alembic import command
from service.revisions import HEAD
from tests.support import databases
from tests.support.databases import SERVED
from tests.support.notes import known
from tests.support.processes import executor
from tests.support.servers import free_port, serving


def test_migrations_go_up_and_down(empty_database: str) -> None:
    """Head can be reached from nothing and left again, as often as one likes."""
    for target in ("upgrade head", "downgrade base", "upgrade head"):
        result = databases.alembic(empty_database, *target.split())
        assert result.returncode == 0, result.stderr


def test_migrations_make_the_tables_of_the_code(database_url: str) -> None:
    """`alembic check` finds no difference between the migrated database and tables.py."""
    result = databases.alembic(database_url, "check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_sqlite_is_in_wal_mode(new_database: databases.NewDatabase) -> None:
    """A migrated SQLite file is in WAL mode."""
    file = new_database("sqlite").removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_migrations_can_be_printed(database_url: str) -> None:
    """`--sql` prints the migrations instead of running them."""
    result = databases.alembic(database_url, "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    assert "CREATE TABLE notes" in result.stdout
    if databases.kind_of(database_url) == "postgresql":
        assert "ALTER TABLE notes ALTER COLUMN id TYPE BIGINT" in result.stdout


@pytest.mark.parametrize(("kind", "other"), [("postgresql", "postgres"), ("mysql", "mariadb")])
def test_other_names_of_kinds_work(
    new_empty_database: databases.NewDatabase, kind: str, other: str
) -> None:
    """Alembic takes the `postgres://` URLs that Heroku gives, and `mariadb://`."""
    url = new_empty_database(kind).replace(f"{kind}://", f"{other}://")
    result = databases.alembic(url, "upgrade", "head")
    assert result.returncode == 0, result.stderr


def test_migrations_need_no_web_framework() -> None:
    """The tables and the settings are imported without Starlette."""
    code = (
        "import sys, service.tables, service.settings;"
        "sys.exit(bool({'starlette', 'uvicorn', 'databases'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=databases.ROOT).returncode == 0


def test_the_service_knows_the_newest_migration() -> None:
    """What the service takes for the newest migration is what Alembic takes for it."""
    config = Config(databases.ROOT / "alembic.ini")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_two_runs_at_once(empty_database: str) -> None:
    """Of two runs at once one does all. The other one finds nothing to do."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(databases.alembic, empty_database, "upgrade", "head") for _ in range(2)]
        results = [run.result() for run in runs]
    assert [result.returncode for result in results] == [0, 0], [*map(str, results)]
    assert sorted("Running upgrade" in result.stderr for result in results) == [False, True]


def busy_timeouts() -> set[int]:
    """How long the connections of a run wait for other writers, in milliseconds."""
    found = set()

    def look(file: Any, _: object) -> None:
        cursor = file.cursor()
        cursor.execute("PRAGMA busy_timeout")
        found.add(cursor.fetchone()[0])
        cursor.close()

    event.listen(Pool, "connect", look)
    command.current(Config(databases.ROOT / "alembic.ini"))
    return found


def test_how_long_a_run_waits_for_another_one(
    new_database: databases.NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite it waits for ten minutes: a large file may take that long."""
    monkeypatch.setenv("DATABASE_URL", new_database("sqlite"))
    with executor() as process:
        assert process.submit(busy_timeouts).result(300) == {600_000}


# What the FastAPI example makes.
EXAMPLE = {
    "sqlite": "CREATE TABLE notes (id INTEGER NOT NULL, text VARCHAR, completed BOOLEAN,"
    " PRIMARY KEY (id))",
    "postgresql": "CREATE TABLE notes (id SERIAL NOT NULL, text VARCHAR, completed BOOLEAN,"
    " PRIMARY KEY (id))",
    # There it has to give a length.
    "mysql": "CREATE TABLE notes (id INTEGER NOT NULL AUTO_INCREMENT,"
    " text VARCHAR(200) CHARACTER SET utf8mb4, completed BOOL, PRIMARY KEY (id))",
}
REFUSED = (sqlite3.IntegrityError, asyncpg.NotNullViolationError, asyncmy.errors.IntegrityError)
FOUND = ["'a', true", "'Ä', NULL", "'c', false", "NULL, NULL", "'e', NULL", "NULL, true"]
MENDED = [("a", True), ("Ä", False), ("c", False), ("", False), ("e", False)]


def test_the_example_s_database_is_taken_over(empty_database: str, tmp_path: Path) -> None:
    """A database of the FastAPI example gets rid of NULL, and works as any other."""
    values = ", ".join(f"({values})" for values in FOUND)
    databases.execute(
        empty_database,
        EXAMPLE[databases.kind_of(empty_database)],
        f"INSERT INTO notes (text, completed) VALUES {values}",
        "DELETE FROM notes WHERE id = 6",
    )
    assert databases.alembic(empty_database, "stamp", "0001").returncode == 0
    result = databases.alembic(empty_database, "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert 'WARNING alembic: text was NULL in 1 of the notes, and is "" now\n' in result.stderr
    assert "WARNING alembic: completed was NULL in 3 of the notes, and is false" in result.stderr
    result = databases.alembic(empty_database, "check")
    assert result.returncode == 0, result.stdout + result.stderr
    for column in ("text", "completed"):
        with pytest.raises(REFUSED):
            databases.execute(empty_database, f"UPDATE notes SET {column} = NULL")
    notes = [{"id": n, "text": t, "completed": c} for n, (t, c) in enumerate(MENDED, 1)]
    with serving(empty_database, tmp_path / "log") as http:
        assert known(http.get("/notes/").json()) == notes
        for completed in (False, True):
            listed = http.get("/notes/", params={"completed": completed}).json()
            assert known(listed) == [note for note in notes if note["completed"] == completed]
        assert known(http.get("/notes/?q=%C3%A4").json()) == [notes[1]]
        note = {"text": "new", "completed": False}
        first = http.post("/notes/", json=note).json()["id"]
        http.delete(f"/notes/{first}")
        # An id is not given twice.
        assert http.post("/notes/", json=note).json()["id"] == first + 1


def test_ids_of_a_table_of_others_are_not_given_twice(
    new_empty_database: databases.NewDatabase,
) -> None:
    """On SQLite this holds also for a table that differs from ours in nothing else."""
    url = new_empty_database("sqlite")
    strict = EXAMPLE["sqlite"].replace("VARCHAR", "VARCHAR NOT NULL")
    insert = "INSERT INTO notes (text, completed) VALUES ('a', true) RETURNING id"
    databases.execute(
        url,
        strict.replace("BOOLEAN", "BOOLEAN NOT NULL"),
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('0001')",
        *[insert] * 2,
    )
    databases.migrate(url)
    databases.execute(url, "DELETE FROM notes WHERE id = 2")
    assert databases.execute(url, insert) == 3


# Texts of which lower() makes something else than Unicode's case folding does, and others.
TEXTS = ["Straße fegen", "ΣΊΣΥΦΟΣ rollt", "ﬁne", "ИГОЛКА", "İstanbul", "Plain"]


def test_notes_from_before_searches_are_found(empty_database: str, tmp_path: Path) -> None:
    """Notes that are older than searches are found in upper and lower case."""
    values = ", ".join(f"('{text}', true)" for text in (*["filler"] * 1100, *TEXTS))
    databases.execute(
        empty_database,
        EXAMPLE[databases.kind_of(empty_database)],
        "INSERT INTO notes (text, completed) VALUES ('Ä first', true), (NULL, NULL)",
        f"INSERT INTO notes (text, completed) VALUES {values}",
    )
    assert databases.alembic(empty_database, "stamp", "0001").returncode == 0
    databases.migrate(empty_database)
    with serving(empty_database, tmp_path / "log") as http:
        for text in ("Ä first", *TEXTS):
            for q in (text, text.upper(), text.casefold()):
                found = http.get("/notes/", params={"q": q}).json()
                assert [note["text"] for note in found] == [text], q


def test_a_migrated_database_is_not_made_anew(database_url: str) -> None:
    """A migration that finds no NULL changes and says nothing."""
    assert databases.alembic(database_url, "downgrade", "0004").returncode == 0
    databases.execute(database_url, "INSERT INTO notes (text, completed) VALUES ('a', true)")
    result = databases.alembic(database_url, "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert "NULL" not in result.stderr


def assert_one_line(database_url: str, reason: str, **variables: str) -> None:
    """AssertionError unless Alembic says in a line, without the password, why it can't migrate."""
    result = databases.alembic(database_url, "upgrade", "head", **variables)
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert reason in result.stderr
    assert "s3cr3t" not in result.stdout + result.stderr


@pytest.mark.parametrize("kind", SERVED)
def test_a_closed_port_is_told_in_a_line(kind: str) -> None:
    """A server that is away ends the migration with one line."""
    assert_one_line(f"{kind}://bob:s3cr3t@127.0.0.1:{free_port()}/notes", "Connect call failed")


@pytest.mark.parametrize("kind", SERVED)
def test_an_unknown_host_is_told_in_a_line(kind: str) -> None:
    """An unknown host ends the migration with one line."""
    assert_one_line(f"{kind}://bob:s3cr3t@nowhere.invalid/notes", f"{kind}://bob:***@nowhere")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("postgresql", 'database "nowhere" does not exist'), ("mysql", "to database 'nowhere'")],
)
def test_a_missing_database_is_told_in_a_line(
    new_empty_database: databases.NewDatabase, kind: str, reason: str
) -> None:
    """A database that is not there ends the migration with one line."""
    url = urlsplit(new_empty_database(kind))._replace(path="/nowhere").geturl()
    assert_one_line(url, reason)


@pytest.mark.parametrize("kind", SERVED)
def test_a_server_that_says_nothing_is_told_in_a_line(kind: str) -> None:
    """A silent server ends the migration with one line, within the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{kind}://bob:s3cr3t@127.0.0.1:{server.getsockname()[1]}/notes"
        assert_one_line(url, "no answer within 0.2 s", DATABASE_CONNECT_TIMEOUT="0.2")


def test_a_file_that_is_no_database_is_told_in_a_line(tmp_path: Path) -> None:
    """A file that SQLite can't read, or may not write, ends the migration with one line."""
    file = tmp_path / "notes.db"
    file.write_text("This is no database, but a text of some length.\n" * 100)
    assert_one_line(f"sqlite:///{file}", "file is not a database")
    assert_one_line(f"sqlite:///{tmp_path}/nowhere/notes.db", "nowhere")
