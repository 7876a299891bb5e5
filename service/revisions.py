"""The migration that the service needs, read from the files of Alembic."""

import ast
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def _newest_revision() -> str:
    """The migration that no other one follows. Ends the process with a line if there are several.

    The files are read without Alembic, whose import would make the start longer by a third.
    """
    names: set[str] = set()
    followed: set[str] = set()
    for file in (Path(__file__).parent.parent / "alembic" / "versions").glob("*.py"):
        values = _constants(file)
        if "revision" in values:
            names.add(values["revision"])
            # A merge follows several.
            before = values.get("down_revision") or ()
            followed.update([before] if isinstance(before, str) else before)
    newest = sorted(names - followed)
    if len(newest) != 1:
        found = ", ".join(newest) or "none"
        sys.stderr.write(
            f"Migrations: one has to be the newest, but these are: {found}."
            " `alembic merge heads` makes one that follows several\n"
        )
        # uvicorn's status for a failed start. It restarts workers with any other status.
        raise SystemExit(3)
    return newest[0]


def _constants(file: Path) -> dict[str, Any]:
    """The values that a Python file gives to its names, where they are literals."""
    values: dict[str, Any] = {}
    for node in ast.parse(file.read_bytes()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                with suppress(ValueError, TypeError):
                    values[target.id] = ast.literal_eval(node.value or ast.Constant(None))
    return values


HEAD = _newest_revision()
