"""Notes as newline-delimited JSON, out of one database and into another."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import databases
from tests.support.databases import KINDS
from tests.support.metrics import metric
from tests.support.notes import last_id
from tests.support.servers import serving

LINES = "application/x-ndjson"
GOOD = {"text": "a", "completed": True}


class Both(NamedTuple):
    """The service on a database, and on one of another kind."""

    source: httpx2.Client
    target: httpx2.Client


@pytest.fixture(scope="module")
def clients(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx2.Client]]:
    """Clients of the service, by the kind of its database."""
    logs = tmp_path_factory.mktemp("export")
    with ExitStack() as stack:
        made = {}
        for kind in KINDS:
            log = logs / f"{kind}.log"
            made[kind] = stack.enter_context(serving(new_database(kind), log))
        yield made


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, clients: dict[str, httpx2.Client]) -> Both:
    """The service on each kind in turn, beside the next."""
    other = KINDS.index(request.param) - 1
    return Both(clients[request.param], clients[KINDS[other]])


@pytest.fixture(scope="module")
def service(both: Both) -> httpx2.Client:
    """A client of the service on each kind in turn."""
    return both.source


def export(client: httpx2.Client, query: str = "") -> list[bytes]:
    """The lines of an export, without their ends."""
    answer = client.get(f"/notes/?{query}", headers={"accept": LINES})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == LINES
    if not answer.content:
        return []
    assert answer.content.endswith(b"\n")
    return answer.content[:-1].split(b"\n")


def post_lines(
    client: httpx2.Client, body: bytes, content_type: str = LINES, accept: str = "*/*"
) -> httpx2.Response:
    headers = {"content-type": content_type, "accept": accept}
    return client.post("/notes/batch", content=body, headers=headers)


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 3000])
def test_any_number_of_notes_is_exported(service: httpx2.Client, count: int) -> None:
    """Each note is one line of JSON, in the order and words of the list."""
    before = last_id(service)
    for first in range(0, count, 1000):
        notes = [
            {"text": f"\u2028 {number}\n\x85", "completed": number % 2 == 0}
            for number in range(first, min(first + 1000, count))
        ]
        assert service.post("/notes/batch", json=notes).status_code == 200
    for query in (f"after={before}", f"after={before}&completed=true&q=1", "order=desc&after=0"):
        listed = service.get(f"/notes/?{query}").json()
        lines = export(service, query)
        assert [json.loads(line) for line in lines] == listed
        assert all(line.startswith(b'{"id":') for line in lines)
    assert len(export(service, f"after={before}")) == count


def test_pages_are_exported(service: httpx2.Client) -> None:
    """Filters, limits and links are those of the listing in JSON."""
    before = last_id(service)
    service.post("/notes/batch", json=[{"text": "É", "completed": True}] * 5)
    url = f"/notes/?after={before}&limit=2&q=é&completed=on"
    counts: list[int] = []
    while url and len(counts) < 4:
        answers = [service.get(url, headers={"accept": kind}) for kind in (LINES, "*/*")]
        lines, listed = answers
        assert [json.loads(line) for line in lines.text.splitlines()] == listed.json()
        assert lines.headers.get("link") == listed.headers.get("link")
        counts.append(len(listed.json()))
        url = listed.links["next"]["url"] if "link" in listed.headers else ""
    assert counts == [2, 2, 1]


def test_head_of_an_export(service: httpx2.Client) -> None:
    """`HEAD` of an export has the headers of `GET` and no body."""
    service.post("/notes/", json=GOOD)
    for query in ("?limit=1", "?limit=1&order=desc", "?after=9007199254740991", ""):
        head, get = (
            service.request(method, f"/notes/{query}", headers={"accept": LINES})
            for method in ("HEAD", "GET")
        )
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "link"):
            assert head.headers.get(name) == get.headers.get(name)


def test_head_of_an_export_reads_one_page(service: httpx2.Client) -> None:
    """`HEAD` of an export of many pages asks the database for the first of them only."""

    def queries() -> float:
        return metric(service, "coalesced_batch_size_count", query="list_notes")

    for _ in range(2):
        assert service.post("/notes/batch", json=[GOOD] * 1000).status_code == 200
    after = last_id(service) - 2000
    for method, pages in (("HEAD", 1), ("GET", 2)):
        before = queries()
        answer = service.request(method, f"/notes/?after={after}", headers={"accept": LINES})
        assert answer.status_code == 200
        assert queries() - before == pages


def test_errors_stay_json(service: httpx2.Client) -> None:
    """An error is JSON under any `Accept`."""
    for method, url in [("GET", "/notes/?limit=0"), ("GET", "/notes/x"), ("PUT", "/notes/")]:
        answer = service.request(method, url, headers={"accept": LINES})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        (["application/x-ndjson"], True),
        (["Application/X-NDJSON"], True),
        (["application/x-ndjson;q=0.001"], True),
        (["application/x-ndjson ; q=0.5"], True),
        (["application/x-ndjson;Q=1.000"], True),
        (["application/x-ndjson;charset=utf-8"], True),
        (["application/x-ndjson, */*"], True),
        (["application/x-ndjson;q=0.5, application/*;q=0.4, */*"], True),
        (["application/json;q=0.2, application/x-ndjson;q=0.5, */*"], True),
        (["application/x-ndjson;q=0.1, */*;q=0.9, text/html"], False),
        (["application/x-ndjson;q=0.5, application/*"], False),
        (["application/json;q=0.5, application/x-ndjson"], True),
        (["application/json;q=0.5,application/x-ndjson;q=0.51"], True),
        (["application/json;q=0, application/x-ndjson;q=0.1"], True),
        (["text/html", "application/x-ndjson"], True),
        ([",, application/x-ndjson ,"], True),
        (["application/x-ndjson;q=0"], False),
        (["application/x-ndjson;q=0.000"], False),
        (["application/x-ndjson; a=b; q=0"], False),
        (["application/x-ndjson, application/json"], False),
        (["application/json, application/x-ndjson"], False),
        (["application/json", "application/x-ndjson"], False),
        (["application/x-ndjson;q=0.5, application/json;q=0.6"], False),
        (["application/x-ndjson;q=0.5, APPLICATION/JSON;q=0.5"], False),
        (["application/x-ndjson;q=0.9, application/json"], False),
        (["*/*"], False),
        (["application/*"], False),
        (["application/json"], False),
        (["text/html"], False),
        ([""], False),
        (["application/ndjson"], False),
        (["application/x-ndjsonx"], False),
        (["x application/x-ndjson"], False),
        (["application/x-ndjson x"], False),
        (["application / x-ndjson"], False),
        (["application/x-ndjson;q=x"], False),
        (["application/x-ndjson;q=-1"], False),
        (["application/x-ndjson;q=2"], False),
        (["application/x-ndjson;q=1.5"], False),
        (["application/x-ndjson;q=nan"], False),
        (["application/x-ndjson;q=inf"], False),
        (["application/x-ndjson;q=1e0"], False),
        (['text/html;a="application/x-ndjson"'], False),
        (['text/html;a=", application/x-ndjson"'], False),
        (["\xe9\xff;;;===,,,"], False),
        (["," * 20_000], False),
        (["application/x-ndjson;q=" + "0" * 20_000], False),
    ],
)
def test_only_who_asks_for_lines_gets_them(
    service: httpx2.Client, accept: list[str], lines: bool
) -> None:
    """A client gets lines if it prefers them by name. All others get JSON."""
    headers = [(b"accept", value.encode("latin-1")) for value in accept]
    kind = LINES if lines else "application/json"
    answers = [
        service.get("/notes/?limit=1", headers=headers),
        service.head("/notes/?limit=1", headers=headers),
        service.post("/notes/batch", headers=headers, json=[GOOD]),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.headers["content-type"] for answer in answers] == [kind] * 3


def test_one_note_is_json(service: httpx2.Client) -> None:
    """A single note is JSON, also for a client that asks for lines."""
    created = service.post("/notes/", json=GOOD, headers={"accept": LINES})
    read = service.get(f"/notes/{created.json()['id']}", headers={"accept": LINES})
    for answer in (created, read):
        assert answer.headers["content-type"] == "application/json"


@settings(max_examples=30)
@given(
    accept=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30).filter(
        lambda accept: "ndjson" not in accept.lower()
    )
)
def test_garbage_gets_json(service: httpx2.Client, accept: str) -> None:
    """A malformed `Accept` is answered with JSON."""
    # The client refuses to send a value with space around it.
    value = accept.strip(" ").encode("latin-1")
    answer = service.get("/notes/?limit=1", headers=[(b"accept", value)])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(
    "content_type", [LINES, "Application/X-NDJSON", f"{LINES}; charset=utf-8", f"{LINES} ;"]
)
def test_lines_are_imported(service: httpx2.Client, content_type: str) -> None:
    """Notes are read line by line, without blank lines, and answered as JSON by default."""
    before = last_id(service)
    body = (
        b'\n \r\n{"completed":"on","text":"\xe2\x80\xa8\xc2\x85"}\r\n\n\t\n'
        b'{"id":1,"text":"b\\n",\r"completed":0}\n {"text":"","completed":true} '
    )
    answer = post_lines(service, body, content_type)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    notes = answer.json()
    assert [(note["text"], note["completed"]) for note in notes] == [
        ("\u2028\x85", True),
        ("b\n", False),
        ("", True),
    ]
    assert service.get(f"/notes/?after={before}").json() == notes

    again = post_lines(service, body, content_type, LINES)
    assert again.headers["content-type"] == LINES
    after = notes[-1]["id"]
    assert again.content.splitlines(keepends=True) == [
        line + b"\n" for line in export(service, f"after={after}")
    ]
    minimal = service.post(
        "/notes/batch",
        content=body,
        headers={"content-type": content_type, "prefer": "return=minimal", "accept": LINES},
    )
    assert (minimal.status_code, minimal.content) == (204, b"")


def test_json_is_imported_to_lines(service: httpx2.Client) -> None:
    """An array of JSON is answered in lines if the client asks for them."""
    answer = service.post("/notes/batch", json=[GOOD] * 2, headers={"accept": LINES})
    assert answer.headers["content-type"] == LINES
    assert [json.loads(line)["text"] for line in answer.text.splitlines()] == ["a", "a"]


LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("body", "loc", "message"),
    [
        (b"{", ["body", 0, 1], "Expecting property name enclosed in double quotes"),
        (LINE + b"\n" + LINE + b"\nnul", ["body", 2, 0], "Expecting value"),
        (LINE + b"\n" + LINE + b"x\n" + LINE, ["body", 1, len(LINE)], "Extra data"),
        (LINE + LINE, ["body", 0, len(LINE)], "Extra data"),
        (LINE + b"," + LINE, ["body", 0, len(LINE)], "Extra data"),
        (LINE + b"\r" + LINE, ["body", 0, len(LINE) + 1], "Extra data"),
        (b'{"text":\n"a"}', ["body", 0, 8], "Expecting value"),
    ],
)
def test_a_broken_line_is_named(
    service: httpx2.Client, body: bytes, loc: list[str | int], message: str
) -> None:
    """An error in JSON is reported with its line and its place. Nothing is stored."""
    before = last_id(service)
    answer = post_lines(service, body, accept=LINES)
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {
            "type": "json_invalid",
            "loc": loc,
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": message},
        }
    ]
    assert last_id(service) == before


@pytest.mark.parametrize(
    "items", [[GOOD] * 1000, [GOOD] * 1001, [GOOD] * 1000 + [{}], [GOOD] * 999 + [1]]
)
def test_limits_are_those_of_arrays(service: httpx2.Client, items: list[object]) -> None:
    """A thousand lines are stored. More lines are refused, and so is a wrong line."""
    before = last_id(service)
    body = "\n".join(map(json.dumps, items)).encode()
    mine, theirs = post_lines(service, body), service.post("/notes/batch", json=items)
    assert mine.status_code == theirs.status_code
    if mine.status_code == 422:
        assert mine.content == theirs.content
        assert last_id(service) == before


@pytest.mark.parametrize("body", [b"\n", b" \r\n\n", b""])
def test_no_line_is_too_few(service: httpx2.Client, body: bytes) -> None:
    """A body without a note in it is an error of the body."""
    answer = post_lines(service, body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == ["body"]
    assert error["type"] == ("too_short" if body else "missing")


@pytest.mark.parametrize("body", [b"\xff", LINE + b'\n{"text":"\xff"}', b"[" * 25_000])
def test_lines_past_parsing(service: httpx2.Client, body: bytes) -> None:
    """A body that the parser can't read answers 400, and nothing is stored."""
    before = last_id(service)
    answer = post_lines(service, body)
    assert answer.status_code == 400
    assert answer.json() == {"detail": "There was an error parsing the body"}
    assert last_id(service) == before


