"""Clients follow the notes as they change."""

from typing import Any

import pytest

from service.live.store import MAX_ROWS
from tests.live.conftest import Followed
from tests.support import databases
from tests.support.following import Event, Follower, asking, following


def create(followed: Followed, text: str = "a note", completed: bool = False) -> Any:
    answer = followed.client.post("/notes/", json={"text": text, "completed": completed})
    return answer.raise_for_status().json()


def change(followed: Followed, note: Any, **changes: Any) -> Any:
    answer = followed.client.patch(f"/notes/{note['id']}", json=changes)
    return answer.raise_for_status().json()


def delete(followed: Followed, note: Any) -> None:
    followed.client.delete(f"/notes/{note['id']}").raise_for_status()


def told(follower: Follower, number: int) -> list[tuple[str, Any]]:
    """The kinds of the next events, and their data."""
    return [(event.kind, event.data) for event in follower.take(number)]


def test_changes_are_told(followed: Followed) -> None:
    """A follower gets a note as it is created and changed, and the id of a deleted one."""
    with following(followed.notes) as follower:
        (start,) = follower.take(1)
        assert start == Event("start", start.id, {"after": start.id})
        note = create(followed, "Grüße")
        changed = change(followed, note, completed=True)
        delete(followed, note)
        assert told(follower, 3) == [
            ("created", note),
            ("changed", changed),
            ("deleted", {"id": note["id"]}),
        ]


def test_a_write_that_changes_nothing_is_not_told(followed: Followed) -> None:
    """A write of what is there already is no change."""
    note = create(followed)
    with following(followed.notes) as follower:
        follower.take(1)
        change(followed, note, text=note["text"])
        other = create(followed, "other")
        assert told(follower, 1) == [("created", other)]


def test_other_programs_are_seen(followed: Followed) -> None:
    """What another program does to the table is told, in several rows at once, too."""
    with following(followed.notes) as follower:
        follower.take(1)
        followed.run("INSERT INTO notes (text, completed) VALUES ('x', false), ('y', true)")
        first, second = follower.take(2)
        assert [event.data["text"] for event in (first, second)] == ["x", "y"]
        assert [event.data["completed"] for event in (first, second)] == [False, True]
        ids = f"({first.data['id']}, {second.data['id']})"
        followed.run(f"UPDATE notes SET text = text || '!' WHERE id IN {ids}")
        assert [event.data["text"] for event in follower.take(2)] == ["x!", "y!"]
        followed.run(f"UPDATE notes SET id = id + 1000000 WHERE id = {first.data['id']}")
        moved = {first.data["id"] + 1000000: {**first.data, "text": "x!"}}
        moved[first.data["id"] + 1000000]["id"] += 1000000
        follower.take(2)
        followed.run(f"DELETE FROM notes WHERE id = {second.data['id']}")
        assert told(follower, 1) == [("deleted", {"id": second.data["id"]})]
        assert follower.rows == moved
        followed.run(f"DELETE FROM notes WHERE id = {first.data['id'] + 1000000}")


def test_many_changes_are_told_in_parts(followed: Followed) -> None:
    """More changes of a transaction than are read at once are told, from any of them on, too."""
    count = 2 * MAX_ROWS + 1
    with following(followed.notes) as follower:
        follower.take(1)
        databases.fill(followed.database_url, count)
        events = follower.take(count)
    rows = [event.data["id"] for event in events]
    assert len(set(rows)) == count
    for told in (1, MAX_ROWS, MAX_ROWS + 1, count - 1):
        with following(followed.notes, after=events[told - 1].id) as follower:
            assert [event.data["id"] for event in follower.take(count - told)] == rows[told:]


def test_a_follower_goes_on_at_another_process(followed: Followed) -> None:
    """With the last id, a follower gets at any process what happened since, and nothing twice."""
    with following(followed.notes) as follower:
        follower.take(1)
        note = create(followed)
        follower.take(1)
        place = follower.last_id
    changed = change(followed, note, text="changed")
    with following(followed.others, after=place) as follower:
        assert told(follower, 1) == [("changed", changed)]
        other = create(followed, "other")
        assert told(follower, 1) == [("created", other)]
    delete(followed, other)
    # A browser comes back to the same URL, with the header.
    with following(followed.others, {"Last-Event-ID": follower.last_id}, after=place) as follower:
        assert told(follower, 1) == [("deleted", {"id": other["id"]})]


def test_list_then_follow_has_no_gap(followed: Followed) -> None:
    """All that happens after `start` is told, so a listing after it misses nothing."""
    with following(followed.notes) as follower:
        follower.take(1)
        before = create(followed, "before")
        follower.rows = {note["id"]: note for note in followed.client.get("/notes/").json()}
        after = create(followed, "after")
        follower.until("created", after["id"])
        listed = {note["id"]: note for note in followed.client.get("/notes/").json()}
        assert follower.rows == listed
        assert before["id"] in listed


def test_a_filter_selects_events(followed: Followed) -> None:
    """What enters a selection is told as created, what leaves it as deleted."""
    with following(followed.notes, completed="true") as follower:
        follower.take(1)
        note = create(followed)
        done = change(followed, note, completed=True)
        renamed = change(followed, note, text="renamed")
        change(followed, note, completed=False)
        delete(followed, note)
        other = create(followed, "other", True)
        assert told(follower, 4) == [
            ("created", done),
            ("changed", renamed),
            ("deleted", {"id": note["id"]}),
            ("created", other),
        ]


@pytest.mark.parametrize(
    ("headers", "query", "loc"),
    [
        ({}, {"after": "x"}, ["query", "after"]),
        ({}, {"after": "-1"}, ["query", "after"]),
        ({}, {"after": f"{'0' * 32}-1.2--0-0"}, ["query", "after"]),
        ({}, {"after": f"{'0' * 32}-{'f' * 16}--0-0"}, ["query", "after"]),
        ({}, {"after": f"{'0' * 32}-1-2-7{'f' * 15}-0"}, ["query", "after"]),
        ({"Last-Event-ID": "1"}, {}, ["header", "last-event-id"]),
        ({}, {"completed": "maybe"}, ["query", "completed"]),
        ({}, {"q": "milk"}, ["query", "q"]),
        ({}, {"limit": "1"}, ["query", "limit"]),
    ],
)
def test_garbage_is_refused(
    followed: Followed, headers: dict[str, str], query: dict[str, str], loc: list[str]
) -> None:
    """What is no id of an event, no filter or no value of one is a 422 that says where."""
    answer = followed.client.get("/notes/changes", params=query, headers=headers)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["detail"]] == [loc]


def test_an_id_of_another_life_is_a_reset(followed: Followed) -> None:
    """With an id that says nothing here, the first event is `reset`, and others follow."""
    with following(followed.notes) as follower:
        (start,) = follower.take(1)
    life, _, place = start.id.partition("-")
    others = life[::-1] if life[::-1] != life else "0" * 32
    with following(followed.notes, {"Last-Event-ID": f"{others}-{place}"}) as follower:
        (reset,) = follower.take(1)
        assert (reset.kind, reset.data) == ("reset", {"after": reset.id})
        note = create(followed)
        assert told(follower, 1) == [("created", note)]


def test_a_head_has_no_events(followed: Followed) -> None:
    """HEAD answers with the headers alone."""
    answer = followed.client.head("/notes/changes")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


def test_events_are_not_compressed(followed: Followed) -> None:
    """A client that takes gzip gets each event at once all the same."""
    with asking(followed.notes, {"Accept-Encoding": "gzip"}) as response:
        assert response.getheader("content-encoding") is None
        assert Follower(response).take(1)[0].kind == "start"
