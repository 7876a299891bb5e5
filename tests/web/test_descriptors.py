"""File descriptors: idle clients take none that others need."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.support.databases import NewDatabase
from tests.support.servers import free_port, process, uvicorn
from tests.support.sockets import connect, head, is_closed, read_answer
from tests.support.template import Process

GET = head("GET", "/health/live")
NOTE = {"text": "a", "completed": True}


# Does what `python -m uvicorn` does, under limits for its files.
LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
"""


@contextmanager
def limited(database_url: str, log: Path, soft: int, hard: int) -> Iterator[tuple[str, Process]]:
    """The service under a soft and a hard limit for its files."""
    port = free_port()
    python, _, _, *options = uvicorn(port, "--timeout-keep-alive=600")
    command = [python, "-c", LIMITED.format(soft=soft, hard=hard), *options]
    variables = {"DATABASE_URL": database_url, "REQUEST_TIMEOUT": "300"}
    with process(command, port, log, variables) as server:
        yield f"http://127.0.0.1:{port}", server


def test_the_soft_limit_is_raised(new_database: NewDatabase, tmp_path: Path) -> None:
    """A process may open as many files as the system lets it."""
    with limited(new_database("sqlite"), tmp_path / "log", 300, 4000) as (_, server):
        assert psutil.Process(server.pid).rlimit(psutil.RLIMIT_NOFILE) == (4000, 4000)


@pytest.mark.parametrize("sent", [b"", b"GET /", GET], ids=["nothing", "half a head", "a request"])
def test_idle_clients_make_room(new_database: NewDatabase, tmp_path: Path, sent: bytes) -> None:
    """With more idle clients than files, a bystander is served as before, and the log says it once.

    The idle clients that came last are still connected.
    """
    log = tmp_path / "log"
    with limited(new_database("sqlite"), log, 256, 256) as (url, _), ExitStack() as stack:

        def statuses() -> list[int]:
            answers = [httpx2.post(f"{url}/notes/", json=NOTE, timeout=30) for _ in range(20)]
            return [answer.status_code for answer in answers]

        before = statuses()
        clients = []
        for _ in range(400):
            clients.append(stack.enter_context(connect(url)))
            clients[-1].sendall(sent)
            if sent == GET:
                assert read_answer(clients[-1])[0].status == 200
        assert statuses() == before == [200] * 20
        assert all(is_closed(client) for client in clients[:100])
        last = clients[-1]
        last.sendall(GET.removeprefix(sent) or GET)
        assert read_answer(last)[0].status == 200
    assert log.read_text().count("The oldest idle connections are closed") == 1


def test_waiting_bodies_make_room(new_database: NewDatabase, tmp_path: Path) -> None:
    """Heads without bodies take at most half of the connections."""
    log = tmp_path / "log"
    with limited(new_database("sqlite"), log, 256, 256) as (url, _), ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(connect(url))
            client.sendall(head("POST", "/notes/", "Content-Length: 9"))
        for _ in range(20):
            assert httpx2.post(f"{url}/notes/", json=NOTE, timeout=30).status_code == 200
