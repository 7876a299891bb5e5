"""Listings with the number of all notes that their filters select."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.resources.definition import MAX_PAGE
from tests.conftest import Server
from tests.support import databases
from tests.support.databases import KINDS, fill
from tests.support.notes import known
from tests.support.raw import connect
from tests.support.watched import Service, watching
from tests.web.test_sharing import batches, paused

EXACT = {"prefer": "count=exact"}
LINES = {"accept": "application/x-ndjson"}
COUNTED = [
    ["count=exact"],
    ["Count=Exact"],
    ['count="exact"'],
    ["count = exact ; foo=1"],
    ["return=minimal, count=exact"],
    ["count=exact,return=representation;x"],
    ["handling=lenient", "count=exact"],
    ["count=exact, count=none"],
    ['x="count=none", ,count=exact ,'],
]
OTHER = [
    ["count"],
    ["count="],
    ["exact"],
    ["count=planned"],
    ["count=exactly"],
    ["c ount=exact"],
    ['foo="a\\", count=exact"'],
    ["count=none, count=exact"],
    ["x; count=exact"],
    ['x="count=exact"'],
    ["respond-async, wait=10"],
    ["return=minimal"],
    [""],
    [",;=\xe9" * 100],
]


def read(
    service: httpx2.Client, query: str, values: list[str], method: str = "GET", **headers: str
) -> httpx2.Response:
    preferences = [(b"prefer", value.encode("latin-1")) for value in values]
    others = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return service.request(method, f"/notes/?{query}", headers=[*preferences, *others])


def total(answer: httpx2.Response) -> int:
    """The count that an answer has; AssertionError if it has none."""
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "count=exact"
    assert "Prefer" in answer.headers["vary"].split(", ")
    return int(answer.headers["x-total-count"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("values", COUNTED)
def test_who_prefers_a_count_gets_it(
    server: Server, service: httpx2.Client, values: list[str], method: str
) -> None:
    """A listing has the count of all its notes beside its page, and is the same otherwise."""
    fill(server.database_url, 7)
    for query in ("limit=2", "limit=2&after=5", "", "order=desc", "limit=1000"):
        plain = read(service, query, [], method)
        answer = read(service, query, values, method)
        assert total(answer) == 7
        assert answer.content == plain.content
        for name in ("etag", "link", "vary", "content-length", "content-type"):
            assert answer.headers.get(name) == plain.headers.get(name)


@pytest.mark.parametrize("values", OTHER)
def test_other_preferences_are_ignored(service: httpx2.Client, values: list[str]) -> None:
    """A listing is answered as ever to any other preference, and says that none was applied."""
    plain, answer = (read(service, "limit=1", each) for each in ([], values))
    assert answer.content == plain.content
    assert not {"x-total-count", "preference-applied"} & set(answer.headers)


def test_a_write_has_no_count(service: httpx2.Client) -> None:
    """A write applies what it knows of the same header, and leaves the count aside."""
    note = {"text": "note", "completed": False}
    plain = service.post("/notes/", json=note, headers=EXACT)
    assert known(plain.json()) == {"id": 1, **note}
    assert "preference-applied" not in plain.headers
    both = {"prefer": "count=exact, return=minimal"}
    minimal = service.post("/notes/", json=note, headers=both)
    assert (minimal.status_code, minimal.headers["preference-applied"]) == (204, "return=minimal")
    assert "x-total-count" not in minimal.headers


@pytest.mark.parametrize("headers", [{}, LINES])
def test_streams_have_a_count(
    server: Server, service: httpx2.Client, headers: dict[str, str]
) -> None:
    """A listing too long for one page has its count in front of all its notes."""
    fill(server.database_url, MAX_PAGE + 1)
    for method in ("GET", "HEAD"):
        answer = read(service, "", ["count=exact"], method, **headers)
        assert total(answer) == MAX_PAGE + 1
        assert "content-length" not in answer.headers
    assert answer.content == b""


def test_pollers_see_the_count_change(service: httpx2.Client) -> None:
    """A 304 has the count as it is now: the page may be the same while others come and go."""
    note = {"text": "note", "completed": False}
    service.post("/notes/batch", json=[note] * 3)
    tag = read(service, "limit=1", ["count=exact"]).headers["etag"]
    service.post("/notes/", json=note)
    answer = read(service, "limit=1", ["count=exact"], if_none_match=tag)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["x-total-count"] == "4"
    assert answer.headers["preference-applied"] == "count=exact"


def test_input_that_is_wrong_is_not_counted(service: httpx2.Client) -> None:
    """A query that can't be used is 422 and has no count."""
    answer = read(service, "limit=0", ["count=exact"])
    assert answer.status_code == 422
    assert "x-total-count" not in answer.headers