def test_lines_over_the_limit(service: httpx2.Client) -> None:
    """Lines over MAX_BODY_BYTES are 413."""
    assert post_lines(service, b"\n" * 1_048_577).status_code == 413


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
documents = (
    st.fixed_dictionaries({"text": st.text(), "completed": st.booleans()})
    | st.fixed_dictionaries({}, optional={"text": st.text() | values, "completed": values})
    | values
)


@settings(max_examples=50)
@given(
    items=st.lists(documents, min_size=1, max_size=4),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lines_are_read_as_the_items_of_an_array(
    service: httpx2.Client, items: list[object], ascii_only: bool, end: str
) -> None:
    """Lines have the same answer as an array of the same items."""
    texts = [json.dumps(item, ensure_ascii=ascii_only) for item in items]
    before = last_id(service)
    mine = post_lines(service, end.join(texts).encode())
    theirs = service.post(
        "/notes/batch",
        content=f"[{','.join(texts)}]".encode(),
        headers={"content-type": "application/json"},
    )
    assert mine.status_code == theirs.status_code
    if mine.status_code == 200:
        notes = mine.json() + theirs.json()
        assert service.get(f"/notes/?after={before}").json() == notes
        for note in notes:
            note.pop("id")
        assert notes[: len(items)] == notes[len(items) :]
        return
    assert mine.content == theirs.content
    assert last_id(service) == before


storable = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@settings(max_examples=50)
@given(
    notes=st.lists(
        st.fixed_dictionaries(
            {
                "text": storable | st.text(st.sampled_from("\n\r\x0b\x0c\x1c\x85\u2028\u2029a")),
                "completed": st.booleans(),
            }
        ),
        min_size=1,
        max_size=20,
    )
)
def test_a_round_trip_loses_nothing(both: Both, notes: list[dict[str, Any]]) -> None:
    """Notes that are exported from one database and imported into another are the same."""
    starts = [last_id(client) for client in both]
    assert both.source.post("/notes/batch", json=notes).status_code == 200
    exported = both.source.get(f"/notes/?after={starts[0]}", headers={"accept": LINES})
    imported = post_lines(both.target, exported.content)
    assert imported.status_code == 200
    listed = both.target.get(f"/notes/?after={starts[1]}").json()
    assert imported.json() == listed
    assert [{name: note[name] for name in ("text", "completed")} for note in listed] == notes
