"""What docs/base.md says of this project as the base of another, in copies of it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_scripts import copy_repository
from tests.support.databases import ROOT, environment, run_in

# Tests of a part of everything, which take seconds.
QUICK = (
    "tests/database/test_compiling.py",
    "tests/resources/test_usual.py",
    "tests/test_architecture.py",
    "tests/web/test_semantics.py",
)
# It replaces lines of the code, which the linter may have changed.
ADDING = "tests/deploy/test_adding.py::test_projects_are_unique_sorted_and_referred_to"
# As scripts/lint does.
LINT = (
    "ruff check --fix --exit-zero --quiet .",
    "ruff format --quiet .",
    "ruff check --quiet .",
)
# The code for a database is imported only where that is used. One process does all.
MIGRATE = """
import pkgutil, importlib, alembic.config, service.database as folder
for module in pkgutil.iter_modules(folder.__path__):
    importlib.import_module(f"service.database.{module.name}")
for command in ("upgrade head", "check"):
    alembic.config.main(command.split())
"""
# It fails where there is nothing to commit.
COMMIT = "git add . && git -c user.name=a -c user.email=a@b commit -qm ."


def shell(copy: Path, *commands: str) -> None:
    """Runs commands in the copy, until one fails."""
    result = subprocess.run(
        ["sh", "-ec", "\n".join(commands)],
        cwd=copy,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def python(copy: Path, *arguments: str) -> None:
    """Runs Python in the copy, with a database there."""
    url = f"sqlite:///{copy}/old.db"
    result = run_in(copy, sys.executable, *arguments, DATABASE_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr


def carry_out(copy: Path, command: str) -> None:
    """Runs a command of the page, which changes something."""
    program, *arguments = shlex.split(command)
    if program == ".venv/bin/alembic":
        python(copy, "-m", "alembic", *arguments)
    else:
        shell(copy, command)
    shell(copy, COMMIT)


def clone(folder: Path) -> Path:
    """A copy of the project, in a repository of its own."""
    copy = copy_repository(folder / "copy")
    shell(copy, "git init -q", COMMIT)
    return copy


def check(copy: Path, *tests: str, chosen: str = "") -> None:
    """The copy migrates a new database, which then is as its tables say, and its tests pass."""
    (copy / "old.db").unlink(missing_ok=True)
    python(copy, "-c", MIGRATE)
    # Tests are read twice as fast if pytest doesn't rewrite their assertions.
    options = ("-n", "0", "-q", "--assert=plain")
    names = " and ".join(filter(None, [chosen, "not postgresql", "not mysql"]))
    result = run_in(copy, sys.executable, "-m", "pytest", *options, "-k", names, *tests)
    assert result.returncode == 0, result.stdout + result.stderr


def commands(heading: str) -> list[str]:
    """The commands under a heading of the page."""
    page = (ROOT / "docs/base.md").read_text()
    found = re.search(rf"^##+ {heading}\n.*?^```sh\n(.*?)^```", page, re.M | re.S)
    assert found is not None
    return found[1].splitlines()


RENAME, *AFTERWARDS = commands("Rename it")
ONE, MANY = RENAME.removeprefix("scripts/rename ").split()


@pytest.mark.skipif(ONE == "note", reason="it is done already, by the words of the page")
def test_notes_are_renamed(tmp_path: Path) -> None:
    """After the page's commands no file and no name of one has the word, and the tests pass."""
    copy = clone(tmp_path)
    other = f"foot{'note'}"
    (copy / "other.txt").write_text(f"A note, a {other}")
    shell(copy, RENAME)
    assert (copy / "other.txt").read_text() == f"An {ONE}, a {other}"
    (copy / "other.txt").unlink()
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix != ".png" and ".git" not in path.parts:
            assert "note" not in f"{path.relative_to(copy)} {path.read_text()}".lower()
    for command in AFTERWARDS:
        match command:
            case "scripts/lint":
                shell(copy, *LINT)
            case "scripts/test":
                follows = "tests/live/test_following.py::test_changes_are_told"
                check(copy, *QUICK, f"tests/{MANY}/test_{MANY}.py", follows, ADDING)
            case _:
                shell(copy, command)


PARTS = ("Users", "MySQL and MariaDB", "The benchmark and the example")


def test_parts_are_removed(tmp_path: Path) -> None:
    """Each of the page's commands changes something; then the service migrates, and tests pass."""
    copy = clone(tmp_path)
    python(copy, "-c", MIGRATE)
    for part in PARTS:
        for command in commands(part):
            carry_out(copy, command)
        shell(copy, *LINT)
        python(copy, "-c", MIGRATE)
        shell(copy, f"{COMMIT} || :")
    python(copy, "-m", "service", "live", "on")
    (migration,) = copy.glob("alembic/versions/*_no_users.py")
    # Other databases than this one refuse to drop a table to which another refers.
    assert re.findall(r'drop_table\("(\w+)"\)', migration.read_text()) == ["tokens", "users"]
    chosen = [
        *(Path(path).name for path in (*QUICK, "tests/web/test_log_lines.py")),
        *(f"test_every_setting_is_in_the_{place}" for place in ("example", "table")),
        "test_recording.py and test_mysql_records_no_changes",
    ]
    # All tests are collected.
    check(copy, chosen=f"({' or '.join(chosen)})")
