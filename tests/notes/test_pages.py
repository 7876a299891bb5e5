"""Listings in pages: bounds, links, and walks while notes come and go."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, urlsplit

import httpx2
import pytest
from fastapi import FastAPI, Query
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError, PydanticKnownError
from starlette.testclient import TestClient

from service.resources.queries import BOUNDS
from tests.conftest import Server
from tests.support import databases
from tests.support.databases import fill
from tests.support.notes import follow, next_url
from tests.support.raw import connect, send

MAX_ID = 2**53 - 1

oracle = FastAPI()


def refuse_nul(text: str) -> str:
    if "\0" in text:
        message = "Input should be a valid string without NUL characters"
        raise PydanticCustomError("string_nul", message)
    return text


def refuse_odd_integers(text: str) -> str:
    """FastAPI also takes spaces around, underscores between, and zeros behind a point."""
    if re.fullmatch(r"[+-]?[0-9]{1,4300}", text) is None:
        raise PydanticKnownError("int_parsing")
    return text


plain = BeforeValidator(refuse_odd_integers)


@oracle.get("/notes/")
async def read_notes(
    limit: Annotated[int, Query(ge=1, le=1000), plain] | None = None,
    after: Annotated[int, Query(ge=0, le=MAX_ID), plain] | None = None,
    order: Literal["asc", "desc"] = "asc",
    completed: bool | None = None,
    q: Annotated[str, Query(max_length=200), AfterValidator(refuse_nul)] = "",
) -> None:
    """A listing's query as FastAPI reads it."""


def create(service: httpx2.Client, count: int, text: str = "note") -> list[int]:
    """Stores notes and gives their ids."""
    notes = [{"text": text, "completed": number % 2 == 0} for number in range(count)]
    answers = [
        service.post("/notes/batch", json=notes[first : first + 1000])
        for first in range(0, count, 1000)
    ]
    assert all(answer.status_code == 200 for answer in answers)
    return [note["id"] for answer in answers for note in answer.json()]


def walk(service: httpx2.Client, url: str) -> list[list[dict[str, Any]]]:
    """The pages from this one to the last."""
    return [answer.json() for answer in follow(service, url)]


def ids(notes: list[dict[str, Any]]) -> list[int]:
    return [note["id"] for note in notes]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_are_full_and_the_last_has_no_link(service: httpx2.Client, order: str) -> None:
    """Every page but the last has `limit` notes, and the last one is not empty."""
    assert walk(service, f"/notes/?limit=3&order={order}") == [[]]
    wanted: list[int] = []
    for count in range(1, 8):
        wanted += create(service, 1)
        expected = wanted if order == "asc" else wanted[::-1]
        for limit in (1, 3, 6, 7, 1000):
            pages = walk(service, f"/notes/?limit={limit}&order={order}")
            assert [ids(page) for page in pages] == [
                expected[first : first + limit] for first in range(0, count, limit)
            ]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_the_greatest_length(service: httpx2.Client, order: str) -> None:
    """A page has a thousand notes at most. Without a limit the listing is whole."""
    create(service, 1000)
    url = f"/notes/?limit=1000&order={order}"
    assert [len(page) for page in walk(service, url)] == [1000]
    create(service, 1)
    assert [len(page) for page in walk(service, url)] == [1000, 1]
    create(service, 1999)
    whole = service.get(f"/notes/?order={order}")
    assert "link" not in whole.headers
    assert len(whole.json()) == 3000
    for limit in (1000, 999):
        pages = walk(service, f"/notes/?limit={limit}&order={order}")
        assert list(chain(*pages)) == whole.json()


