"""Histories of migrations that Alembic accepts."""

import shutil
import subprocess
import sys
from pathlib import Path

from service.revisions import HEAD
from tests.support.databases import ROOT, environment

REVISION = '''
"""A migration"""

from collections.abc import Sequence

revision: str = {name!r}
down_revision: str | Sequence[str] | None = {before!r}
branch_labels = None
depends_on = None


def upgrade() -> None: ...
'''
PRINT_HEAD = "import service.health; print(service.health.HEAD)"


def copy_with(folder: Path, **revisions: object) -> Path:
    """A copy of the project with more migrations, each with those that it follows."""
    for name in ("service", "alembic"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "alembic.ini", folder)
    for name, before in revisions.items():
        file = folder / "alembic" / "versions" / f"{name}.py"
        file.write_text(REVISION.format(name=name, before=before))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(DATABASE_URL=f"sqlite:///{folder}/notes.db"),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_branches_that_are_merged(tmp_path: Path) -> None:
    """The service needs the merge of two branches, which is Alembic's head."""
    folder = copy_with(tmp_path, left=HEAD, right=HEAD, merge=("left", "right"), last="merge")
    assert run(folder, "-m", "alembic", "heads").stdout == "last (head)\n"
    result = run(folder, "-c", PRINT_HEAD)
    assert (result.stdout, result.stderr) == ("last\n", "")


def test_several_heads(tmp_path: Path) -> None:
    """Branches that nobody merged end the start with a line that names them."""
    folder = copy_with(tmp_path, left=HEAD, right=HEAD)
    result = run(folder, "-c", PRINT_HEAD)
    assert result.returncode == 3
    assert result.stderr.startswith("Migrations: ")
    assert "left, right" in result.stderr
    assert result.stderr.count("\n") == 1
