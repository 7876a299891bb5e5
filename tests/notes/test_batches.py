"""Batches: many notes with one request, all of them or none."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from tests.conftest import Server
from tests.support.notes import known, last_id, plain_text, values

JSON = {"content-type": "application/json"}


class NoteIn(BaseModel):
    """A note as FastAPI reads it."""

    text: str
    completed: bool


oracle = FastAPI()


@oracle.post("/notes/batch")
async def create_notes(
    notes: Annotated[list[NoteIn], Field(min_length=1, max_length=1000)],
) -> list[NoteIn]:
    """A batch as FastAPI reads it."""
    return notes


@pytest.fixture(scope="module")
def twin() -> Iterator[TestClient]:
    """A client of the oracle."""
    with TestClient(oracle, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def service(server: Server) -> httpx2.Client:
    """A client of the service, which other tests of the module have stored notes with."""
    return server.client


def note(number: int) -> dict[str, Any]:
    return {"text": f"{number}", "completed": number % 3 == 0}


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_a_batch_is_stored_in_its_order(service: httpx2.Client, count: int) -> None:
    """The answer and the listing have the notes in the order sent, with rising ids."""
    before = last_id(service)
    # Neither their texts nor anything else about them puts them in order.
    notes = [note(number * 7919 % count) for number in range(count)]
    answer = service.post("/notes/batch", json=notes)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    stored = answer.json()
    assert [list(item) for item in known(stored)] == [["id", "text", "completed"]] * count
    assert [{name: item[name] for name in ("text", "completed")} for item in stored] == notes
    assert [item["id"] for item in stored] == sorted({item["id"] for item in stored})
    assert service.get(f"/notes/?after={before}").json() == stored


GOOD = {"text": "a", "completed": True}
BODIES: list[Any] = [
    [],
    {},
    GOOD,
    {"notes": [GOOD]},
    {"0": GOOD},
    None,
    1,
    1.5,
    True,
    "text",
    "[]",
    [None],
    [[]],
    [[GOOD]],
    [GOOD, 1, GOOD, "x", {}],
    [{}, {"text": 1}, {"completed": "maybe"}, {"text": None, "completed": None}],
    [GOOD] * 999 + [{}],
    [GOOD] * 1001,
    [GOOD] * 1000 + [{}],
    [{}] * 1000,
    [{}] * 1001,
    [GOOD] * 2500,
    [1] * 1001,
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_errors_are_those_of_fastapi(
    service: httpx2.Client, twin: TestClient, body: object
) -> None:
    """All errors of an array are reported at once, in FastAPI's words. Nothing is stored."""
    before = last_id(service)
    mine, theirs = (client.post("/notes/batch", json=body) for client in (service, twin))
    assert (mine.status_code, mine.content) == (422, theirs.content)
    assert last_id(service) == before


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"[", "application/json"),
        (b'[{"text":"a","completed":true},]', "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 25_000, "application/json"),
        (b'[{"text":"a","completed":true}]', "text/plain"),
        (b'[{"text":"a","completed":true}]', ""),
    ],
)
def test_bodies_that_are_no_json(
    service: httpx2.Client, twin: TestClient, body: bytes, content_type: str
) -> None:
    """A body that can't be read is refused as for a single note."""
    headers = {"content-type": content_type}
    before = last_id(service)
    mine, theirs = (
        client.post("/notes/batch", content=body, headers=headers) for client in (service, twin)
    )
    assert (mine.status_code, mine.content) == (theirs.status_code, theirs.content)
    assert mine.is_client_error
    assert last_id(service) == before


@pytest.mark.parametrize(
    ("item", "errors"),
    [
        (b'{"text":"a\\u0000","completed":true}', [("string_nul", "text", "a\0")]),
        (b'{"text":"\\ud800","completed":true}', [("string_unicode", "text", "\ufffd")]),
        (
            b'{"text":NaN,"completed":Infinity}',
            [("string_type", "text", None), ("bool_type", "completed", None)],
        ),
    ],
)
def test_what_the_example_fails_on(
    service: httpx2.Client, item: bytes, errors: list[tuple[str, str, object]]
) -> None:
    """NUL, lone surrogates and NaN are errors of the item, as for a single note."""
    before = last_id(service)
    body = b'[{"text":"a","completed":true},%s]' % item
    answer = service.post("/notes/batch", content=body, headers=JSON)
    assert answer.status_code == 422
    assert [(error["type"], error["loc"], error["input"]) for error in answer.json()["detail"]] == [
        (kind, ["body", 1, field], value) for kind, field, value in errors
    ]
    assert last_id(service) == before


def test_bodies_over_the_limit(service: httpx2.Client) -> None:
    """A batch over MAX_BODY_BYTES is 413, and nothing of it is stored."""
    before = last_id(service)
    answer = service.post(
        "/notes/batch", json=[{"text": "a" * 1_100, "completed": True} for _ in range(1000)]
    )
    assert (answer.status_code, answer.json()) == (413, {"detail": "Content Too Large"})
    assert last_id(service) == before


def test_only_post_makes_batches(service: httpx2.Client) -> None:
    """Any method but POST is refused, as no note has the id `batch`."""
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "PURGE"):
        assert service.request(method, "/notes/batch", json=[GOOD]).status_code in (404, 405)


def test_no_batch_is_torn(service: httpx2.Client) -> None:
    """Notes stored before and after a batch don't come between its notes."""
    seen: set[int] = set()
    for count in (3, 1, 5):
        stored = service.post("/notes/batch", json=[note(number) for number in range(count)]).json()
        single = service.post("/notes/", json=GOOD).json()
        ids = [item["id"] for item in stored] + [single["id"]]
        assert ids == sorted(ids)
        assert seen.isdisjoint(ids)
        seen.update(ids)


valid = st.fixed_dictionaries({"text": plain_text, "completed": st.booleans()})
nearly = st.fixed_dictionaries(
    {}, optional={"text": plain_text | values, "completed": st.booleans() | values, "x": values}
)
batches = (
    st.lists(valid, max_size=5)
    | st.lists(valid | nearly, max_size=5)
    | st.lists(nearly | values, max_size=4)
    | values
)


@settings(max_examples=70)
@given(body=batches, cut=st.just(None) | st.none() | st.integers(0, 60))
def test_random_batches_are_answered_alike(
    service: httpx2.Client, twin: TestClient, body: object, cut: int | None
) -> None:
    """Any array, whole or cut off, is taken or refused as by FastAPI."""
    content = json.dumps(body)[:cut].encode()
    before = last_id(service)
    mine, theirs = (
        client.post("/notes/batch", content=content, headers=JSON) for client in (service, twin)
    )
    assert mine.status_code == theirs.status_code
    if mine.status_code == 200:
        stored = mine.json()
        assert service.get(f"/notes/?after={before}").json() == stored
        assert [item.pop("id") > before for item in stored] == [True] * len(stored)
        assert stored == theirs.json()
        return
    assert mine.content == theirs.content
    assert last_id(service) == before
