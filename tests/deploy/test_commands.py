"""The operator's commands."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from service import __main__ as commands
from tests.database.test_starting import run_limited
from tests.support.databases import ROOT, NewDatabase, clear, execute, run, start
from tests.support.operating import Operate, operate, operating
from tests.support.servers import nowhere, started

TOKEN = re.compile(r"notes_[A-Za-z0-9_-]{43}\n")


def run_users(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command for users in a process of its own."""
    return operate(database_url, "users", *arguments)


@pytest.fixture(scope="module")
def shared_operate(shared_database_url: str) -> Iterator[Operate]:
    with operating(shared_database_url) as operate:
        yield operate


@pytest.fixture
def users(shared_operate: Operate, shared_database_url: str) -> Operate:
    """Runs commands for users on a database of each kind in turn, which has none."""
    clear(shared_database_url)
    return partial(shared_operate, "users")


def test_users_are_operated(users: Operate) -> None:
    """Users are added, listed, deactivated, activated, given other tokens and removed."""
    tokens = set()
    for name in ("bob", "Alice"):
        added = users("add", name)
        assert (added.returncode, added.stderr) == (0, "")
        assert TOKEN.fullmatch(added.stdout)
        tokens.add(added.stdout)

    assert users("deactivate", "BOB").returncode == 0
    listed = users("list")
    time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(f"alice\tactive\t{time}\nbob\tdeactivated\t{time}\n", listed.stdout)
    assert users("activate", "bob").returncode == 0
    assert "deactivated" not in users("list").stdout

    rotated = users("rotate", "bob")
    assert TOKEN.fullmatch(rotated.stdout)
    assert len(tokens | {rotated.stdout}) == 3
    assert not any(token.strip() in users("list").stdout for token in tokens)

    removed = users("remove", "BOB")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "")
    assert re.fullmatch(f"alice\tactive\t{time}\n", users("list").stdout)
    assert users("remove", "bob").stderr == "Error: There is no user bob.\n"
    assert TOKEN.fullmatch(users("add", "bob").stdout)


def test_nothing_to_do(users: Operate) -> None:
    """A name that is taken or unknown is an error of one line and changes nothing."""
    users("add", "bob")
    before = users("list").stdout
    again = users("add", "BOB")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "Error: There is a user bob already.\n"
    for command in ("deactivate", "activate", "rotate", "adopt", "remove"):
        unknown = users(command, "carol")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert unknown.stderr == "Error: There is no user carol.\n"
    assert users("list").stdout == before


@pytest.mark.parametrize("name", ["", "a b", "é", "\u212aelvin", "a" * 65, "bob\n", "a/b"])
def test_no_username(users: Operate, name: str) -> None:
    """A name that can't be a username is an error of usage, which tells the rules."""
    result = users("add", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert "1 to 64 of a-z, 0-9, dot, underscore and hyphen" in result.stderr


def test_help_suffices() -> None:
    """`--help` names and describes every command."""
    text = (
        operate("sqlite:///notes.db", "--help").stdout
        + run_users("sqlite:///x.db", "--help").stdout
        + operate("sqlite:///x.db", "tokens", "--help").stdout
    )
    names = "health users add list deactivate activate rotate adopt remove tokens revoke"
    for command in names.split():
        assert re.search(rf"^  {command} +[A-Z]", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "error"), [("postgresql", "UndefinedTableError"), ("mysql", "NotMigrated")]
)
@pytest.mark.parametrize("arguments", [["list"], ["add", "bob"]])
def test_a_database_in_trouble(
    new_database: NewDatabase, arguments: list[str], kind: str, error: str
) -> None:
    """A database that is away or not migrated is one line that says so."""
    away = run_users(nowhere(kind), *arguments)
    assert away.returncode == 1
    assert re.fullmatch(r"Error: The database is unavailable: \w+\n", away.stderr)
    empty = new_database(kind)
    execute(empty, "DROP TABLE tokens", "DROP TABLE users")
    missing = run_users(empty, *arguments)
    assert missing.returncode == 1
    assert missing.stderr == f"Error: The database is not migrated: {error}\n"


