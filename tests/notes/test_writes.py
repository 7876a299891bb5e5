"""Changing and removing notes, with HEAD, OPTIONS and Prefer."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.testclient import TestClient

from tests.support.notes import known, plain_text, values
from tests.support.raw import connect, send
from tests.support.servers import async_clients

JSON = {"content-type": "application/json"}
NOTE = {"text": "note", "completed": False}
NOT_FOUND = {"detail": "Not Found"}

oracle = FastAPI()


class NoteIn(BaseModel):
    """A note as FastAPI reads it."""

    text: str
    completed: bool


class Changes(BaseModel):
    """A note's changes as FastAPI reads them: given fields are read as in a note."""

    text: str = ""
    completed: bool = False


@oracle.put("/note")
async def put(note: NoteIn) -> Any:
    """A whole note as FastAPI reads it."""
    return note.model_dump()


@oracle.patch("/note")
async def patch(changes: Changes) -> Any:
    """A part of a note as FastAPI reads it."""
    return changes.model_dump(exclude_unset=True)


@pytest.fixture(scope="module")
def twin() -> Iterator[TestClient]:
    """A client of the oracle."""
    with TestClient(oracle, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def service(processes: list[str]) -> Iterator[httpx2.Client]:
    """A client of the first process."""
    with httpx2.Client(base_url=processes[0], timeout=30) as client:
        yield client


def create(service: httpx2.Client, **values: Any) -> tuple[str, dict[str, Any]]:
    """Stores a note and gives its path and itself."""
    note = service.post("/notes/", json=NOTE | values).json()
    return f"/notes/{note['id']}", note


def test_put_replaces_a_note(service: httpx2.Client) -> None:
    """`PUT` answers with the new note, which keeps its id."""
    (path, note), (other_path, other) = create(service), create(service)
    body = {"completed": "yes", "text": "é \u2028", "id": 0, "x": 1}
    answer = service.put(path, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    wanted = {"id": note["id"], "text": "é \u2028", "completed": True}
    assert list(known(answer.json()).items()) == list(wanted.items())
    assert service.get(path).content == answer.content
    assert service.get(other_path).json() == other
    listed = service.get(f"/notes/?after={note['id'] - 1}").json()
    assert listed == [answer.json(), other]


def test_patch_changes_what_is_given(service: httpx2.Client) -> None:
    """`PATCH` changes the given fields only."""
    path, note = create(service)
    for change in (
        {"text": ""},
        {"completed": True},
        {},
        {"text": "x" * 100_000},
        {"completed": False, "text": "ß"},
        {"x": 1},
    ):
        answer = service.patch(path, json=change)
        assert answer.status_code == 200
        note |= {key: value for key, value in change.items() if key in NOTE}
        assert list(answer.json().items()) == list(note.items())
        assert service.get(path).content == answer.content


def test_delete_removes_a_note(service: httpx2.Client) -> None:
    """A deleted note is gone for every method, and its id is not given again."""
    path, note = create(service)
    answer = service.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    for method, body in (("GET", None), ("PUT", NOTE), ("PATCH", {}), ("DELETE", None)):
        again = service.request(method, path, json=body)
        assert (again.status_code, again.json()) == (404, NOT_FOUND)
    assert note not in service.get("/notes/").json()
    assert create(service)[1]["id"] > note["id"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "note_id",
    [
        "9007199254740991",
        "9007199254740992",
        "9223372036854775808",
        "1" * 5000,
        "0",
        "-1",
        "+1",
        "01",
        "1.0",
        "1e0",
        "x",
        "%201",
        "1%20",
        "1%0A",
        "1%00",
        "%D9%A1",
        "%EF%BC%91",
        "1_0",
        "%FF",
        "null",
    ],
)
def test_notes_that_are_not_there(service: httpx2.Client, method: str, note_id: str) -> None:
    """An id that is not there, or can't be one, is 404 for every method."""
    body = json.dumps(NOTE).encode() if method in ("PUT", "PATCH") else None
    with connect(str(service.base_url)) as connection:
        answer = send(connection, method, f"/notes/{note_id}", body, JSON)
    assert answer.status == 404
    assert answer.body == (b"" if method == "HEAD" else b'{"detail":"Not Found"}')


@pytest.mark.parametrize("method", ["POST", "TRACE", "PURGE"])
def test_wrong_methods_are_405(service: httpx2.Client, method: str) -> None:
    """Any other method of a note is 405, and `Allow` names the right ones."""
    path, _ = create(service)
    answer = service.request(method, path)
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"null", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 25_000, "application/json"),
        (b'{"text":null}', "application/json"),
        (b'{"completed":null}', "application/json"),
        (b'{"text":null,"completed":null}', "application/json"),
        (b'{"text":1,"completed":"maybe"}', "application/json"),
        (b'{"text":"a","completed":1.5}', "application/json"),
        (b'{"text":"a","completed":true}', "text/plain"),
        (b'{"text":"a","completed":true}', ""),
    ],
)
def test_wrong_bodies_change_nothing(
    service: httpx2.Client, twin: TestClient, method: str, body: bytes, content_type: str
) -> None:
    """A wrong body is refused as by FastAPI, and the note stays as it was."""
    path, note = create(service)
    headers = {"content-type": content_type}
    mine = service.request(method, path, content=body, headers=headers)
    theirs = twin.request(method, "/note", content=body, headers=headers)
    assert (mine.status_code, mine.content) == (theirs.status_code, theirs.content)
    assert mine.is_client_error
    assert service.get(path).json() == note


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_what_no_database_holds_is_refused(service: httpx2.Client, method: str) -> None:
    """NUL and lone surrogates are 422, bodies over MAX_BODY_BYTES 413, as for a new note."""
    path, note = create(service)
    for text in ("a\0", "\ud800", "x" * 1_048_576):
        content = json.dumps({"text": text, "completed": True}).encode()
        changed = service.request(method, path, content=content, headers=JSON)
        created = service.post("/notes/", content=content, headers=JSON)
        assert changed.status_code in (413, 422)
        assert (changed.status_code, changed.content) == (created.status_code, created.content)
    assert service.get(path).json() == note