def test_after_and_order_hold_without_a_limit(service: httpx2.Client) -> None:
    """A listing goes on after any id, in the direction of its order."""
    first, second, third, fourth = create(service, 4)
    service.delete(f"/notes/{third}")
    expected = {
        "after=0": [first, second, fourth],
        f"after={first}": [second, fourth],
        f"after={third}&order=asc": [fourth],
        f"after={fourth}": [],
        f"after={MAX_ID}": [],
        "order=asc": [first, second, fourth],
        "order=desc": [fourth, second, first],
        "order=desc&after=0": [],
        f"order=desc&after={first}": [],
        f"order=desc&after={third}": [second, first],
        f"order=desc&after={fourth}": [second, first],
        f"order=desc&after={MAX_ID}": [fourth, second, first],
        f"order=desc&after={MAX_ID}&limit=2": [fourth, second],
        f"after={first}&limit=1": [second],
    }
    for query, wanted in expected.items():
        answer = service.get(f"/notes/?{query}")
        assert (answer.status_code, ids(answer.json())) == (200, wanted), query
        assert ("link" in answer.headers) == ("limit" in query), query


def test_the_greatest_id_is_in_reach(server: Server, service: httpx2.Client) -> None:
    """A note with the greatest possible id is found in either order."""
    databases.execute(
        server.database_url, f"INSERT INTO notes (id, text, completed) VALUES ({MAX_ID}, 'a', true)"
    )
    assert ids(service.get(f"/notes/?after={MAX_ID - 1}").json()) == [MAX_ID]
    assert ids(service.get("/notes/?order=desc&limit=1").json()) == [MAX_ID]
    assert service.get(f"/notes/?order=desc&after={MAX_ID}").json() == []
    assert service.delete(f"/notes/{MAX_ID}").status_code == 204
    # Others go on with the ids from the beginning.
    databases.clear(server.database_url)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_large_notes(service: httpx2.Client, order: str) -> None:
    """Pages of large notes may be short, but then they link to the rest."""
    wanted = [
        service.post("/notes/", json={"text": f"{number}" * 300_000, "completed": True}).json()
        for number in range(9)
    ]
    small = create(service, 30)
    whole = ids(wanted) + small
    if order == "desc":
        whole.reverse()
    for limit in (5, 1000):
        pages = walk(service, f"/notes/?limit={limit}&order={order}")
        assert all(1 <= len(page) <= limit for page in pages)
        assert ids(list(chain(*pages))) == whole
    assert ids(service.get(f"/notes/?order={order}").json()) == whole


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_searches_of_large_notes(server: Server, service: httpx2.Client, order: str) -> None:
    """Pages of found notes have no more bytes than may be held, and link to the rest.

    On PostgreSQL they have as many as fit.
    """
    wanted, most = [], BOUNDS.max_bytes // 5
    for length in [most] * 8 + [most // 40] * 25 + [1] * 9:
        wanted.append(service.post("/notes/", json={"text": "a" * length, "completed": True}))
        service.post("/notes/", json={"text": "b" * 2500, "completed": True})
    whole = [answer.json()["id"] for answer in wanted]
    if order == "desc":
        whole.reverse()
    for limit in (1, 5, 1000):
        pages = walk(service, f"/notes/?q=A&limit={limit}&order={order}")
        assert ids(list(chain(*pages))) == whole
        for page in pages:
            size = sum(len(note["text"]) for note in page)
            assert len(page) <= BOUNDS.short or size <= BOUNDS.max_bytes
    if databases.kind_of(server.database_url) == "postgresql" and order == "desc":
        assert list(map(len, pages)) == [9 + 25 + 4, 4]
    assert ids(service.get(f"/notes/?q=a&order={order}").json()) == whole


def test_as_many_notes_as_a_short_page_has(service: httpx2.Client) -> None:
    """Where a listing ends with as many notes, none are promised behind them."""
    wanted = create(service, BOUNDS.short)
    assert [ids(page) for page in walk(service, "/notes/?limit=1000")] == [wanted]


def test_large_notes_are_measured_in_bytes(server: Server, service: httpx2.Client) -> None:
    """A page is short if its notes have many bytes, of however few characters."""
    count = BOUNDS.short + 1
    fill(server.database_url, count, "\U0001f600" * (BOUNDS.max_bytes // count // 2))
    assert len(service.get("/notes/?limit=1000").json()) == BOUNDS.short


QUERIES = [
    "limit=1",
    "limit=1&order=asc",
    "order=desc&limit=1",
    "limit=1&x=1",
    "x&limit=1&y=",
    "x=1&limit=1&x=2&x=1",
    "limit=2&limit=1",
    "limit=1&x=%26%3D%23%25%3E%3C%22",
    "limit=1&%78=%C3%A9&%C3%A9=+%2B%20",
    "limit=1&x=%FF%00%E9",
    "limit=1&x=100%&y=%zz",
    "limit=1&x=a;b=c,d=/?:@!$'()*~[]|^`{}",
    'limit=1&x="<a>"',
    "limit=1&&x=1&",
    "after=0&limit=1&x=after",
    "limit=1&after=7&x=1&after=0",
    "limit=1&%61fter=0",
    "%6Cimit=1&ord%65r=asc&AFTER=9",
    "limit=1&completed=&completed=no&q=",
    "limit=1&q=N&q=n%6f&completed=OFF",
]


@pytest.mark.parametrize("query", QUERIES)
def test_links_keep_the_query(service: httpx2.Client, query: str) -> None:
    """A link is the listing's URL with another `after`."""
    notes = [{"text": "now", "completed": False}] * 3
    first, second, third = ids(service.post("/notes/batch", json=notes).json())
    wanted = [first, second, third] if "desc" not in query else [third, second, first]

    def others(query: str) -> list[tuple[str, str]]:
        # Latin-1 stands for any bytes.
        pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
        return [(name, value) for name, value in pairs if name != "after"]

    url = f"/notes/?{query}"
    for number in (0, 1):
        with connect(str(service.base_url)) as connection:
            connection.putrequest("GET", url)
            connection.endheaders()
            response = connection.getresponse()
            notes = httpx2.Response(response.status, content=response.read()).json()
            answer = httpx2.Response(200, headers={"link": response.headers["link"]})
        assert ids(notes) == [wanted[number]]
        following = next_url(answer)
        assert following is not None
        link = urlsplit(following)
        assert f"{link.scheme}://{link.netloc}{link.path}" == service.base_url.join("/notes/")
        assert others(link.query) == others(query)
        assert dict(parse_qsl(link.query))["after"] == str(wanted[number])
        url = f"/notes/?{link.query}"
    assert ids(service.get(url).json()) == [wanted[2]]
    assert "link" not in service.get(url).headers


ours = ["limit", "after", "order", "completed", "q"]
parameter = st.tuples(
    st.text(max_size=3).filter(lambda name: name not in ours), st.text(max_size=3)
).map(lambda pair: "=".join(quote(part, safe="") for part in pair))


@settings(max_examples=40)
@given(others=st.lists(parameter, max_size=4), place=st.integers(0, 4))
def test_links_keep_any_parameters(service: httpx2.Client, others: list[str], place: int) -> None:
    """The next page's query keeps all parameters, in order."""
    if len(service.get("/notes/?limit=2").json()) < 2:
        create(service, 2)
    query = "&".join([*others[:place], "limit=1", *others[place:]])
    answer = service.get(f"/notes/?{query}")
    following = next_url(answer)
    assert following is not None
    pairs = parse_qsl(urlsplit(following).query, keep_blank_values=True)
    assert [pair for pair in pairs if pair[0] != "after"] == parse_qsl(
        query, keep_blank_values=True
    )


@pytest.mark.parametrize(
    ("headers", "prefix"),
    [
        ({"host": "notes.example.org"}, "http://notes.example.org/notes/?"),
        (
            {"host": "notes.example.org", "x-forwarded-proto": "https"},
            "https://notes.example.org/notes/?",
        ),
        (
            {"host": "notes.example.org:8443", "x-forwarded-proto": "https"},
            "https://notes.example.org:8443/notes/?",
        ),
    ],
)
def test_links_behind_a_router(
    service: httpx2.Client, headers: dict[str, str], prefix: str
) -> None:
    """A link has the scheme and the host of the client's request, also behind a TLS router."""
    create(service, 2)
    following = next_url(service.get("/notes/?limit=1&order=desc", headers=headers))
    assert following is not None
    assert following.startswith(prefix)


def test_head_has_the_link(service: httpx2.Client) -> None:
    """`HEAD` of a page has the link and the length of `GET`, and no body."""
    create(service, 3)
    for query in ("?limit=2", "?limit=3", "?order=desc", "?limit=0"):
        head, get = service.head(f"/notes/{query}"), service.get(f"/notes/{query}")
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("link", "content-type", "content-length"):
            assert head.headers.get(name) == get.headers.get(name)


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/x-ndjson"])
def test_caches_keep_formats_apart(service: httpx2.Client, accept: str) -> None:
    """Every answer with a listing, in either format, says that it depends on `Accept`."""
    create(service, 1001)
    for query in ("limit=2", "limit=1000&after=2", "after=2", "q=nothing", ""):
        for method in ("GET", "HEAD"):
            answer = service.request(method, f"/notes/?{query}", headers={"accept": accept})
            assert answer.status_code == 200
            assert answer.headers["vary"] == "Accept, Accept-Encoding, Prefer", (method, query)
    # The last one was streamed.
    assert "content-length" not in answer.headers


steps = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "change"]), st.integers(0, 30)), max_size=4
)


