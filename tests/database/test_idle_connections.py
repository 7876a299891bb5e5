"""Connections to a server that are not needed any more."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from service.database.dialect import dialect
from tests.support.databases import connected
from tests.support.processes import new_process
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


async def use_and_close() -> None:
    connections = dialect.connections()
    await connections.open()
    await connections.use("read", lambda _: asyncio.sleep(0))
    # It is over in milliseconds, or waits until it is cancelled.
    async with asyncio.timeout(20):
        await connections.close()


def test_the_end_waits_for_no_idle_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end idle connections are closed, and nobody waits for them."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with new_process() as run:
        run(use_and_close)
