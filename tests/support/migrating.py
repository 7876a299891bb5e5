"""Migrations that run beside a test."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import databases


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
    """How many of the migration's connections meet a condition on `pg_stat_activity`."""
    return int(
        databases.execute(
            url,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            f" AND pid != pg_backend_pid() AND {condition}",
        )
    )


# Only who migrates holds an advisory lock.
MIGRATES = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
WAITS = f"{MIGRATES} AND wait_event_type = 'Lock'"
