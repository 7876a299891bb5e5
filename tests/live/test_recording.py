"""Changes are recorded, kept for a day, and recorded no more."""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest

from service.live import store, sweeping, switch
from service.notes.resource import resource
from service.revisions import HEAD
from tests.live.conftest import Followed
from tests.live.test_following import create, told
from tests.support import databases
from tests.support.clusters import running_server
from tests.support.databases import NewDatabase, kind_of, run
from tests.support.following import KINDS, asking, following, live, replay
from tests.support.processes import Run, new_process
from tests.support.servers import serving
from tests.support.waiting import poll

WRITERS, WRITES = 3, 40
NEWEST = "SELECT max(at) FROM changes"
NOT_RECORDED = {"detail": "Changes of notes are not recorded"}


@pytest.fixture(scope="module", params=KINDS)
def followed_url(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[str]:
    """A database of each kind, on PostgreSQL the only one in use.

    An id names all open transactions of the server. If one of another test ended after a sweep,
    the id would be a reset.
    """
    if request.param == "sqlite":
        yield new_database("sqlite")
        return
    with running_server() as server:
        server.execute("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")
        yield server.of_superuser(server.new_database())


@pytest.fixture(scope="module")
def call(followed: Followed) -> Iterator[Run]:
    """Calls functions on the database, in a process beside the services."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", followed.database_url)
        with new_process() as run:
            yield run


async def turn_on() -> bool:
    (watched,) = resource.watched
    return await switch.turn_on(watched)


async def turn_off() -> None:
    await switch.turn_off("notes")


async def renew() -> None:
    await turn_off()
    await turn_on()


async def sweep_until(at: int) -> int:
    """Deletes changes as if those until this time, in microseconds, were of more than a day ago.

    Gives the number of times that it did so.
    """
    store.LIFETIME_SECONDS = time.time() - (at + 1) / 1e6  # type: ignore[assignment]
    times = 1
    while await store.sweep():
        times += 1
    return times


def place_of(followed: Followed) -> str:
    """The id of now."""
    with following(followed.notes) as follower:
        (start,) = follower.take(1)
    return start.id


def is_reset(followed: Followed, place: str) -> bool:
    """Whether a follower who comes with an id has to list again."""
    with following(followed.notes, after=place) as follower:
        create(followed, "now")
        first = follower.next()
        assert first is not None
        if first.kind == "reset":
            assert first.data == {"after": first.id}
            assert follower.take(1)[0].data["text"] == "now"
        return first.kind == "reset"


def refused(followed: Followed) -> Any:
    """What followers get who come while nothing is recorded."""
    with asking(followed.notes) as response:
        assert response.status == 503
        return json.loads(response.read())


def test_a_follower_who_hops_misses_nothing(followed: Followed, call: Run) -> None:
    """Writers at two processes, and followers who go from one to the other after any event."""
    followed.run("DELETE FROM notes")
    call(renew)
    urls = [followed.notes, followed.others]
    queries: list[dict[str, str]] = [{}, {"completed": "false"}]

    def follow(query: dict[str, str]) -> dict[int, Any]:
        return replay(lambda number: urls[number % 2], "last", 12, **query)

    with ThreadPoolExecutor() as threads:
        hopping = [threads.submit(follow, query) for query in queries]
        writing = [threads.submit(write, urls, number) for number in range(WRITERS)]
        for writer in writing:
            writer.result()
        create(followed, "last")
        found, found_open = (follower.result() for follower in hopping)
    answer = followed.client.get("/notes/", headers={"accept": "application/x-ndjson"})
    listed = {note["id"]: note for note in map(json.loads, answer.text.splitlines())}
    assert found == listed
    assert found_open == {key: note for key, note in listed.items() if not note["completed"]}


def write(urls: list[str], writer: int) -> None:
    """Creates, changes and deletes notes, those of other writers, too."""
    chance = random.Random(writer)
    with httpx2.Client(timeout=60) as client:
        for number in range(WRITES):
            url = chance.choice(urls)
            completed = chance.random() < 0.5
            note = {"text": f"{writer} {number}", "completed": completed}
            if number < WRITES / 4:
                client.post(f"{url}/", json=note).raise_for_status()
                continue
            some = client.get(f"{url}/?order=desc&limit=5").json()
            note_id = chance.choice(some)["id"]
            if chance.random() < 0.8:
                client.patch(f"{url}/{note_id}", json=note)
            else:
                client.delete(f"{url}/{note_id}")


def test_old_changes_are_deleted_in_batches(followed: Followed, call: Run) -> None:
    """Of more changes than one statement deletes, the newest is left."""
    databases.fill(followed.database_url, 2 * store.MAX_SWEPT)
    assert call(sweep_until, followed.run(NEWEST)) == 3
    assert followed.run("SELECT count(*) FROM changes") == 1


def test_sweeps_leave_half_of_the_time_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch there is a pause as long as the batch took."""
    durations = [3.0, 1.0, 2.0]
    now, pauses = 0.0, []

    async def sweep() -> bool:
        nonlocal now
        if durations:
            now += durations[0]
        return bool(durations)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append((seconds, durations.pop(0)))

    monkeypatch.setattr(store, "sweep", sweep)
    monkeypatch.setattr(sweeping, "time", Mock(monotonic=lambda: now))
    monkeypatch.setattr(sweeping, "asyncio", Mock(sleep=sleep))
    asyncio.run(sweeping.sweep_all())
    assert pauses == [(3.0, 3.0), (1.0, 1.0), (2.0, 2.0)]


def test_changes_are_kept_for_a_day(followed: Followed, call: Run) -> None:
    """`live sweep` leaves what is younger than a day, and deletes what is older."""
    call(renew)
    create(followed)
    create(followed)
    for hours, kept in ((23, 2), (25, 1)):
        at = (int(time.time()) - hours * 3600) * 1_000_000
        followed.run(f"UPDATE changes SET at = {at}")
        live(followed.database_url, "sweep")
        assert followed.run("SELECT count(*) FROM changes") == kept


def test_an_id_from_before_what_is_kept_is_a_reset(followed: Followed, call: Run) -> None:
    """Who may have missed a deleted change has to list again, and nobody else."""
    with following(followed.notes) as follower:
        follower.take(1)
        ids = []
        for _ in range(3):
            create(followed)
            ids.append(follower.take(1)[0].id)
    call(sweep_until, followed.run(NEWEST))
    assert is_reset(followed, ids[0])
    assert is_reset(followed, "0")
    assert not is_reset(followed, ids[2])


def test_a_connected_follower_notices_no_sweep(followed: Followed, call: Run) -> None:
    """Who has read the changes that are deleted goes on."""
    with following(followed.notes) as follower:
        follower.take(1)
        first = create(followed, "first")
        second = create(followed, "second")
        assert told(follower, 2) == [("created", first), ("created", second)]
        call(sweep_until, followed.run(NEWEST))
        third = create(followed, "third")
        assert told(follower, 1) == [("created", third)]


def test_the_place_of_a_quiet_day_is_kept(followed: Followed, call: Run) -> None:
    """An id is good for a day from the next change on, however old the last one was."""
    create(followed)
    create(followed)
    place, old = place_of(followed), followed.run(NEWEST)
    create(followed)
    call(sweep_until, old)
    assert not is_reset(followed, place)


@pytest.mark.parametrize("followed_url", ["postgresql"], indirect=True)
def test_a_transaction_of_days_makes_no_resets(followed: Followed, call: Run) -> None:
    """While one is open that began before all that is kept, followers come and go."""
    with databases.holding(followed.database_url, "SELECT pg_current_xact_id()"):
        with following(followed.notes) as follower:
            follower.take(1)
            for _ in range(3):
                note = create(followed)
                assert told(follower, 1) == [("created", note)]
                call(sweep_until, followed.run(NEWEST))
        assert not is_reset(followed, follower.last_id)


@pytest.mark.parametrize("followed_url", ["postgresql"], indirect=True)
def test_what_was_still_open_and_is_deleted_is_a_reset(followed: Followed, call: Run) -> None:
    """An id from before a transaction's end misses its change, also if that is the last deleted."""
    with databases.holding(
        followed.database_url, "INSERT INTO notes (text, completed) VALUES ('open', false)"
    ):
        create(followed)
        place = place_of(followed)
    call(sweep_until, followed.run(NEWEST))
    assert is_reset(followed, place)


def test_a_stream_ends_when_the_recording_does(followed: Followed) -> None:
    """`live off` ends streams, and followers get a 503. After `live on`, old ids are a reset."""
    with following(followed.notes) as follower:
        place = follower.take(1)[0].id
        assert "notes: off" in live(followed.database_url, "off").splitlines()
        assert follower.next() is None
    assert refused(followed) == NOT_RECORDED
    create(followed)
    assert "notes: on" in live(followed.database_url).splitlines()
    assert is_reset(followed, place)
    assert followed.run("SELECT count(*) FROM changes") == 1


def test_live_on_changes_nothing_the_second_time(followed: Followed) -> None:
    """Who records changes already may say so again: nobody is disturbed."""
    with following(followed.notes) as follower:
        place = follower.take(1)[0].id
        assert "notes: was on already" in live(followed.database_url).splitlines()
        note = create(followed)
        assert told(follower, 1) == [("created", note)]
    assert not is_reset(followed, place)


OTHERWISE = {
    "sqlite": ("DROP TRIGGER live_notes_update",),
    "postgresql": (
        "DROP TRIGGER live_update ON notes",
        "ALTER TABLE notes DISABLE TRIGGER live_delete",
    ),
}
ANYWHERE = ("UPDATE live SET place = '1.2.3'", "UPDATE live SET columns = '[]'")


def test_what_is_recorded_otherwise_is_not_told(followed: Followed, call: Run) -> None:
    """Where changes may be missing or are others, streams end, with a 503 until `live on`."""
    for statement in (*OTHERWISE[kind_of(followed.database_url)], *ANYWHERE):
        with following(followed.notes) as follower:
            place = follower.take(1)[0].id
            followed.run(statement)
            assert follower.next() is None
        assert refused(followed) == NOT_RECORDED
        assert call(turn_on) is True
        assert is_reset(followed, place)


@pytest.mark.parametrize("followed_url", ["postgresql"], indirect=True)
def test_live_off_and_on_hold_up_nobody(followed: Followed, call: Run) -> None:
    """While each waits for a transaction that writes, others write."""
    with ThreadPoolExecutor() as threads:
        for change, done in ((turn_off, None), (turn_on, True)):
            with databases.holding(followed.database_url, "DELETE FROM notes WHERE id < 0"):
                changes = threads.submit(call, change)
                poll(lambda: databases.waiting(followed.database_url) > 0)
                create(followed)
                assert not changes.done()
            assert changes.result() is done
    with following(followed.notes) as follower:
        follower.take(1)
        note = create(followed)
        assert told(follower, 1) == [("created", note)]


@pytest.mark.skipif(HEAD != "0011", reason="today's service needs what later migrations add")
def test_the_migration_down_takes_the_triggers(followed: Followed, call: Run) -> None:
    """Notes are written before and after it, and followed again after it went up."""
    for target, command in (("0010", "downgrade"), ("head", "upgrade")):
        result = databases.alembic(followed.database_url, command, target)
        assert result.returncode == 0, result.stderr
        create(followed)
    assert refused(followed) == NOT_RECORDED
    assert call(turn_on) is True
    assert is_reset(followed, "0")


def test_the_log_says_that_nothing_is_recorded(new_database: NewDatabase, tmp_path: Path) -> None:
    """LIVE=1 without triggers is told in one line, and the rest is served."""
    log = tmp_path / "log"
    with serving(new_database("sqlite"), log, LIVE="1") as client:
        poll(lambda: "live on" in log.read_text())
        answer = client.get("/notes/changes")
        assert (answer.status_code, answer.json()) == (503, NOT_RECORDED)
        assert client.get("/notes/").json() == []
    assert log.read_text().count("notes are not recorded: python -m service live on") == 1


@pytest.mark.skipif("mysql" not in databases.KINDS, reason="the service has no MySQL")
def test_mysql_records_no_changes() -> None:
    """`live on` and LIVE=1 say so in one line."""
    url = "mysql://nobody@127.0.0.1:9/notes"
    command = (sys.executable, "-m", "service", "live", "on")
    on = run(*command, DATABASE_URL=url)
    assert on.returncode == 1
    assert on.stderr == "Error: Changes can be recorded on PostgreSQL and SQLite alone.\n"
    live_on = run(*command, DATABASE_URL=url, LIVE="1")
    assert live_on.returncode == 3
    assert live_on.stderr == "Configuration: LIVE needs PostgreSQL or SQLite\n"