@pytest.mark.parametrize("arguments", [["list"], ["add", "bob"]])
def test_a_missing_column(users: Operate, shared_database_url: str, arguments: list[str]) -> None:
    """A database that lacks a column is one line that says that it is not migrated."""
    rename = "ALTER TABLE users RENAME COLUMN {} TO {}"
    execute(shared_database_url, rename.format("created_at", "other"))
    try:
        missing = users(*arguments)
    finally:
        execute(shared_database_url, rename.format("other", "created_at"))
    assert missing.returncode == 1
    assert re.fullmatch(r"Error: The database is not migrated: \w+\n", missing.stderr)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A missing file is not made, and a file that is no database is left as it is."""
    file = tmp_path / "notes.db"
    for content in (None, b"no database" * 100):
        if content:
            file.write_bytes(content)
        for arguments in (["list"], ["add", "bob"]):
            result = run_users(f"sqlite:///{file}", *arguments)
            assert (result.returncode, result.stdout) == (1, "")
            said = "The database can't be used: .+" if content else f"There is no file {file}."
            assert re.fullmatch(f"Error: {said}\n", result.stderr)
        assert (file.read_bytes() if file.exists() else None) == content


@pytest.mark.parametrize("command", ["add", "rotate"])
def test_a_token_that_cannot_be_printed(
    new_database: NewDatabase, tmp_path: Path, command: str
) -> None:
    """If the new token can't be printed, the command says so and gives advice."""
    database_url = new_database("sqlite")
    if command == "rotate":
        run_users(database_url, "add", "bob")
    errors = tmp_path / "errors"
    with Path("/dev/full").open("w") as full, errors.open("w") as stderr:
        line = [sys.executable, "-m", "service", "users", command, "bob"]
        status = start(line, full, stderr, DATABASE_URL=database_url).wait(300)
    assert status == 1
    assert errors.read_text().startswith("Error: bob has a new token, which could not be printed")
    assert run_users(database_url, "rotate", "bob").returncode == 0


@pytest.mark.parametrize("is_migrated", [True, False])
def test_health(
    new_database: NewDatabase, new_empty_database: NewDatabase, tmp_path: Path, is_migrated: bool
) -> None:
    """`health` ends with 0 if the service on PORT is ready, and with 1 and the reason if not."""
    url = (new_database if is_migrated else new_empty_database)("sqlite")
    with started(url, tmp_path / "log") as (address, _):
        port = address.rpartition(":")[2]
        ready = run(sys.executable, "-m", "service", "health", PORT=port)
        live = run(sys.executable, "-m", "service", "health", "--live", "--port", port)
    assert (live.returncode, live.stdout, live.stderr) == (0, "live\n", "")
    if is_migrated:
        assert (ready.returncode, ready.stdout, ready.stderr) == (0, "ready\n", "")
    else:
        assert (ready.returncode, ready.stdout) == (1, "")
        assert re.fullmatch("Error: The database is not migrated.*\n", ready.stderr)


def test_health_of_nothing() -> None:
    """`health` ends with 1 and one line if nothing is there, or something else."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        closing = threading.Thread(target=lambda: other.accept()[0].close())
        closing.start()
        asked = [run(sys.executable, "-m", "service", "health", PORT=port)]
        closing.join()
    asked.append(run(sys.executable, "-m", "service", "health", PORT=port))
    for result in asked:
        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch(f"Error: Nothing on port {port} answers: .+\n", result.stderr)


def test_health_of_a_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`health` doesn't wait without end for an answer."""
    monkeypatch.setattr(commands, "TIMEOUT", 0.1)
    over = threading.Event()

    def hang() -> None:
        with server.accept()[0]:
            over.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as server:
        hanging = threading.Thread(target=hang)
        hanging.start()
        port = str(server.getsockname()[1])
        result = CliRunner().invoke(commands.main, ["health", "--port", port])
        over.set()
        hanging.join()
    assert result.exit_code == 1
    assert result.stderr == f"Error: Nothing on port {port} answers: timed out\n"


def test_health_needs_no_database_driver() -> None:
    """The check is asked often, so it imports nothing that is slow to import."""
    slow = "{'sqlalchemy', 'service.settings', 'service.users'} & set(sys.modules)"
    code = f"import sys, service.__main__; sys.exit(bool({slow}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_commands_need_no_web_framework() -> None:
    """The commands and the queries for users are imported without Starlette."""
    loaded = "bool({'starlette', 'uvicorn'} & set(sys.modules))"
    code = f"import sys, service.__main__, service.users.commands;sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_command_that_can_not_open_its_file(new_database: NewDatabase) -> None:
    """A command ends with one line if any of its connections can't be opened."""
    sufficed, refused = run_limited(
        new_database("sqlite"),
        imports="import service.__main__, service.users.commands, service.database.commands",
        module="service.database.commands",
        code='service.__main__.main(["users", "list"], prog_name="python -m service")',
        refused=1,
    )
    for output in refused:
        assert output == "Error: The database can't be used: unable to open database file\n"
    assert sufficed >= 4