bodies = (
    st.fixed_dictionaries({"text": plain_text, "completed": st.booleans()})
    | st.fixed_dictionaries({}, optional={"text": plain_text, "completed": st.booleans()})
    | st.fixed_dictionaries({}, optional={"text": values, "completed": values, "id": values})
    | values
)


@settings(max_examples=60)
@given(method=st.sampled_from(["PUT", "PATCH"]), body=bodies)
def test_random_changes_are_answered_alike(
    service: httpx2.Client, twin: TestClient, method: str, body: object
) -> None:
    """Any body changes a note as FastAPI reads it, or is refused in FastAPI's words."""
    path, note = create(service)
    mine = service.request(method, path, json=body)
    theirs = twin.request(method, "/note", json=body)
    assert mine.status_code == theirs.status_code
    if mine.status_code == 200:
        note |= theirs.json()
        assert mine.json() == note
    else:
        assert mine.content == theirs.content
    assert service.get(path).json() == note


def test_changes_of_different_fields_both_hold(processes: list[str]) -> None:
    """Clients that change different fields of a note at once keep each other's changes."""

    async def change() -> None:
        async with async_clients(processes) as clients:
            created = await clients[0].post("/notes/", json=NOTE)
            path = f"/notes/{created.json()['id']}"
            for number in range(40):
                text, completed = await asyncio.gather(
                    clients[number % 2].patch(path, json={"text": f"{number}"}),
                    clients[number // 2 % 2].patch(path, json={"completed": number % 2 == 0}),
                )
                assert text.json()["text"] == f"{number}"
                assert completed.json()["completed"] == (number % 2 == 0)
                note = (await clients[1].get(path)).json()
                assert (note["text"], note["completed"]) == (f"{number}", number % 2 == 0)
                assert note in (text.json(), completed.json())

    asyncio.run(change())


def test_concurrent_writers_get_their_own_answers(processes: list[str]) -> None:
    """Each of many writers gets its own note back. The last write stays. One delete works."""

    async def write() -> None:
        async with async_clients(processes * 4) as clients:
            for _ in range(10):
                created = await clients[0].post("/notes/", json=NOTE)
                path = f"/notes/{created.json()['id']}"
                answers = await asyncio.gather(
                    *(
                        client.put(path, json={"text": f"{number}", "completed": True})
                        for number, client in enumerate(clients)
                    )
                )
                assert [answer.json()["text"] for answer in answers] == [
                    f"{number}" for number in range(len(clients))
                ]
                last = (await clients[0].get(path)).json()
                assert last in [answer.json() for answer in answers]
                deleted = await asyncio.gather(*(client.delete(path) for client in clients))
                assert Counter(answer.status_code for answer in deleted) == {204: 1, 404: 7}

    asyncio.run(write())


MINIMAL = [
    ["return=minimal"],
    ["Return=minimal"],
    ['return="minimal"'],
    ["return=minimal; foo=bar"],
    ["return=minimal;foo"],
    ["return = minimal"],
    ["respond-async, return=minimal"],
    ["return=minimal,wait=10"],
    ["respond-async", "return=minimal"],
    [", ,return=minimal ,"],
    ["return=minimal, return=representation"],
]
OTHER = [
    ["return=representation"],
    ["return=minimalist"],
    ["return"],
    ["return="],
    ["minimal"],
    ["handling=lenient"],
    ["x-return=minimal"],
    ["return=representation, return=minimal"],
    ["x; return=minimal"],
    ['x="return=minimal"'],
    ['x="a, return=minimal"'],
    [""],
    [",;=\xe9" * 100],
]


def prefer(values: list[str]) -> list[tuple[bytes, bytes]]:
    return [(b"prefer", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize("values", MINIMAL)
def test_minimal_answers(service: httpx2.Client, values: list[str]) -> None:
    """A client that prefers a minimal answer gets 204, a tag, and where its new note is."""
    headers = prefer(values)

    def check(answer: httpx2.Response) -> None:
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["preference-applied"] == "return=minimal"
        assert "content-type" not in answer.headers

    created = service.post("/notes/", json=NOTE, headers=headers)
    check(created)
    path = created.headers["location"]
    note = service.get(path)
    assert path == service.base_url.join(f"/notes/{note.json()['id']}")
    assert known(note.json()) == NOTE | {"id": note.json()["id"]}
    assert created.headers["etag"] == note.headers["etag"]
    for method, body in (("PATCH", {"text": "new"}), ("PUT", NOTE), ("PATCH", {})):
        changed = service.request(method, path, json=body, headers=headers)
        check(changed)
        # A tag without a body would be taken for that of what was sent (RFC 9110, 9.3.4).
        tag = None if method == "PUT" else service.head(path).headers["etag"]
        assert changed.headers.get("etag") == tag
        assert known(service.get(path).json()) == NOTE | {"id": note.json()["id"]} | body
    batch = service.post("/notes/batch", json=[NOTE, NOTE], headers=headers)
    check(batch)
    assert "etag" not in batch.headers
    stored = service.get(f"/notes/?after={note.json()['id']}").json()
    assert [item["text"] for item in stored] == ["note", "note"]


@pytest.mark.parametrize("values", OTHER)
def test_other_preferences_are_ignored(service: httpx2.Client, values: list[str]) -> None:
    """Any other preference leaves the answers as they are."""
    headers = prefer(values)
    created = service.post("/notes/", json=NOTE, headers=headers)
    path = f"/notes/{created.json()['id']}"
    answers = [
        created,
        service.put(path, json=NOTE, headers=headers),
        service.patch(path, json={}, headers=headers),
        service.post("/notes/batch", json=[NOTE], headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json() for answer in answers)
    assert not any("preference-applied" in answer.headers for answer in answers)


def test_a_minimal_answer_is_no_other_status(service: httpx2.Client) -> None:
    """Answers to reads, refusals and removals ignore the preference."""
    headers = {"prefer": "return=minimal"}
    path, note = create(service)
    assert service.get(path, headers=headers).json() == note
    assert service.get("/notes/?limit=1", headers=headers).status_code == 200
    assert service.post("/notes/", json={}, headers=headers).status_code == 422
    assert service.post("/notes/batch", json=[], headers=headers).status_code == 422
    assert service.patch(path, json={"text": 1}, headers=headers).status_code == 422
    stale = headers | {"if-match": '"old"'}
    assert service.put(path, json=NOTE, headers=stale).json() == {"detail": "Precondition Failed"}
    assert service.delete(path, headers=headers).status_code == 204
    assert service.put(path, json=NOTE, headers=headers).json() == NOT_FOUND


def test_a_new_note_is_located_behind_a_router(service: httpx2.Client) -> None:
    """The new note's URL has the scheme and the host of the client's request."""
    headers = {
        "prefer": "return=minimal",
        "host": "notes.example.org",
        "x-forwarded-proto": "https",
    }
    location = service.post("/notes/", json=NOTE, headers=headers).headers["location"]
    assert location.startswith("https://notes.example.org/notes/")
    assert location.rpartition("/")[2].isdecimal()


ALLOW = {
    "/": "GET, HEAD, OPTIONS",
    "/notes/": "GET, HEAD, OPTIONS, POST",
    "/notes/1": "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
    "/notes/9007199254740991": "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
    "/notes/batch": "OPTIONS, POST",
    "/docs": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", ALLOW)
def test_every_path_names_its_methods(service: httpx2.Client, path: str) -> None:
    """`OPTIONS` answers 204 with the methods, and another method 405 with the same."""
    answer = service.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == ALLOW[path]
    wrong = service.request("PURGE", path)
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
    assert wrong.headers["allow"] == ALLOW[path]


@pytest.mark.parametrize("path", ["/", "/notes/", "/notes/{id}", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(service: httpx2.Client, path: str) -> None:
    """`HEAD` has the status and the headers of `GET`, and no body.

    Nothing is compressed for it, so it has no length where `GET` is in gzip.
    """
    path = path.format(id=create(service)[1]["id"])
    head, get = service.head(path), service.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert get.status_code == (307 if path == "/" else 200)
    for headers in (head.headers, get.headers):
        headers.pop("date", None)
        headers.pop("x-request-id")
    if get.headers.get("content-encoding") == "gzip":
        del get.headers["content-length"]
    assert head.headers.multi_items() == get.headers.multi_items()
