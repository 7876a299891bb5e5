"""Filters: notes that are completed or not, and notes whose text contains another."""

from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from tests.support import databases
from tests.support.notes import follow

Note = dict[str, Any]


def create(service: httpx2.Client, *texts: str, completed: bool = False) -> list[Note]:
    answer = service.post(
        "/notes/batch", json=[{"text": text, "completed": completed} for text in texts]
    )
    assert answer.status_code == 200
    notes: list[Note] = answer.json()
    return notes


def find(service: httpx2.Client, **parameters: str) -> list[Note]:
    """The notes of a listing, of all its pages where it has a limit."""
    answers = follow(service, f"/notes/?{urlencode(parameters)}")
    return [note for answer in answers for note in answer.json()]


def texts_of(notes: list[Note]) -> list[str]:
    return [note["text"] for note in notes]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["1", "on", "t", "true", "y", "yes", "TRUE", "Yes"], ["b", "d"]),
        (["0", "off", "f", "false", "n", "no", "FALSE", "No"], ["a", "c"]),
    ],
)
def test_completed_takes_the_words_of_fastapi(
    service: httpx2.Client, words: list[str], wanted: list[str]
) -> None:
    """Each word that means a boolean selects the notes that have it, in either order."""
    for text in "abcd":
        create(service, text, completed=text in "bd")
    for word in words:
        assert texts_of(find(service, completed=word)) == wanted
        assert texts_of(find(service, completed=word, order="desc")) == wanted[::-1]
        assert texts_of(find(service, completed=word, limit="1")) == wanted


FOLDED = [
    ("straße", ["STRASSE", "ß", "ẞ", "ss", "SS", "\u017fs", "aß", "asse"], ["\u017f\u017f\u017f"]),
    ("STRASSE", ["straße", "ß", "\u017f"], ["Z"]),
    ("\u1e9e", ["ss", "ß", "S"], ["sss"]),
    ("Приве́т, МИР", ["привет".upper()[:5], "мир", "МиР", "е\u0301"], ["мирт"]),
    ("ΌΣΟΣ", ["όσος", "οσοσ".replace("ο", "ό", 1), "ς", "σ", "Σ"], ["οσ ος"]),
    ("\u0130", ["i", "I", "i\u0307", "\u0307", "\u0130"], ["\u0131"]),
    ("I", ["i", "I"], ["\u0130", "\u0131"]),
    ("\u212a\u212b", ["k", "K", "kå", "KÅ", "\u212a"], ["ka"]),
    ("k", ["\u212a"], ["c"]),
    ("\ufb03", ["ffi", "FFI", "fi", "\ufb01"], ["fii"]),
    ("\u0149", ["n", "\u02bcN"], ["\u02bcM"]),
    ("é", ["É", "\u00c9"], ["e", "e\u0301"]),
    ("\U00010400", ["\U00010428"], ["\U00010429"]),
    ("\u13a0\uab70", ["\u13a0", "\uab70"], ["\u13a1"]),
    ("100% _a\\b'\"c", ["0%", "% _", "%", "_", "\\", "a\\B", "'", '"C', "_A\\"], ["%%", "\\\\"]),
    (
        "ab",
        ["a", "B", "AB"],
        ["%", "_", "a%", "_b", "a_", "a\\b", "\\", "*", "?", "[a]", "a.", " "],
    ),
    ("a b\tc\nd\u00a0e", ["A B", "\t", "\n", " ", "c\nD", "\u00a0"], ["  ", "a\u00a0b", "\r"]),
    ("", [""], ["a", " "]),
]


@pytest.mark.parametrize(("text", "hits", "misses"), FOLDED)
def test_texts_are_compared_without_case(
    service: httpx2.Client, text: str, hits: list[str], misses: list[str]
) -> None:
    """A search compares case-folded texts, with signs and spaces as they are."""
    (note,) = create(service, text)
    for q in hits:
        assert find(service, q=q) == [note], ascii(q)
    for q in misses:
        assert find(service, q=q) == [], ascii(q)


def test_the_filter_follows_changes(service: httpx2.Client) -> None:
    """A note is found by its present text, after any kind of write."""
    (note,) = create(service, "Straße")
    path = f"/notes/{note['id']}"
    service.put(path, json={"text": "Gasse", "completed": False})
    assert find(service, q="SSE") == [service.get(path).json()]
    assert find(service, q="stra") == []
    service.patch(path, json={"text": "ΓΑΣ"})
    assert len(find(service, q="γας")) == 1
    assert find(service, q="gasse") == []
    service.patch(path, json={"completed": True})
    assert len(find(service, q="γας", completed="true")) == 1
    service.patch(path, json={})
    assert len(find(service, q="γας", completed="true")) == 1
    service.patch(path, json={"text": "plain"})
    assert find(service, q="γας") == []
    assert len(find(service, q="PLAIN")) == 1
    service.delete(path)
    assert find(service, q="plain") == []


