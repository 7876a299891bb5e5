"""The notes of the benchmark, and the check that every contender answers the same."""

import json
from http.client import HTTPConnection, HTTPException
from typing import Any

Note = dict[str, Any]

NEW_NOTE: Note = {"text": 'Café "Zürich" \\ 1\n\u2028 \U0001f950', "completed": True}


def make_note(number: int) -> Note:
    """Returns a note; every tenth has characters that JSON escapes or that are not ASCII."""
    errand = 'café "Zürich"' if number % 10 == 0 else "buy milk and bread"
    return {"id": number, "text": f"Note {number}: {errand}", "completed": number % 3 == 0}


def make_notes(count: int) -> list[Note]:
    return [make_note(number) for number in range(1, count + 1)]


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Sends one request and returns the answer's status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def set_constants(port: int, count: int) -> None:
    """Gives the constant contender the bodies that the others make of the table."""
    bodies = {
        "list": make_notes(count),
        "note": make_note(1),
        "created": {"id": count + 1, **NEW_NOTE},
    }
    for kind, body in bodies.items():
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        status, _ = ask(port, "PUT", f"/bodies/{kind}", text.encode())
        if status != 204:
            raise SystemExit(f"The constant bodies can't be set: {status}")


def find_difference(port: int, count: int, kinds: tuple[str, ...]) -> str:
    """Returns how a contender's answers differ from the notes in the table, or nothing.

    Creating leaves a note more in the table.
    """
    requests = {
        "list": ("GET", "/notes/", None),
        "one": ("GET", "/notes/1", None),
        "create": ("POST", "/notes/", json.dumps(NEW_NOTE).encode()),
    }
    expected = {"list": make_notes(count), "one": make_note(1)}
    for kind in kinds:
        method, path, body = requests[kind]
        try:
            status, answer = ask(port, method, path, body)
            content = json.loads(answer)
        except (OSError, HTTPException, ValueError) as error:
            return f"{method} {path}: {error!r}"
        right = is_new_note(content) if kind == "create" else content == expected[kind]
        if status != 200 or not right:
            return f"{method} {path} answers {status} {answer[:200]!r}"
    return ""


def is_new_note(answer: Any) -> bool:
    return (
        isinstance(answer, dict)
        and type(answer.get("id")) is int
        and answer == {"id": answer["id"], **NEW_NOTE}
    )
