"""Lost connections to a server: reads are tried once more, writes never."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.clusters import connections, is_stopped
from tests.support.databases import (
    SERVED,
    WAITING,
    NewDatabase,
    Run,
    clear,
    fetch,
    fill,
    kind_of,
    locked,
)
from tests.support.proxies import Link, Proxy
from tests.support.servers import free_port, serving, started
from tests.support.waiting import poll


class Service(NamedTuple):
    """A service with one connection to its database, through a proxy."""

    client: httpx2.Client
    proxy: Proxy
    database_url: str

    def texts(self) -> list[str]:
        """The texts of the notes that are stored."""
        return sorted(text for (text,) in fetch(self.database_url, "SELECT text FROM notes"))


@pytest.fixture(scope="module", params=SERVED)
def shared(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    url = new_database(request.param)
    log = tmp_path_factory.mktemp("service") / "log"
    with (
        closing(Proxy(url)) as proxy,
        serving(proxy.url, log, DATABASE_POOL_MAX="1") as client,
    ):
        yield Service(client, proxy, url)


@pytest.fixture
def service(shared: Service) -> Service:
    """The service, with two notes."""
    clear(shared.database_url)
    fill(shared.database_url, 2, "old")
    return shared


Write = Callable[[httpx2.Client, int, str], httpx2.Response]


def create(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    return client.post("/notes/", json={"text": text, "completed": True})


def create_once(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    headers = {"idempotency-key": f"{text}-{note_id}"}
    return client.post("/notes/", json={"text": text, "completed": True}, headers=headers)


def create_batch(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    return client.post("/notes/batch", json=[{"text": text, "completed": True}] * 2)


def create_batch_once(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    headers = {"idempotency-key": f"batch-{text}-{note_id}"}
    batch = [{"text": text, "completed": True}] * 2
    return client.post("/notes/batch", json=batch, headers=headers)


def replace(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    return client.put(f"/notes/{note_id}", json={"text": text, "completed": True})


def change(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    return client.patch(f"/notes/{note_id}", json={"text": text})


def change_if_there(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    headers = {"if-match": "*"}
    return client.patch(f"/notes/{note_id}", json={"text": text}, headers=headers)


def delete(client: httpx2.Client, note_id: int, text: str) -> httpx2.Response:
    return client.delete(f"/notes/{note_id}")


@pytest.mark.parametrize(
    ("write", "marker", "texts"),
    [
        (create, b"new", ["new", "old", "old", "other"]),
        (create_batch, b"new", ["new", "new", "old", "old", "other", "other"]),
        (create_once, b"COMMIT", ["new", "old", "old", "other"]),
        (create_batch_once, b"COMMIT", ["new", "new", "old", "old", "other", "other"]),
        (replace, b"new", ["new", "other"]),
        (change, b"new", ["new", "other"]),
        (change_if_there, b"new", ["new", "other"]),
        (delete, b"", []),
    ],
)
def test_a_write_is_never_tried_again(
    service: Service, write: Write, marker: bytes, texts: list[str]
) -> None:
    """A write whose answer was lost is a 503, and is carried out once."""
    client, proxy, url = service
    if write in (replace, change, change_if_there) and kind_of(url) == "mysql":
        # There a change and the read of the changed note are a transaction.
        marker = b"COMMIT"
    # From here on the statement is prepared, so that the next one is carried out by one message.
    assert write(client, 2, "other").status_code in (200, 204)
    proxy.lose_answers(1, marker)
    answer = write(client, 1, "new")
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert service.texts() == texts


@pytest.mark.parametrize("write", [create_once, create_batch_once])
@pytest.mark.parametrize(("marker", "stored"), [(b"BEGIN", False), (b"COMMIT", True)])
def test_a_retry_with_the_same_key_after_a_lost_answer(
    service: Service, write: Write, marker: bytes, stored: bool
) -> None:
    """A retry with the same key stores nothing twice, at any lost answer of PostgreSQL."""
    client, proxy, _ = service
    assert write(client, 2, "other").status_code == 200
    before = service.texts()
    proxy.lose_answers(1, marker)
    assert write(client, 1, "new").status_code == 503
    assert ("new" in service.texts()) == stored
    answers = [write(client, 1, "new") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert len(service.texts()) == len(before) + (1 if write is create_once else 2)


READS = (
    "/notes/",
    "/notes/?limit=1",
    "/notes/?q=OL&completed=true&order=desc",
    "/notes/1",
    "/health/ready",
)


@pytest.mark.parametrize("path", READS)
def test_a_read_is_tried_once_more(service: Service, path: str) -> None:
    """A read is answered after one lost connection. After two it is a 503."""
    client, proxy, _ = service
    before = client.get(path)
    assert before.status_code == 200
    proxy.lose_answers(1)
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, before.content)
    proxy.lose_answers(2)
    assert client.get(path).status_code == 503
    assert client.get(path).content == before.content


def end_waiting(run: Run, kind: str) -> None:
    """Ends the one connection that waits for a lock."""
    poll(lambda: run(WAITING[kind]) == 1)
    if kind == "postgresql":
        assert run(WAITING[kind].replace("count(*)", "pg_terminate_backend(pid)"))
    else:
        run(f"KILL {run(WAITING[kind].replace('count(*)', 'id'))}")


def test_a_server_that_ends_a_connection(service: Service) -> None:
    """When a waiting connection is terminated, its read is answered. A write is a 503."""
    client, _, url = service
    kind = kind_of(url)
    for ask, status in (
        (lambda: client.get("/notes/"), 200),
        (lambda: create(client, 1, "new"), 503),
        (lambda: change(client, 1, "new"), 503),
        (lambda: create_once(client, 1, "new"), 503),
    ):
        with ThreadPoolExecutor() as threads, connections(url) as (run,):
            with locked(url):
                asking = threads.submit(ask)
                end_waiting(run, kind)
                # A read waits again, on another connection.
                poll(lambda: asking.done() or run(WAITING[kind]) == 1)  # noqa: B023
            assert asking.result().status_code == status
        assert service.texts() == ["old", "old"]


def test_a_connection_that_was_lost_in_silence(service: Service) -> None:
    """A connection that dies silently fails a write, and no read."""
    client, proxy, _ = service
    for write in (create, create_once, replace):
        assert client.get("/notes/").status_code == 200
        proxy.forget()
        assert write(client, 1, "new").status_code == 503
        assert service.texts() == ["old", "old"]
        assert client.get("/notes/").status_code == 200
        proxy.forget()
        assert len(client.get("/notes/").json()) == 2


@pytest.mark.parametrize("kind", SERVED)
def test_connections_that_are_reset_while_they_open(
    kind: str, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Whichever answer of the server is a connection's last, no request is a 500."""
    with ExitStack() as stack:
        proxy = stack.enter_context(closing(Proxy(new_database(kind))))
        url = proxy.url
        if kind == "postgresql":
            # The service asks more of one of several hosts.
            url = url.replace(
                "?", f"?host=127.0.0.1,127.0.0.1&port={urlsplit(url).port},{free_port()}&"
            )
        log = tmp_path / "log"
        url, process = stack.enter_context(started(url, log, "--loop=uvloop"))
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=30))
        answers: Counter[Link] = Counter()

        def reset(last: int, link: Link, answer: bytes) -> bool:
            answers[link] += 1
            if answers[link] != last:
                return False
            # The service sees the answer and the reset at the same moment.
            process.send_signal(signal.SIGSTOP)
            poll(lambda: is_stopped(process.pid))
            link.service.sendall(answer)
            link.reset()
            poll(lambda: link.service.fileno() < 0)
            process.send_signal(signal.SIGCONT)
            return True

        for last in range(1, 7):
            proxy.ends = partial(reset, last)
            assert client.get("/notes/").status_code in (200, 503)
        proxy.ends = lambda link, answer: False
        assert client.get("/notes/").json() == []
    assert "Traceback" not in log.read_text()
