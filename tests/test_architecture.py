"""The walls of the house: which folder may import from which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import ROOT

SERVICE = ROOT / "service"
# Each resource has a folder.
RESOURCES = {file.parent.name for file in SERVICE.glob("*/resource.py")}
# Each imports from itself and from those below; of a floor none imports from another.
FLOORS = [
    {"live_commands"},
    {"app", "__main__"},
    {*RESOURCES, "users"},
    {"resources"},
    {"openapi", "health"},
    {"web"},
    {"live"},
    {"schemas", "database", "protocol"},
    {"telemetry"},
    {
        *("tables", "settings", "metrics", "log_lines", "shutdown", "descriptors", "hosts"),
        *("one_write", "revisions"),
    },
]
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    """The folder or the module of `service/` that a file belongs to."""
    return file.relative_to(SERVICE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """The rooms that a file imports from, wherever in the file it does so."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "service":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("service."):
                    yield alias.name.split(".")[1]


FILES = [file for file in SERVICE.rglob("*.py") if file != SERVICE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SERVICE)))
def test_imports_run_downwards(file: Path) -> None:
    """A file imports from its own folder and from lower floors alone."""
    room = room_of(file)
    for other in imports(file):
        assert other == room or HEIGHT[other] < HEIGHT[room], f"{room} imports {other}"


def test_migrations_know_the_database_alone() -> None:
    """What runs the migrations imports only tables, settings and the database of the service."""
    used = {room for file in (ROOT / "alembic").glob("*.py") for room in imports(file)}
    assert used == {"tables", "settings", "database"}


FROZEN = [ROOT / "alembic/migrating.py", *(ROOT / "alembic/versions").glob("*.py")]


@pytest.mark.parametrize("file", FROZEN, ids=lambda file: file.stem)
def test_old_migrations_stay_as_they_are(file: Path) -> None:
    """A migration and its steps import nothing of the service, which may change."""
    assert not list(imports(file))


@pytest.mark.parametrize(
    "file", sorted((SERVICE / "database").glob("*.py")), ids=lambda file: file.stem
)
def test_the_database_knows_no_resource(file: Path) -> None:
    """Nothing in the floor of the database is about notes."""
    assert not re.findall(r"\bnotes?(?:_\w+|\b)", file.read_text())