@settings(max_examples=30)
@given(
    count=st.integers(0, 12),
    limit=st.integers(1, 5),
    order=st.sampled_from(["asc", "desc"]),
    meanwhile=st.lists(steps, max_size=6),
)
def test_a_walk_misses_nothing_and_repeats_nothing(
    server: Server, count: int, limit: int, order: str, meanwhile: list[list[tuple[str, int]]]
) -> None:
    """A walk has every lasting note once, while others come and go."""
    databases.clear(server.database_url)
    service = server.client
    throughout = set(create(service, count))
    present = set(throughout)
    changes = iter(meanwhile)
    seen: list[int] = []
    for answer in follow(service, f"/notes/?limit={limit}&order={order}"):
        assert len(answer.json()) <= limit
        seen += ids(answer.json())
        for change, number in next(changes, []):
            if change == "insert":
                present |= set(create(service, 1 + number % 3))
            elif present:
                chosen = sorted(present)[number % len(present)]
                if change == "delete":
                    assert service.delete(f"/notes/{chosen}").status_code == 204
                    present.discard(chosen)
                    throughout.discard(chosen)
                else:
                    changed = service.patch(f"/notes/{chosen}", json={"text": f"{number}"})
                    assert changed.status_code == 200
    assert seen == sorted(set(seen), reverse=order == "desc")
    assert throughout <= set(seen)


