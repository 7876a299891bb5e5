"""One migration history serves SQLite and PostgreSQL."""

import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.conftest import KINDS
from tests.support import databases
from tests.support.servers import free_port, serving


@pytest.fixture(params=KINDS)
def empty_database(request: pytest.FixtureRequest, postgresql: str, tmp_path: Path) -> str:
    """A database of each kind in turn, without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/notes.db"
    return databases.create_postgresql(postgresql)


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
    if database_url.startswith("postgresql"):
        assert "ALTER TABLE notes ALTER COLUMN id TYPE BIGINT" in result.stdout


def test_postgres_urls_work(empty_database: str) -> None:
    """Alembic takes the `postgres://` URLs that Heroku gives."""
    url = empty_database.replace("postgresql://", "postgres://")
    result = databases.alembic(url, "upgrade", "head")
    assert result.returncode == 0, result.stderr


def test_migrations_need_no_web_framework() -> None:
    """The tables and the settings are imported without Starlette."""
    code = (
        "import sys, service.tables, service.settings;"
        "sys.exit(bool({'starlette', 'uvicorn', 'databases'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=databases.ROOT).returncode == 0


def test_two_runs_at_once(empty_database: str) -> None:
    """Of two runs at once one does all. The other one finds nothing to do."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(databases.alembic, empty_database, "upgrade", "head") for _ in range(2)]
        results = [run.result() for run in runs]
    assert [result.returncode for result in results] == [0, 0], [*map(str, results)]
    assert sorted("Running upgrade" in result.stderr for result in results) == [False, True]


# What the FastAPI example makes.
EXAMPLE = {
    "sqlite": "CREATE TABLE notes (id INTEGER NOT NULL, text VARCHAR, completed BOOLEAN,"
    " PRIMARY KEY (id))",
    "postgresql": "CREATE TABLE notes (id SERIAL NOT NULL, text VARCHAR, completed BOOLEAN,"
    " PRIMARY KEY (id))",
}
FOUND = ["'a', true", "'Ä', NULL", "'c', false", "NULL, NULL", "'e', NULL", "NULL, true"]
MENDED = [("a", True), ("Ä", False), ("c", False), ("", False), ("e", False)]


def test_the_example_s_database_is_taken_over(empty_database: str, tmp_path: Path) -> None:
    """A database of the FastAPI example gets rid of NULL, and works as any other."""
    kind = urlsplit(empty_database).scheme
    values = ", ".join(f"({values})" for values in FOUND)
    databases.execute(
        empty_database,
        EXAMPLE[kind],
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
        with pytest.raises((sqlite3.IntegrityError, asyncpg.NotNullViolationError)):
            databases.execute(empty_database, f"UPDATE notes SET {column} = NULL")
    notes = [{"id": n, "text": t, "completed": c} for n, (t, c) in enumerate(MENDED, 1)]
    with serving(empty_database, tmp_path / "log") as http:
        assert http.get("/notes/").json() == notes
        for completed in (False, True):
            listed = http.get("/notes/", params={"completed": completed}).json()
            assert listed == [note for note in notes if note["completed"] == completed]
        assert http.get("/notes/?q=%C3%A4").json() == [notes[1]]
        note = {"text": "new", "completed": False}
        first = http.post("/notes/", json=note).json()["id"]
        http.delete(f"/notes/{first}")
        # An id is not given twice.
        assert http.post("/notes/", json=note).json()["id"] == first + 1


# Texts of which lower() makes something else than Unicode's case folding does, and others.
TEXTS = ["Straße fegen", "ΣΊΣΥΦΟΣ rollt", "ﬁne", "ИГОЛКА", "İstanbul", "Plain"]


def test_notes_from_before_searches_are_found(empty_database: str, tmp_path: Path) -> None:
    """Notes that are older than searches are found in upper and lower case."""
    values = ", ".join(f"('{text}', true)" for text in (*["filler"] * 1100, *TEXTS))
    databases.execute(
        empty_database,
        EXAMPLE[urlsplit(empty_database).scheme],
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


def test_a_closed_port_is_told_in_a_line() -> None:
    """A server that is away ends the migration with one line."""
    assert_one_line(f"postgresql://bob:s3cr3t@127.0.0.1:{free_port()}/notes", "Connect call failed")


def test_an_unknown_host_is_told_in_a_line() -> None:
    """An unknown host ends the migration with one line."""
    assert_one_line("postgresql://bob:s3cr3t@nowhere.invalid/notes", "postgresql://bob:***@nowhere")


def test_a_missing_database_is_told_in_a_line(postgresql: str) -> None:
    """A database that is not there ends the migration with one line."""
    url = urlsplit(postgresql)._replace(path="/nowhere").geturl()
    assert_one_line(url, 'database "nowhere" does not exist')


def test_a_server_that_says_nothing_is_told_in_a_line() -> None:
    """A silent server ends the migration with one line, within the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://bob:s3cr3t@127.0.0.1:{server.getsockname()[1]}/notes"
        assert_one_line(url, "no answer within 0.2 s", DATABASE_CONNECT_TIMEOUT="0.2")


def test_a_file_that_is_no_database_is_told_in_a_line(tmp_path: Path) -> None:
    """A file that SQLite can't read, or may not write, ends the migration with one line."""
    file = tmp_path / "notes.db"
    file.write_text("This is no database, but a text of some length.\n" * 100)
    assert_one_line(f"sqlite:///{file}", "file is not a database")
    assert_one_line(f"sqlite:///{tmp_path}/nowhere/notes.db", "nowhere")
