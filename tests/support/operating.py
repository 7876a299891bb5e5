"""The operator's commands, `python -m service …`."""

import subprocess
import sys

from tests.support.databases import run


def operate(
    database_url: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command on the database."""
    command = (sys.executable, "-m", "service", *arguments)
    return run(*command, DATABASE_URL=database_url, **variables)


def add_user(database_url: str, name: str) -> str:
    """Adds a user and gives the token."""
    result = operate(database_url, "users", "add", name)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
