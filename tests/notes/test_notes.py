"""One note by its id."""

import httpx2
import pytest


def test_a_note_is_read_back(service: httpx2.Client) -> None:
    """`GET /notes/{id}` answers with the note that was created, to the byte."""
    created = service.post("/notes/", json={"text": "é \u2028", "completed": False})
    answer = service.get(f"/notes/{created.json()['id']}")
    assert (answer.status_code, answer.content) == (200, created.content)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "note_id",
    ["0", "2", "01", "-1", "+1", "1.0", "1e0", "%201", "a", "²", "9007199254740992", "9" * 5000],
)
def test_no_such_note(service: httpx2.Client, note_id: str) -> None:
    """An id that is not there, out of range or no integer is 404."""
    service.post("/notes/", json={"text": "a", "completed": False})
    answer = service.get(f"/notes/{note_id}")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
