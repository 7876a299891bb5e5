"""More work than there is room for: the surplus is refused at once, the rest is served."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import psutil

from tests.notes.test_listing import fill
from tests.support import databases
from tests.support.servers import free_port, process, running, uvicorn

NOTE = {"text": "a", "completed": True}
BODY = b'{"text":"a","completed":true}'
GET = b"GET /notes/?limit=100 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /notes/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; AssertionError if it never does."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to be")


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Keeps everybody else from the table of notes."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(database_url))
        try:
            runner.run(connection.execute("BEGIN; LOCK TABLE notes"))
            yield
        finally:
            runner.run(connection.close())


async def ask(host: str, port: int, requests: list[bytes]) -> list[tuple[int, bool]]:
    """Sends requests on a connection of their own: each answer's status, and whether it has
    Retry-After."""
    answers = []
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for request in requests:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            (length,) = (
                line for line in head.split(b"\r\n") if line.startswith(b"content-length:")
            )
            await reader.readexactly(int(length.split()[1]))
            answers.append((int(head.split()[1]), b"\r\nretry-after:" in head))
    finally:
        writer.close()
    return answers


def flood(url: str, clients: int, requests: int) -> Counter[tuple[int, bool]]:
    """Counts the answers that so many clients at once get to so many requests each."""
    host = urlsplit(url)
    assert host.hostname is not None
    assert host.port is not None
    address = host.hostname, host.port

    async def run() -> Counter[tuple[int, bool]]:
        work = [[(GET, POST)[(c + r) % 2] for r in range(requests)] for c in range(clients)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(ask(*address, each) for each in work))
        return Counter(answer for some in answers for answer in some)

    return asyncio.run(run())


def test_the_surplus_is_refused_and_the_rest_served(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """Requests beyond MAX_REQUESTS get a 503 while the others wait and are answered in the end."""
    database_url = new_database("postgresql")
    with (
        running(database_url, tmp_path / "log", MAX_REQUESTS="5") as url,
        ThreadPoolExecutor(12) as threads,
    ):
        with locked(database_url):
            posted = [
                threads.submit(httpx2.post, f"{url}/notes/", json=NOTE, timeout=30)
                for _ in range(12)
            ]
            wait_until(lambda: sum(one.done() for one in posted) >= 7)
            refused = [one.result() for one in posted if one.done()]
            for path in ("/notes/", "/docs", "/nowhere", "/metrics"):
                refused.append(httpx2.get(f"{url}{path}"))
            assert httpx2.get(f"{url}/health/live").status_code == 200
            assert sum(one.done() for one in posted) == 7
        for answer in refused:
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Too many requests are under way"}
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert len(answer.headers["x-request-id"]) >= 20
        statuses = Counter(one.result().status_code for one in posted)
        assert statuses == {200: 5, 503: 7}
        assert len(httpx2.get(f"{url}/notes/").json()) == 5


def test_many_clients_get_200_or_503(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Ten times as many clients as may be served get notes or a 503, and nothing else."""
    database_url = new_database("postgresql")
    fill(database_url, 100)
    with running(database_url, tmp_path / "log", MAX_REQUESTS="20") as url:
        answers = flood(url, clients=200, requests=10)
        assert set(answers) <= {(200, False), (503, True)}
        assert answers.total() == 2000
        assert answers[200, False] >= 100
        assert answers[503, True] > 0
        assert flood(url, clients=10, requests=10) == {(200, False): 100}


def test_floods_leave_no_memory_behind(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Memory stays as it is after the first floods, with requests refused and served."""
    database_url = new_database("postgresql")
    port = free_port()
    variables = {"DATABASE_URL": database_url, "MAX_REQUESTS": "20"}
    with process(uvicorn(port), port, tmp_path / "log", variables) as server:
        url = f"http://127.0.0.1:{port}"
        memory = psutil.Process(server.pid).memory_info
        for _ in range(2):
            flood(url, clients=200, requests=5)
        databases.execute(database_url, "TRUNCATE notes")
        before = memory().rss
        for _ in range(5):
            flood(url, clients=200, requests=5)
            databases.execute(database_url, "TRUNCATE notes")
        assert memory().rss - before < 30_000_000


def test_liveness_is_answered_in_a_flood(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """`/health/live` answers every time while other clients are refused."""
    database_url = new_database("postgresql")
    with (
        running(database_url, tmp_path / "log", MAX_REQUESTS="2") as url,
        ThreadPoolExecutor(1) as threads,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        flooding = threads.submit(flood, url, clients=100, requests=10)
        asked = 0
        while not flooding.done() or not asked:
            assert client.get("/health/live").status_code == 200
            asked += 1
        assert flooding.result()[503, True] > 0


def test_room_is_given_back(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Clients that give up or fail leave the room that they took to others."""
    database_url = new_database("postgresql")
    address = "127.0.0.1", free_port()
    variables = {"DATABASE_URL": database_url, "MAX_REQUESTS": "3", "REQUEST_TIMEOUT": "1"}
    unfinished = b"POST /notes/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"

    async def give_up() -> None:
        for _ in range(10):
            _, writer = await asyncio.open_connection(*address)
            writer.write(unfinished)
            await writer.drain()
            writer.close()

    with process(uvicorn(address[1]), address[1], tmp_path / "log", variables):
        url = f"http://{address[0]}:{address[1]}"
        asyncio.run(give_up())
        wait_until(lambda: httpx2.get(f"{url}/notes/").status_code == 200)
        with locked(database_url), ThreadPoolExecutor(3) as threads:
            late = threads.map(lambda _: httpx2.get(f"{url}/notes/", timeout=20), range(3))
            assert [answer.status_code for answer in late] == [503, 503, 503]
        assert flood(url, clients=3, requests=5) == {(200, False): 15}
