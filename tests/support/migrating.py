"""Migrations that run beside a test."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import databases
from tests.support.databases import CONNECTED


@contextmanager
def migrating(url: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Runs Alembic's command beside the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "alembic", *(command or ("upgrade", "head"))],
        cwd=databases.ROOT,
        env=databases.environment(DATABASE_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def backends(url: str, condition: str) -> int:
    """How many of the database's other connections meet a condition on the server's list."""
    return int(databases.execute(url, f"{CONNECTED[databases.kind_of(url)]} AND {condition}"))


# Only who migrates holds an advisory lock, or one with a name.
MIGRATES = {
    "postgresql": "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
    "mysql": "id = is_used_lock(concat('7236274165-', md5(database())))",
}
WAITS = {
    "postgresql": f"{MIGRATES['postgresql']} AND wait_event_type = 'Lock'",
    "mysql": f"{MIGRATES['mysql']} AND state = 'Waiting for table metadata lock'",
}


def migrates(url: str) -> bool:
    """Whether a run of migrations has its turn."""
    return backends(url, MIGRATES[databases.kind_of(url)]) > 0


def waits(url: str) -> bool:
    """Whether a run of migrations waits for a lock."""
    return backends(url, WAITS[databases.kind_of(url)]) > 0
