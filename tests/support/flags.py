"""The flags that scripts/web and scripts/run give to uvicorn, as uvicorn reads them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from uvicorn.main import main

from tests.support.databases import ROOT, environment

# Prints its arguments; what runs before it does nothing.
UVICORN = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
NOTHING = "#!/bin/sh\n"


def web_command() -> str:
    """The script of the web process, as a text for `sh -c`."""
    return (ROOT / "scripts/web").read_text()


def arguments(command: str, folder: Path, **variables: str) -> list[str]:
    """The arguments that the command gives to uvicorn, which doesn't run."""
    programs = folder / ".venv/bin"
    for path, text in {
        programs / "uvicorn": UVICORN,
        programs / "python": NOTHING,
        programs / "alembic": NOTHING,
        folder / "scripts/install": NOTHING,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / "scripts/run", folder / "scripts")
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment(PATH=f"{programs}:/usr/bin:/bin", **variables),
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[str] = json.loads(result.stdout)
    return found


def flags(command: str, folder: Path, **variables: str) -> dict[str, Any]:
    """The parameters that the command gives to uvicorn, which doesn't run."""
    return main.make_context("uvicorn", arguments(command, folder, **variables)).params
