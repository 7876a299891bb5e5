"""Connections to a server that are not needed any more."""

from pathlib import Path

import httpx2

from tests.support.databases import connected
from tests.support.servers import running
from tests.support.waiting import poll

# What is no matter of idle connections has to last for some seconds all the same.
LONG = {"REQUEST_TIMEOUT": "3600", "DATABASE_STATEMENT_TIMEOUT": "1000"}


def test_idle_connections_are_closed(served_database_url: str, tmp_path: Path) -> None:
    """Some minutes after a request no connection is left, and the next request opens one."""
    url = served_database_url
    loop = ("--loop=tests.support.hasty:HastyLoop", "--timeout-keep-alive=3600")
    with running(url, tmp_path / "log", *loop, **LONG) as address:
        for _ in range(2):
            assert httpx2.get(f"{address}/notes/").status_code == 200
            poll(lambda: connected(url) == 0)
    assert "Traceback" not in (tmp_path / "log").read_text()
