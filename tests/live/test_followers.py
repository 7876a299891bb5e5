"""Many clients follow: their number, their memory, their users, and the end of their streams."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from tests.support import databases
from tests.support.crowds import crowd, read
from tests.support.databases import NewDatabase
from tests.support.following import Follower, asking, following, live
from tests.support.metrics import metric
from tests.support.servers import running, started
from tests.support.sockets import head
from tests.support.waiting import poll
from tests.support.watched import Service, watching

NOTE = {"text": "a note", "completed": False}
MB = 1_000_000
# A note of 1 MB.
LARGE = f"INSERT INTO notes (text, completed) VALUES (hex(zeroblob({MB // 2})), false)"
# Only once the test has passed would a wait be this long.
FOREVER = "3000"


def kinds(follower: Follower, number: int) -> list[tuple[str, int]]:
    """The kinds of the next events, and the ids of their notes."""
    return [(event.kind, event.data["id"]) for event in follower.take(number)]


def is_at_end(follower: Follower) -> bool:
    """Whether the stream ends, after any events."""
    while follower.next() is not None:
        pass
    return True


@pytest.fixture(scope="module")
def recorded(new_database: NewDatabase) -> str:
    """A database whose changes are recorded."""
    url = new_database("sqlite")
    live(url)
    return url


@pytest.fixture(scope="module")
def full(recorded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A service for three followers, and two other requests at a time."""
    log = tmp_path_factory.mktemp("full") / "log"
    variables = {"MAX_FOLLOWERS": "3", "MAX_REQUESTS": "2", "CORS_ORIGINS": "https://a.example"}
    with (
        running(recorded, log, LIVE="1", **variables) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client
    assert "Traceback" not in log.read_text()


def notes(client: httpx2.Client) -> str:
    return f"{str(client.base_url).rstrip('/')}/notes"


def test_followers_beyond_the_limit_are_refused(full: httpx2.Client) -> None:
    """Beyond MAX_FOLLOWERS it is a 503. The others and other requests go on, without slots."""
    with ExitStack() as stack:
        followers = [stack.enter_context(following(notes(full))) for _ in range(3)]
        for _ in range(2):
            with asking(notes(full)) as refused:
                assert refused.status == 503
                assert refused.getheader("retry-after") == "1"
                assert refused.read() == b'{"detail":"Too many clients follow changes"}'
        assert metric(full, "live_followers") == 3
        note = full.post("/notes/", json=NOTE).raise_for_status().json()
        for follower in followers:
            assert [event.kind for event in follower.take(2)] == ["start", "created"]
    poll(lambda: metric(full, "live_followers") == 0)
    with following(notes(full), after=follower.last_id) as follower:
        full.delete(f"/notes/{note['id']}").raise_for_status()
        assert kinds(follower, 1) == [("deleted", note["id"])]
    poll(lambda: metric(full, "live_followers") == 0)


def test_who_leaves_makes_room(full: httpx2.Client) -> None:
    """A stream ends with the connection of its client, and not only when the next event is sent."""
    with crowd(str(full.base_url), 1) as (client,):
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    poll(lambda: metric(full, "live_followers") == 0)


def test_clients_come_back_at_different_times(full: httpx2.Client) -> None:
    """Each stream names another time after which its client comes back, of one to five seconds."""
    times = set()
    for _ in range(5):
        with asking(notes(full)) as response:
            found = re.fullmatch(rb"retry: (\d+)\n", response.readline())
            assert found is not None
            times.add(int(found[1]))
        poll(lambda: metric(full, "live_followers") == 0)
    assert len(times) > 1
    assert all(1000 <= one <= 5000 for one in times)


def test_pages_of_other_origins_may_follow(full: httpx2.Client) -> None:
    """With CORS_ORIGINS a browser lets a page of another origin read the events."""
    origin = {"Origin": "https://a.example"}
    with asking(notes(full), origin) as response:
        assert response.getheader("access-control-allow-origin") == "https://a.example"
        assert Follower(response).take(1)[0].kind == "start"
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id",
    }
    answer = full.options("/notes/changes", headers=origin | asked)
    assert answer.status_code == 200
    assert "last-event-id" in answer.headers["access-control-allow-headers"].lower()


