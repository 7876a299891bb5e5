"""The operator's commands, `python -m service …`."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from tests.support.databases import execute, run
from tests.support.processes import executor


def operate(
    database_url: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command on the database."""
    command = (sys.executable, "-m", "service", *arguments)
    return run(*command, DATABASE_URL=database_url, **variables)


def add_user(database_url: str, name: str) -> str:
    """Stores a user as the command does, without a process for it. Gives the token."""
    # Imported here, as `_operate` needs a process that has imported nothing of the service.
    from service.users import queries

    token = queries.new_token()
    execute(
        database_url,
        "INSERT INTO users (username, is_active, created_at, token_sha256)"
        f" VALUES ('{name.lower()}', true, {int(time.time())}, '{queries.digest(token)}')",
    )
    return token


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