INTEGERS = [
    "",
    " ",
    " 1",
    "1 ",
    "1.0",
    "1.",
    "1.5",
    ".0",
    "+1",
    "-1",
    "-0",
    "--1",
    "1_0",
    "1__0",
    "_1",
    "0x1",
    "1e2",
    "٣",
    "１",
    "²",
    "01",
    "000",
    "0",
    "1",
    "1000",
    "1001",
    "NaN",
    "inf",
    "None",
    "null",
    "true",
    "9007199254740991",
    "9007199254740992",
    "9" * 18,
    "9" * 19,
    "9" * 20,
    "1" * 4300,
    "1" * 4301,
    "0" * 5000 + "1",
    "-" + "9" * 30,
    "1\n",
    "\t1",
    "1\0",
    "\u00a01",
    "1\u2003",
    "1000.0",
    "1001.0",
    "1.00000000000000000001",
    "-1.0",
    "+0",
    "+",
    "-",
    "1,2",
    "[1]",
    '"1"',
]
WORDS = [
    "",
    "asc",
    "desc",
    "ASC",
    "Desc",
    " asc",
    "asc\0",
    "true",
    "True",
    "TRUE",
    " true",
    "on",
    "off",
    "oFF",
    "yes",
    "no",
    "y",
    "n",
    "t",
    "f",
    "1",
    "0",
    "2",
    "1.0",
    "maybe",
    "None",
    "ſ",
]
integers = st.sampled_from(INTEGERS)
words = st.sampled_from(WORDS)
values = integers | words | st.text(max_size=5) | st.integers(-5, 1005).map(str)
names = st.sampled_from(ours * 3 + ["Limit", "limit[]", "limit ", "", "x", "ordеr"])
fitting = st.one_of(
    st.tuples(st.just("limit"), st.integers(1, 1000).map(str)),
    st.tuples(st.just("after"), st.integers(0, MAX_ID).map(str)),
    st.tuples(st.just("order"), st.sampled_from(["asc", "desc"])),
    st.tuples(st.just("completed"), st.sampled_from(["true", "OFF", "1", "n"])),
    st.tuples(st.just("q"), st.text(max_size=3)),
)
parameters = st.builds(
    lambda pair, safe: "=".join(quote(part, safe=safe) for part in pair),
    st.tuples(names, values) | fitting,
    st.sampled_from(["", "+/:,"]),
)
garbage = st.text(st.sampled_from("limtafeqorder=&;%+0123456789ABCDEFxz"), max_size=20)
queries = st.builds(
    lambda parts, prefix: prefix + "&".join(parts),
    st.lists(parameters, max_size=4) | st.lists(parameters | garbage, max_size=4),
    st.sampled_from([""] * 6 + ["&", "limit", "?", "q=%FF&", "limit=%FF&", "q=%ED%A0%80&"]),
)


