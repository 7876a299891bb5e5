"""More work than there is room for: surplus is refused at once, the rest is served."""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tests.support import databases
from tests.support.databases import fill, locked
from tests.support.servers import running, serving
from tests.support.sockets import connect, head, json_request
from tests.support.waiting import poll
from tests.support.watched import watching

NOTE = {"text": "a", "completed": True}
GET = head("GET", "/notes/?limit=100")
POST = json_request("POST", "/notes/", json.dumps(NOTE).encode())


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
    served_database_url: str, tmp_path: Path
) -> None:
    """Requests beyond MAX_REQUESTS get a 503 while the others wait and are answered in the end."""
    with (
        running(served_database_url, tmp_path / "log", MAX_REQUESTS="5") as url,
        ThreadPoolExecutor(12) as threads,
    ):
        with locked(served_database_url):
            posted = [
                threads.submit(httpx2.post, f"{url}/notes/", json=NOTE, timeout=30)
                for _ in range(12)
            ]
            poll(lambda: sum(one.done() for one in posted) >= 7)
            refused = [one.result() for one in posted if one.done()]
            for path in ("/notes/", "/docs", "/nowhere", "/metrics"):
                refused.append(httpx2.get(f"{url}{path}"))
            assert httpx2.get(f"{url}/health/live").status_code == 200
            assert sum(one.done() for one in posted) == 7
        for answer in refused:
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Too many requests are under way"}
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert len(answer.headers["x-request-id"]) >= 20
        statuses = Counter(one.result().status_code for one in posted)
        assert statuses == {200: 5, 503: 7}
        assert len(httpx2.get(f"{url}/notes/").json()) == 5


def test_many_clients_get_200_or_503(served_database_url: str, tmp_path: Path) -> None:
    """Ten times as many clients as may be served get notes or a 503, and nothing else."""
    fill(served_database_url, 100)
    with running(served_database_url, tmp_path / "log", MAX_REQUESTS="20") as url:
        answers = flood(url, clients=200, requests=10)
        assert set(answers) <= {(200, False), (503, True)}
        assert answers.total() == 2000
        # As many as may be served at once are, however busy the machine is.
        assert answers[200, False] >= 20
        assert answers[503, True] > 0
        assert flood(url, clients=10, requests=10) == {(200, False): 100}


def test_floods_leave_no_memory_behind(served_database_url: str, tmp_path: Path) -> None:
    """Memory stays as it is after the first floods, with requests refused and served."""
    with watching(served_database_url, tmp_path / "log", MAX_REQUESTS="20") as service:
        for _ in range(2):
            flood(service.url, clients=200, requests=5)
        databases.execute(served_database_url, "TRUNCATE notes")
        before = service.memory()
        for _ in range(5):
            flood(service.url, clients=200, requests=5)
            databases.execute(served_database_url, "TRUNCATE notes")
        assert service.memory() - before < 30_000_000


def test_liveness_is_answered_in_a_flood(served_database_url: str, tmp_path: Path) -> None:
    """`/health/live` answers every time while other clients are refused."""
    with (
        serving(served_database_url, tmp_path / "log", MAX_REQUESTS="2") as client,
        ThreadPoolExecutor(1) as threads,
    ):
        flooding = threads.submit(flood, str(client.base_url), clients=100, requests=10)
        asked = 0
        while not flooding.done() or not asked:
            assert client.get("/health/live").status_code == 200
            asked += 1
        assert flooding.result()[503, True] > 0


def test_room_is_given_back(served_database_url: str, tmp_path: Path) -> None:
    """Clients that give up or fail leave the room that they took to others."""
    variables = {"MAX_REQUESTS": "3", "REQUEST_TIMEOUT": "1"}
    with running(served_database_url, tmp_path / "log", **variables) as url:
        for _ in range(10):
            with connect(url) as client:
                client.sendall(head("POST", "/notes/", "Content-Length: 9") + b"{")
        poll(lambda: httpx2.get(f"{url}/notes/").status_code == 200)
        with locked(served_database_url), ThreadPoolExecutor(3) as threads:
            late = threads.map(lambda _: httpx2.get(f"{url}/notes/"), range(3))
            assert [answer.status_code for answer in late] == [503, 503, 503]
        # On a busy machine some may take longer than they may here.
        poll(lambda: flood(url, clients=3, requests=5) == {(200, False): 15})
