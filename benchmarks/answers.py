"""The notes of the benchmark, what is asked of them, and which answers are right."""

import json
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from random import Random
from typing import Any, NamedTuple

Note = dict[str, Any]

# What is created under load, and what before it, to see whether it comes back as it went.
NEW_NOTE: Note = {"text": "Note 0: buy milk, eggs and bread", "completed": False}
SPECIAL_NOTE: Note = {"text": 'Café "Zürich" \\ 1\n\u2028 \U0001f950', "completed": True}
PAGE = 20


class Exchange(NamedTuple):
    """A request, and what the body of its answer begins and ends with."""

    method: str
    path: str
    body: bytes
    start: bytes
    end: bytes = b""
    length: int = 0
    """That of a body between whose start and end notes may have changed."""

    def is_answered_by(self, answer: bytes, growing: bool) -> bool:
        """Tells whether an answer is right; `growing` allows for notes that are being created."""
        if not self.end:
            return answer == self.start
        known = self.length or len(self.start) + len(self.end)
        whole = len(answer) == known or (growing and len(answer) > known)
        return whole and answer.startswith(self.start) and answer.endswith(self.end)


def make_note(number: int) -> Note:
    """Returns a note; every tenth has characters that JSON escapes or that are not ASCII."""
    matter = 'café "Zürich"' if number % 10 == 0 else "buy milk and bread"
    return {"id": number, "text": f"Note {number}: {matter}", "completed": number % 3 == 0}


def make_notes(count: int) -> list[Note]:
    return [make_note(number) for number in range(1, count + 1)]


def make_changed(number: int) -> Note:
    """Returns a note that has changed: its JSON is as long, so that answers can be checked."""
    note = make_note(number)
    return {**note, "text": note["text"].replace("Note", "Memo")}


def to_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def make_exchange(
    kind: str, notes: Sequence[bytes], ids: int, random: Random, new: Note = NEW_NOTE
) -> Exchange:
    """Returns a request of a kind to a table of such notes, each as JSON."""
    if kind == "create":
        body = to_json(new)
        return Exchange("POST", "/notes/", body, b'{"id":', b"," + body[1:])
    if kind == "one":
        number = random.randint(1, ids)
        return Exchange("GET", f"/notes/{number}", b"", notes[number - 1])
    if kind == "page":
        after = random.randint(0, len(notes) - PAGE)
        page = b"[" + b",".join(notes[after : after + PAGE]) + b"]"
        return Exchange("GET", f"/notes/?limit={PAGE}&after={after}", b"", page)
    if kind == "search":
        number = random.randint(1, len(notes))
        return Exchange(
            "GET", f"/notes/?q=note%20{number}%3A", b"", b"[" + notes[number - 1] + b"]"
        )
    body = b"[" + b",".join(notes) + b"]"
    if kind == "changing":
        return Exchange("GET", "/notes/", b"", b'[{"id":', b"}]", len(body))
    return Exchange("GET", "/notes/", b"", body[:-1], body[-1:])


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Sends one request and returns the answer's status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        types = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, types | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def set_constants(port: int, count: int, new: Note) -> None:
    """Gives the constant contender the bodies that the others make of the table."""
    bodies = {
        "list": make_notes(count),
        "note": make_note(1),
        "created": {"id": count + 1, **new},
    }
    for kind, body in bodies.items():
        status, _ = ask(port, "PUT", f"/bodies/{kind}", to_json(body))
        if status != 204:
            raise SystemExit(f"The constant bodies can't be set: {status}")


def find_difference(
    port: int, headers: dict[str, str], count: int, ids: int, kinds: Sequence[str]
) -> str:
    """Returns how a contender's answers differ from the notes in the table, or nothing.

    Creating leaves a note more in the table. Nothing changes yet.
    """
    notes = [to_json(note) for note in make_notes(count)]
    for kind in dict.fromkeys("list" if kind == "changing" else kind for kind in kinds):
        exchange = make_exchange(kind, notes, ids, Random(1), SPECIAL_NOTE)
        method, path = exchange.method, exchange.path
        try:
            status, answer = ask(port, method, path, exchange.body, headers)
            json.loads(answer)
        except (OSError, HTTPException, ValueError) as error:
            return f"{method} {path}: {error!r}"
        if status != 200 or not exchange.is_answered_by(answer, growing=kind == "create"):
            return f"{method} {path} answers {status} {answer[:200]!r}"
    return ""