@pytest.fixture(scope="module")
def twin() -> Iterator[TestClient]:
    """A client of the oracle."""
    with TestClient(oracle, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("5", None),
        ("%2B5", None),
        ("005", None),
        ("-5", "greater_than_equal"),
        ("1001", "less_than_equal"),
        ("9" * 4300, "less_than_equal"),
        ("9" * 4301, "int_parsing"),
        ("1_0", "int_parsing"),
        ("5.0", "int_parsing"),
        ("+5", "int_parsing"),
        ("%205%20", "int_parsing"),
        ("%D9%A5", "int_parsing"),
        ("", "int_parsing"),
    ],
)
def test_an_integer_is_a_sign_and_digits(
    service: httpx2.Client, value: str, kind: str | None
) -> None:
    """An integer in a query is an optional sign and ASCII digits."""
    answer = service.get(f"/notes/?limit={value}")
    assert answer.status_code == (422 if kind else 200)
    if kind:
        (error,) = answer.json()["detail"]
        assert (error["type"], error["loc"]) == (kind, ["query", "limit"])


@pytest.mark.parametrize("name", ["limit", "after", "order", "completed"])
def test_near_misses_are_read_as_fastapi_reads_them(
    server: Server, twin: TestClient, name: str
) -> None:
    """Any value near a number or a word is taken or refused as by the oracle."""
    with connect(str(server.client.base_url)) as connection:
        for value in INTEGERS + WORDS:
            url = f"/notes/?{name}={quote(value, safe='')}"
            mine, theirs = send(connection, "GET", url), twin.get(url)
            assert mine.status == theirs.status_code, ascii(value[:50])
            if mine.status == 422:
                assert mine.body == theirs.content


@settings(max_examples=100)
@example(query="q=%00&completed=maybe&order=up&after=-1&limit=1001")
@example(query="limit=1&limit=x&after=x&after=1")
@example(query="q=" + "a" * 200)
@example(query="q=" + "a" * 201)
@example(query="q=" + "%C4%B0" * 200)
@example(query="q=" + "%EF%AC%83" * 201 + "&limit=0")
@example(query="q=" + "%F0%9F%98%80" * 200 + "&completed=maybe")
@example(query="q=" + "%00" * 201)
@given(query=queries)
def test_queries_are_read_as_fastapi_reads_them(
    server: Server, twin: TestClient, query: str
) -> None:
    """Any query is taken or refused as by FastAPI, with the same errors in the same order."""
    theirs = twin.get(f"/notes/?{query}")
    with connect(str(server.client.base_url)) as connection:
        mine = send(connection, "GET", f"/notes/?{query}")
    assert theirs.status_code in (200, 422)
    assert mine.status == theirs.status_code, mine.body
    if mine.status == 422:
        assert mine.body == theirs.content
