"""One migration history serves SQLite and PostgreSQL."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests import databases
from tests.conftest import KINDS


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
    """`--sql` prints the migrations for those who may not run them."""
    result = databases.alembic(database_url, "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    assert "CREATE TABLE notes" in result.stdout


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