@pytest.fixture(scope="module")
def hasty(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its clients have three seconds for each part of an answer, and one large answer at a time."""
    url = new_database("sqlite")
    live(url)
    log = tmp_path_factory.mktemp("hasty") / "log"
    variables = {"REQUEST_TIMEOUT": "3", "MAX_ANSWER_BYTES": "2000000"}
    with watching(url, log, LIVE="1", **variables) as service:
        yield service
    assert "Traceback" not in log.read_text()


def test_a_heartbeat_tells_the_place(hasty: Service) -> None:
    """Who is told of nothing goes on all the same: behind what the filter has hidden."""
    with databases.session(hasty.database_url) as run:
        with following(f"{hasty.url}/notes", completed="true") as follower:
            (start,) = follower.take(1)
            run("INSERT INTO notes (text, completed) VALUES ('hidden', false)")
            (beat,) = follower.take(1)
        assert beat.kind == ""
        assert beat.id != start.id
        run("INSERT INTO notes (text, completed) VALUES ('seen', false)")
        with following(f"{hasty.url}/notes", {"Last-Event-ID": beat.id}) as follower:
            assert [event.data["text"] for event in follower.take(1)] == ["seen"]


def test_who_does_not_read_is_ended(hasty: Service) -> None:
    """Large notes reach those who read, in bounded memory, and others lose their connections."""
    with (
        databases.session(hasty.database_url) as run,
        following(f"{hasty.url}/notes", rows={}) as follower,
        crowd(hasty.url, 40, buffer=4096) as others,
    ):
        follower.take(1)
        before = hasty.peak()
        for _ in range(20):
            run(LARGE)
            (event,) = follower.take(1)
            assert len(event.data["text"]) == MB
        assert hasty.peak() - before < 60 * MB
        poll(lambda: hasty.connections() == 1)
        run("INSERT INTO notes (text, completed) VALUES ('small', false)")
        assert [event.data["text"] for event in follower.take(1)] == ["small"]
        for client in others:
            with pytest.raises((ConnectionError, AssertionError)):
                read([client], b"event: created", 21)


def test_who_waits_long_for_a_turn_gets_it(hasty: Service) -> None:
    """Who comes back waits behind another who doesn't read, and is told then what was missed."""
    with following(f"{hasty.url}/notes") as follower:
        (start,) = follower.take(1)
    poll(lambda: hasty.connections() == 0)
    databases.execute(hasty.database_url, LARGE)
    with closing(hasty.connect(4096)) as other:
        other.sendall(head("GET", f"/notes/changes?after={start.id}"))
        read([other], b"event: created", 1)
        with following(f"{hasty.url}/notes", after=start.id) as follower:
            assert [event.kind for event in follower.take(1)] == ["created"]


def test_who_catches_up_with_large_notes_takes_turns(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """Forty who have missed large notes take the memory of few, and get them when they read."""
    url = new_database("sqlite")
    live(url)
    variables = {"MAX_ANSWER_BYTES": "8000000", "REQUEST_TIMEOUT": FOREVER}
    with watching(url, tmp_path / "log", LIVE="1", **variables) as service, ExitStack() as stack:
        with following(f"{service.url}/notes") as follower:
            (start,) = follower.take(1)
        poll(lambda: service.connections() == 0)
        # Four bytes for each character.
        wide = LARGE.replace("hex", "char(128512) || hex")
        databases.execute(url, *[wide] * 3)
        before = service.memory()
        service.peak()
        clients = [stack.enter_context(service.connect(65_536)) for _ in range(40)]
        for client in clients:
            client.sendall(head("GET", f"/notes/changes?after={start.id}"))
        with httpx2.Client(base_url=service.url, timeout=60) as asker:
            poll(lambda: metric(asker, "live_followers") == 40)
            for _ in range(100):
                asker.get("/notes/?completed=true").raise_for_status()
        # Six events of 1 MB and parts of them fit into seven eighths of the budget.
        heads = [one.recv(1000, socket.MSG_PEEK) for one in clients]
        assert 0 < sum(b"event: created" in one for one in heads) <= 6
        # It comes after the text.
        read(clients, b'"completed":false', 3)
        assert service.peak() - before < 100 * MB
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_others_read_while_many_catch_up(new_database: NewDatabase, tmp_path: Path) -> None:
    """Eight who catch up wait for a locked table with one connection, and others read notes."""
    url = new_database("postgresql")
    live(url)
    waits = {"DATABASE_STATEMENT_TIMEOUT": "60", "REQUEST_TIMEOUT": FOREVER}
    with (
        watching(url, tmp_path / "log", LIVE="1", **waits) as service,
        httpx2.Client(base_url=service.url, timeout=60) as client,
        databases.session(url) as run,
        ExitStack() as stack,
    ):
        with following(f"{service.url}/notes") as follower:
            (start,) = follower.take(1)
        poll(lambda: service.connections() == 0)
        large = "INSERT INTO notes (text, completed) VALUES (repeat('x', 1000000), true)"
        for _ in range(8):
            run(large)
        clients = [stack.enter_context(service.connect(4096)) for _ in range(8)]
        for one in clients:
            one.sendall(head("GET", f"/notes/changes?after={start.id}"))
        read(clients, b"event: created", 1)
        run("BEGIN")
        run("LOCK TABLE changes")
        # Now each reads on, and so its next changes are looked for.
        reading = Thread(target=read, args=(clients, b"event: created", 7))
        reading.start()
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE relation = 'changes'::regclass AND NOT granted"
        )
        # The one who catches up, and the feed.
        poll(lambda: run(waiting) >= 2)
        for _ in range(20):
            client.get("/notes/?limit=1&completed=false").raise_for_status()
        run("COMMIT")
        reading.join()
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("drain", ["0", FOREVER])
def test_streams_end_at_once(recorded: str, tmp_path: Path, drain: str) -> None:
    """At SIGTERM streams end, also those whose clients don't read, and they hold up nothing."""
    variables = {"DRAIN_SECONDS": drain, "REQUEST_TIMEOUT": FOREVER}
    patient = f"--timeout-graceful-shutdown={FOREVER}"
    with (
        started(recorded, tmp_path / "log", patient, LIVE="1", **variables) as (url, process),
        following(f"{url}/notes") as follower,
        crowd(url, 1) as (reader,),
        crowd(url, 1, buffer=4096) as (client,),
    ):
        databases.execute(recorded, LARGE)
        follower.take(2)
        # It comes after the text.
        read([reader], b'"completed":false', 1)
        process.send_signal(signal.SIGTERM)
        assert follower.next() is None
        # The last chunk.
        read([reader], b"0\r\n\r\n", 1)
        if drain == FOREVER:
            assert httpx2.get(f"{url}/notes/?limit=1").status_code == 200
            with pytest.raises((ConnectionError, AssertionError)):
                read([client], b"event: created", 2)
            process.send_signal(signal.SIGINT)
        process.wait(120)
    assert "Traceback" not in (tmp_path / "log").read_text()
