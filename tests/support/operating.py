"""The operator's commands, `python -m service …`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from tests.support.databases import run
from tests.support.processes import executor


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


Operate = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def operating(database_url: str) -> Iterator[Operate]:
    """Runs many commands on the database in one process, as it takes long to start one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", database_url)
        with executor() as process:
            yield lambda *arguments: process.submit(_operate, arguments).result(300)


def _operate(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    # Imported here, in the process whose environment names the database.
    from service.__main__ import main

    result = CliRunner().invoke(main, arguments, prog_name="python -m service")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
