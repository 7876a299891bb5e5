"""What docs/base.md says of this project as the base of another, in copies of it."""

import subprocess
import sys
from pathlib import Path

from tests.deploy.test_adding import alembic
from tests.deploy.test_scripts import copy_repository
from tests.support.databases import run_in

# Tests of a part of everything, which take seconds.
QUICK = ("tests/resources", "tests/test_architecture.py", "tests/web/test_semantics.py")


def clone(folder: Path) -> Path:
    """A copy of the project, in a repository of its own."""
    copy = copy_repository(folder / "copy")
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    subprocess.run(["git", "add", "."], cwd=copy, check=True)
    return copy


def check(copy: Path, *tests: str) -> None:
    """The copy migrates a new database, which then is as its tables say, and its tests pass."""
    url = f"sqlite:///{copy}/new.db"
    alembic(copy, url, "upgrade", "head")
    alembic(copy, url, "check")
    options = ("-n", "0", "-q", "-k", "not postgresql and not mysql")
    result = run_in(copy, sys.executable, "-m", "pytest", *options, *tests)
    assert result.returncode == 0, result.stdout + result.stderr


def test_notes_are_renamed(tmp_path: Path) -> None:
    """After scripts/rename no file and no name of one has the word, and the tests pass."""
    copy = clone(tmp_path)
    other = f"foot{'note'}"
    (copy / "other.txt").write_text(f"A note, a {other}")
    subprocess.run([copy / "scripts/rename", "errand", "errands"], check=True)
    assert (copy / "other.txt").read_text() == f"An errand, a {other}"
    (copy / "other.txt").unlink()
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix != ".png" and ".git" not in path.parts:
            assert "note" not in f"{path.relative_to(copy)} {path.read_text()}".lower()
    check(copy, *QUICK, "tests/errands/test_errands.py")