texts = st.sampled_from(["", "a", "b", "ab", "BA", "ß", "SS", "100%", "_", "ä"])


@settings(max_examples=40)
@given(
    notes=st.lists(st.fixed_dictionaries({"text": texts, "completed": st.booleans()}), min_size=1),
    limit=st.none() | st.integers(1, 3),
    after=st.none() | st.integers(0, 5),
    order=st.sampled_from(["asc", "desc"]),
    completed=st.none() | st.booleans(),
    q=st.none() | texts,
)
def test_the_count_is_that_of_the_whole_listing(
    server: Server,
    notes: list[dict[str, object]],
    limit: int | None,
    after: int | None,
    order: str,
    completed: bool | None,
    q: str | None,
) -> None:
    """Whatever the page, its count is the length of the listing with the same filters."""
    databases.clear(server.database_url)
    service = server.client
    service.post("/notes/batch", json=notes)
    filters = {"completed": completed, "q": q}
    given = {name: value for name, value in filters.items() if value is not None}
    page = {"limit": limit, "after": after, "order": order}
    asked = given | {name: value for name, value in page.items() if value is not None}
    whole = service.get("/notes/", params=given).json()
    assert total(service.get("/notes/", params=asked, headers=EXACT)) == len(whole)


def test_only_notes_of_listings_are_counted(server: Server, service: httpx2.Client) -> None:
    """Notes with ids that no listing has, which another program may store, are not counted."""
    fill(server.database_url, 3)
    databases.execute(
        server.database_url,
        "INSERT INTO notes (id, text, completed) VALUES (-1, 'a', true), (0, 'a', true)",
    )
    answer = read(service, "", ["count=exact"])
    assert total(answer) == len(answer.json()) == 3


@pytest.fixture(scope="module", params=KINDS)
def counting(
    request: pytest.FixtureRequest,
    new_database: databases.NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """The service on a database of each kind in turn, which can be made to wait."""
    log = tmp_path_factory.mktemp("counting") / "log"
    database_url = new_database(request.param)
    fill(database_url, 9)
    with watching(database_url, log, "--timeout-keep-alive=600") as service:
        yield service


def test_counts_share_queries(counting: Service) -> None:
    """Clients that want the count of one filter at once share it, whatever page each reads."""
    paths = {
        "limit=1&completed=true": "5",
        "after=3&completed=true&order=desc": "5",
        "completed=false": "4",
        "": "9",
    }
    times = 6
    before = batches(counting, "count_notes")
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(counting.url)) for _ in range(4 * times)]
        for connection in connections:
            connection.request("GET", "/health/live")
            connection.getresponse().read()
        with paused(counting.process):
            for connection, query in zip(connections, [*paths] * times, strict=True):
                connection.request("GET", f"/notes/?{query}", headers=EXACT)
        answers = [connection.getresponse() for connection in connections]
        counts = [answer.headers["x-total-count"] for answer in answers]
        for answer in answers:
            answer.read()
    assert counts == [*paths.values()] * times
    callers, sent = batches(counting, "count_notes")
    assert callers - before[0] == 4 * times
    assert sent - before[1] <= 2 * times
