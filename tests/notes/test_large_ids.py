"""Ids of 64 bits, as far as JSON's readers take integers exactly."""

import httpx2

from tests.conftest import Server
from tests.support import databases
from tests.support.notes import known

MAX_ID = 2**53 - 1


def go_on_with(database_url: str, next_id: int) -> None:
    """Gives the next note this id, as if there had been so many notes."""
    statements = {
        "sqlite": f"INSERT INTO sqlite_sequence VALUES ('notes', {next_id - 1})",
        "postgresql": f"SELECT setval('notes_id_seq', {next_id - 1})",
        "mysql": f"ALTER TABLE notes AUTO_INCREMENT = {next_id}",
    }
    databases.execute(database_url, statements[databases.kind_of(database_url)])


def test_ids_go_on_behind_32_bits(server: Server, service: httpx2.Client) -> None:
    """Notes with ids of more than 32 bits are created, read, listed, changed and deleted."""
    first = 2**31 - 1
    go_on_with(server.database_url, first)
    new = [{"text": f"note {number}", "completed": number == 1} for number in range(4)]
    created = [service.post("/notes/", json=note).json() for note in new[:2]]
    created += service.post("/notes/batch", json=new[2:]).json()
    assert known(created) == [{"id": first + number, **note} for number, note in enumerate(new)]
    assert service.get("/notes/").json() == created
    assert service.get("/notes/?order=desc").json() == created[::-1]
    assert service.get(f"/notes/?after={first + 1}&limit=1").json() == [created[2]]
    assert service.get("/notes/?completed=true").json() == [created[1]]
    path = f"/notes/{first + 2}"
    answer = service.get(path)
    assert answer.json() == created[2]
    condition = {"if-match": answer.headers["etag"]}
    changed = service.patch(path, json={"text": "changed"}, headers=condition)
    assert changed.json() == {**created[2], "text": "changed"}
    assert known(service.put(path, json=new[0]).json()) == {"id": first + 2, **new[0]}
    assert service.delete(path).status_code == 204
    assert service.get(path).status_code == 404


def test_ids_end_where_they_would_not_be_exact(server: Server, service: httpx2.Client) -> None:
    """The last id is 2^53 - 1. More notes are a 503, and are not stored."""
    go_on_with(server.database_url, MAX_ID)
    note = {"text": "last", "completed": False}
    last = service.post("/notes/", json=note).json()
    assert known(last) == {"id": MAX_ID, **note}
    key = {"idempotency-key": "k"}
    for answer in (
        service.post("/notes/", json=note),
        service.post("/notes/", json=note, headers=key),
        service.post("/notes/batch", json=[note] * 3),
    ):
        assert (answer.status_code, answer.json()) == (503, {"detail": "Service Unavailable"})
    assert service.get("/notes/").json() == [last]
    assert service.get(f"/notes/{MAX_ID}").json() == last
    assert service.put(f"/notes/{MAX_ID}", json=note).json() == last
