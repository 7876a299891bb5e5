"""Data that other programs have written into the SQLite file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.databases import NewDatabase, execute
from tests.support.notes import known
from tests.support.servers import serving

# A text as SQL has it, and as clients see it.
TEXTS = {
    "CAST(x'ff6162' AS TEXT)": "\ufffdab",
    "CAST(x'61ed' AS TEXT)": "a\ufffd",
    "CAST(x'eda080' AS TEXT)": "\ufffd\ufffd\ufffd",  # a lone surrogate
    "CAST(x'610062' AS TEXT)": "a\0b",
    "x'ff6163'": "\ufffdac",
}


@pytest.fixture
def foreign(new_database: NewDatabase, tmp_path: Path) -> Iterator[tuple[httpx2.Client, str]]:
    """A service on a file with those texts between two good notes."""
    url = new_database("sqlite")
    texts = ["'good'", *TEXTS, "'better'"]
    execute(url, *(f"INSERT INTO notes (text, completed) VALUES ({text}, 1)" for text in texts))
    with serving(url, tmp_path / "log", ACCESS_CACHE_SECONDS="0") as client:
        yield client, url


EXPECTED: list[dict[str, Any]] = [
    {"id": number, "text": text, "completed": True}
    for number, text in enumerate(["good", *TEXTS.values(), "better"], 1)
]
FOREIGN_IDS = range(2, 2 + len(TEXTS))


def test_listings(foreign: tuple[httpx2.Client, str]) -> None:
    """Bytes that are no UTF-8 are shown as U+FFFD, in listings, pages and single notes."""
    client, _ = foreign
    assert known(client.get("/notes/").json()) == EXPECTED
    descending = client.get("/notes/?order=desc&completed=true").json()
    assert known(descending) == EXPECTED[::-1]
    lines = client.get("/notes/", headers={"accept": "application/x-ndjson"}).text
    assert lines.count("\n") == len(EXPECTED)
    for note in EXPECTED:
        assert known(client.get(f"/notes/{note['id']}").json()) == note
        assert known(client.get(f"/notes/?limit=1&after={note['id'] - 1}").json()) == [note]
    assert [note["text"] for note in client.get("/notes/?q=AB").json()] == ["\ufffdab"]
    assert [note["text"] for note in client.get("/notes/?q=b").json()] == [
        *("\ufffdab", "a\0b", "better"),
    ]


def test_writes(foreign: tuple[httpx2.Client, str]) -> None:
    """Such a note is changed and deleted as any other, under conditions too."""
    for note_id in FOREIGN_IDS:
        check_writes(*foreign, note_id)


def check_writes(client: httpx2.Client, url: str, note_id: int) -> None:
    path = f"/notes/{note_id}"
    tag = client.get(path).headers["etag"]
    assert client.get(path, headers={"if-none-match": tag}).status_code == 304
    other = {"if-match": '"other"'}
    assert client.delete(path, headers=other).status_code == 412
    kept = execute(url, f"SELECT CAST(text AS BLOB) FROM notes WHERE id = {note_id}")

    changed = client.patch(path, json={"completed": False}, headers={"if-match": tag})
    assert known(changed.json()) == EXPECTED[note_id - 1] | {"completed": False}
    assert execute(url, f"SELECT CAST(text AS BLOB) FROM notes WHERE id = {note_id}") == kept
    assert client.delete(path, headers={"if-match": tag}).status_code == 412
    plain = client.patch(path, json={"completed": True})
    assert plain.headers["etag"] == tag

    note = {"text": "\ufffd mended", "completed": True}
    replaced = client.put(path, json=note, headers={"if-match": tag})
    assert known(replaced.json()) == {"id": note_id, **note}
    tag = replaced.headers["etag"]
    assert client.delete(path, headers={"if-match": tag}).status_code == 204
    assert client.get(path).status_code == 404


def test_a_condition_sees_other_programs(foreign: tuple[httpx2.Client, str]) -> None:
    """A condition fails after another program has changed the note."""
    client, url = foreign
    for note_id in FOREIGN_IDS:
        path = f"/notes/{note_id}"
        tag = client.get(path).headers["etag"]
        execute(url, f"UPDATE notes SET text = CAST(x'ffff' AS TEXT) WHERE id = {note_id}")
        assert client.put(path, json=EXPECTED[0], headers={"if-match": tag}).status_code == 412
        assert client.get(path).json()["text"] == "\ufffd\ufffd"


def test_keys(foreign: tuple[httpx2.Client, str]) -> None:
    """A kept answer is given again though another program has made it no UTF-8."""
    client, url = foreign
    headers = {"idempotency-key": "a"}
    note = {"text": "kept", "completed": True}
    assert client.post("/notes/", json=note, headers=headers).status_code == 200
    execute(
        url,
        "UPDATE idempotency_keys SET response ="
        " CAST(replace(CAST(response AS TEXT), 'kept', CAST(x'ff' AS TEXT)) AS TEXT)",
    )
    assert client.post("/notes/", json=note, headers=headers).json()["text"] == "\ufffd"
