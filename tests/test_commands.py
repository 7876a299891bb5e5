"""The commands of whoever operates the service."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import ROOT, NewDatabase, execute
from tests.operating import operate
from tests.servers import free_port

TOKEN = re.compile(r"notes_[A-Za-z0-9_-]{43}\n")


def users(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return operate(database_url, "users", *arguments)


def test_users_are_operated(database_url: str) -> None:
    """Users are added, listed, deactivated, activated and given other tokens."""
    tokens = set()
    for name in ("bob", "Alice"):
        added = users(database_url, "add", name)
        assert (added.returncode, added.stderr) == (0, "")
        assert TOKEN.fullmatch(added.stdout)
        tokens.add(added.stdout)

    assert users(database_url, "deactivate", "BOB").returncode == 0
    listed = users(database_url, "list")
    time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(f"alice\tactive\t{time}\nbob\tdeactivated\t{time}\n", listed.stdout)
    assert users(database_url, "activate", "bob").returncode == 0
    assert "deactivated" not in users(database_url, "list").stdout

    rotated = users(database_url, "rotate", "bob")
    assert TOKEN.fullmatch(rotated.stdout)
    assert len(tokens | {rotated.stdout}) == 3
    assert not any(token.strip() in users(database_url, "list").stdout for token in tokens)


def test_nothing_to_do(database_url: str) -> None:
    """A name that is taken or unknown is an error of one line, and changes nothing."""
    users(database_url, "add", "bob")
    before = users(database_url, "list").stdout
    again = users(database_url, "add", "BOB")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "Error: There is a user bob already.\n"
    for command in ("deactivate", "activate", "rotate"):
        unknown = users(database_url, command, "carol")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert unknown.stderr == "Error: There is no user carol.\n"
    assert users(database_url, "list").stdout == before


@pytest.mark.parametrize("name", ["", "a b", "é", "\u212aelvin", "a" * 65, "bob\n", "a/b"])
def test_no_username(new_database: NewDatabase, name: str) -> None:
    """What can't be a username is an error of usage that says what can."""
    result = users(new_database("sqlite"), "add", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert "1 to 64 of a-z, 0-9, dot, underscore and hyphen" in result.stderr


def test_help_suffices() -> None:
    """`--help` names every command and says what it does."""
    text = operate("sqlite:///notes.db", "--help").stdout + users("sqlite:///x.db", "--help").stdout
    for command in ("users", "add", "list", "deactivate", "activate", "rotate"):
        assert re.search(rf"^  {command} +[A-Z]", text, re.MULTILINE)


@pytest.mark.parametrize("command", ["list", "add"])
def test_a_database_in_trouble(new_database: NewDatabase, command: str) -> None:
    """A database that is away or not migrated is one line that says so."""
    arguments = [command, "bob"][: 1 + (command == "add")]
    away = users(f"postgresql://nobody@127.0.0.1:{free_port()}/notes", *arguments)
    assert away.returncode == 1
    assert re.fullmatch(r"Error: The database is unavailable: \w+\n", away.stderr)
    empty = new_database("postgresql")
    execute(empty, "DROP TABLE users")
    missing = users(empty, *arguments)
    assert missing.returncode == 1
    assert missing.stderr == "Error: The database is not migrated: UndefinedTableError\n"


@pytest.mark.parametrize("content", [None, b"no database" * 100])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes | None) -> None:
    """A file that can't be opened, or holds something else, is one line that says so."""
    file = tmp_path / "notes.db"
    if content is None:
        file.symlink_to("/proc/nothing.db")
    else:
        file.write_bytes(content)
    for arguments in (["list"], ["add", "bob"]):
        result = users(f"sqlite:///{file}", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch("Error: The database can't be used: .+\n", result.stderr)


def test_commands_need_no_web_framework() -> None:
    """The commands, and what can be done with users, are imported without Starlette."""
    code = (
        "import sys, service.__main__;sys.exit(bool({'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