def test_notes_from_outside_are_found(server: Server, service: httpx2.Client) -> None:
    """A note that was stored by plain SQL, in ASCII, is found as any other."""
    databases.execute(
        server.database_url,
        "INSERT INTO notes (text, completed) VALUES ('From 100% OUTSIDE_', true)",
    )
    for q in ("outside", "FROM", "% o", "e_"):
        assert texts_of(find(service, q=q, completed="true")) == ["From 100% OUTSIDE_"]
        assert find(service, q=q, completed="false") == []
    assert find(service, q="from_") == []


def test_nul_is_in_no_text(service: httpx2.Client) -> None:
    """A `q` with a NUL is 422, as a text with one is."""
    answer = service.get("/notes/?q=a%00b")
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {
            "type": "string_nul",
            "loc": ["query", "q"],
            "msg": "Input should be a valid string without NUL characters",
            "input": "a\0b",
        }
    ]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_rare_notes_are_full(service: httpx2.Client, order: str) -> None:
    """A page has `limit` of the selected notes, with any number of others between them."""
    for number in range(3):
        create(service, *["hay"] * 999, f"Nädel {number}")
    create(service, *["hay"] * 500)
    create(service, "nÄDEL 3", completed=True)
    wanted = [f"Nädel {number}" for number in range(3)] + ["nÄDEL 3"]
    if order == "desc":
        wanted.reverse()
    first = service.get(f"/notes/?q=nädel&limit=2&order={order}")
    second = service.get(first.links["next"]["url"])
    assert [texts_of(first.json()), texts_of(second.json())] == [wanted[:2], wanted[2:]]
    assert "link" not in second.headers
    assert texts_of(find(service, q="nädel", order=order)) == wanted
    assert texts_of(find(service, q="NÄDEL", completed="1", order=order)) == ["nÄDEL 3"]
    assert len(find(service, q="ha", order=order, limit="1000")) == 3497


alphabet = st.sampled_from(
    "sSßẞ\u017fkK\u212aiI\u0130\u0131\u0307σςΣеЕжЖ%_\\'\"aAéÉe\u0301\ufb01fF\u0149\u02bcnN"
    "\u0345\u03b9\u1fb3 *?\n\U00010400\U00010428\u2028,&+#"
)
any_text = st.text(st.characters(exclude_characters="\0"), max_size=5)
texts = st.text(alphabet, max_size=6) | any_text
needles = st.text(alphabet, max_size=2) | any_text
entries = st.fixed_dictionaries({"text": texts, "completed": st.booleans()})


@settings(max_examples=30)
@example(
    entries=[{"text": "a", "completed": True}], qs=[""], completed=None, order="asc", limit=None
)
@given(
    entries=st.lists(entries, min_size=1, max_size=8),
    qs=st.lists(needles, min_size=1, max_size=4),
    completed=st.none() | st.booleans(),
    order=st.sampled_from(["asc", "desc"]),
    limit=st.none() | st.integers(1, 4),
)
def test_filters_select_as_python_does(
    server: Server,
    entries: list[Note],
    qs: list[str],
    completed: bool | None,
    order: str,
    limit: int | None,
) -> None:
    """Filters, order and limit select the same notes as the conditions in Python."""
    databases.execute(server.database_url, "DELETE FROM notes")
    service = server.client
    notes = service.post("/notes/batch", json=entries).json()
    # What is contained for certain, in another case.
    qs = [*qs, entries[0]["text"][1:3].swapcase()]
    for q in qs:
        parameters = {"q": q, "order": order}
        if completed is not None:
            parameters["completed"] = str(completed)
        if limit is not None:
            parameters["limit"] = str(limit)
        wanted = [
            note
            for note in notes
            if q.casefold() in note["text"].casefold() and completed in (None, note["completed"])
        ]
        if order == "desc":
            wanted.reverse()
        assert find(service, **parameters) == wanted


changes = st.fixed_dictionaries({}, optional={"text": texts, "completed": st.booleans()})


@settings(max_examples=40)
@given(first=entries, writes=st.lists(entries | changes, max_size=4), q=needles)
def test_any_changes_are_found(server: Server, first: Note, writes: list[Note], q: str) -> None:
    """After any changes a note is found by its present text and boolean."""
    service = server.client
    note = service.post("/notes/", json=first).json()
    for change in writes:
        method = "PUT" if len(change) == 2 else "PATCH"
        answer = service.request(method, f"/notes/{note['id']}", json=change)
        note |= change
        assert answer.json() == note
        last = {"order": "desc", "limit": "1"}
        for wanted in (q, note["text"].swapcase()):
            contains = wanted.casefold() in note["text"].casefold()
            url = f"/notes/?{urlencode({'q': wanted, 'completed': note['completed']} | last)}"
            assert (note in service.get(url).json()) == contains
    opposite = {"completed": str(not note["completed"]), "after": str(note["id"] - 1)}
    assert find(service, **opposite) == []
