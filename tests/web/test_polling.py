"""Clients that ask for the same listing again and again: its tag, and 304 while it is the same."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.resources.definition import MAX_PAGE
from tests.conftest import Server
from tests.notes.test_pages import create
from tests.support import databases
from tests.support.databases import KINDS, fill
from tests.support.raw import connect
from tests.support.watched import Service, watching
from tests.web.test_sharing import batches, paused

LINES = "application/x-ndjson"
# Each asks for something else, even where all of them are empty.
LISTINGS = [
    ("", "*/*"),
    ("", LINES),
    ("limit=2", "*/*"),
    ("limit=2", LINES),
    ("limit=3", "*/*"),
    ("limit=2&order=desc", "*/*"),
    ("limit=2&after=1", "*/*"),
    ("limit=2&after=2", "*/*"),
    ("limit=2&completed=true", "*/*"),
    ("limit=2&completed=false", "*/*"),
    ("limit=2&q=note", "*/*"),
    ("limit=2&q=no", "*/*"),
    ("q=note", "*/*"),
]


def read(
    service: httpx2.Client, query: str, method: str = "GET", **headers: str
) -> httpx2.Response:
    """A listing; names of headers have underscores for hyphens."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.request(method, f"/notes/?{query}", headers=sent)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_tag_is_one_listings_own(service: httpx2.Client, count: int) -> None:
    """No page, order, filter or media type has the tag of another, empty ones neither."""
    create(service, count)
    tags = [read(service, query, accept=accept).headers["etag"] for query, accept in LISTINGS]
    assert len(set(tags)) == len(LISTINGS)
    for query, accept in LISTINGS:
        for (other, other_accept), tag in zip(LISTINGS, tags, strict=True):
            answer = read(service, query, accept=accept, if_none_match=tag)
            same = (query, accept) == (other, other_accept)
            assert answer.status_code == (304 if same else 200), (query, other)
        others = ", ".join(
            tag for listing, tag in zip(LISTINGS, tags, strict=True) if listing != (query, accept)
        )
        assert read(service, query, accept=accept, if_none_match=others).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", ["*/*", LINES])
@pytest.mark.parametrize("value", ["{tag}", "W/{tag}", "*", '"a", {tag}', ', W/"a" ,W/{tag}'])
def test_what_a_poller_has_is_not_sent_again(
    service: httpx2.Client, value: str, accept: str, method: str
) -> None:
    """A 304 has no body; its headers are the listing's but for those of a body."""
    create(service, 3)
    for query in ("", "limit=2", "limit=2&order=desc&q=note", "q=other"):
        new = read(service, query, method, accept=accept)
        condition = value.replace("{tag}", new.headers["etag"])
        answer = read(service, query, method, accept=accept, if_none_match=condition)
        assert (answer.status_code, answer.content) == (304, b"")
        for name in ("etag", "vary", "link"):
            assert answer.headers.get(name) == new.headers.get(name)
        assert not {"content-length", "content-type", "transfer-encoding"} & set(answer.headers)


def test_every_change_of_a_page_is_seen(service: httpx2.Client) -> None:
    """A page's tag changes with its notes, and with whether others follow; and not otherwise."""
    create(service, 2)

    def tag() -> str:
        answer = read(service, "limit=2")
        again = read(service, "limit=2", if_none_match=answer.headers["etag"])
        assert again.status_code == 304
        return str(answer.headers["etag"])

    tags = [tag()]
    service.patch("/notes/2", json={"completed": True})
    tags.append(tag())
    service.patch("/notes/2", json={"text": "new"})
    tags.append(tag())
    # Its notes are the same, and it has a link now.
    create(service, 1)
    tags.append(tag())
    create(service, 1)
    assert tag() == tags[-1]
    service.patch("/notes/4", json={"text": "new"})
    assert tag() == tags[-1]
    service.delete("/notes/1")
    tags.append(tag())
    assert len(set(tags)) == len(tags)
    for old in tags[:-1]:
        assert read(service, "limit=2", if_none_match=old).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", LINES])
def test_listings_of_one_page_have_a_tag(
    server: Server, service: httpx2.Client, accept: str
) -> None:
    """A whole listing of up to 1,000 notes has a tag; a longer one, which is streamed, has none."""
    fill(server.database_url, MAX_PAGE)
    whole = read(service, "", accept=accept)
    tag = whole.headers["etag"]
    for method in ("GET", "HEAD"):
        answer = read(service, "", method, accept=accept, if_none_match=tag)
        assert (answer.status_code, answer.content) == (304, b"")
    create(service, 1)
    for method in ("GET", "HEAD"):
        answer = read(service, "", method, accept=accept, if_none_match=tag)
        assert answer.status_code == 200
        assert "etag" not in answer.headers
        assert "content-length" not in answer.headers
        # It is there, so that it meets this condition (RFC 9110, section 13.1.2).
        answer = read(service, "", method, accept=accept, if_none_match="*")
        assert (answer.status_code, answer.content) == (304, b"")
        assert "etag" not in answer.headers
    assert len(read(service, "", accept=accept).text) > len(whole.text)


def test_other_answers_are_not_304(service: httpx2.Client) -> None:
    """Conditions leave errors, and answers to what stores a note, as they are."""
    for value in ("*", '"a"', "garbage"):
        assert read(service, "limit=0", if_none_match=value).status_code == 422
        headers = {"if-none-match": value, "if-match": value}
        created = service.post("/notes/", json={"text": "a", "completed": True}, headers=headers)
        assert created.status_code == 200
        assert service.get("/notes/99", headers=headers).status_code == 404


def test_a_listing_may_have_to_be_the_same(service: httpx2.Client) -> None:
    """With `If-Match` of another tag a listing is 412, which comes before `If-None-Match`."""
    tag = read(service, "limit=1").headers["etag"]
    assert read(service, "limit=1", if_match=tag).status_code == 200
    assert read(service, "limit=1", if_match=tag, if_none_match=tag).status_code == 304
    refused = read(service, "limit=1", if_match='"a"', if_none_match=tag)
    assert (refused.status_code, refused.json()) == (412, {"detail": "Precondition Failed"})


def test_processes_give_the_same_tag(processes: list[str]) -> None:
    """A client that polls through several processes has 304 from each."""
    first, second = (httpx2.get(f"{url}/notes/?limit=5&q=a").headers["etag"] for url in processes)
    assert first == second


queries = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.sampled_from(["1", "2", "3", "1000"]),
        "after": st.integers(0, 4).map(str),
        "order": st.sampled_from(["asc", "desc"]),
        "completed": st.sampled_from(["true", "false"]),
        "q": st.sampled_from(["a", "b", "ab", ""]),
    },
)
changes = st.tuples(
    st.sampled_from(["insert", "delete", "change"]),
    st.integers(1, 6),
    st.sampled_from(["a", "b", "ab"]),
)


NOTE = [("insert", 1, "a")]
PAGE = [({"limit": "1"}, "*/*")]


@settings(max_examples=40)
@example([*NOTE, *PAGE, *NOTE, *PAGE])
@given(steps=st.lists(changes | st.tuples(queries, st.sampled_from(["*/*", LINES])), max_size=25))
def test_tags_are_equal_if_and_only_if_answers_are(server: Server, steps: list[Any]) -> None:
    """Whatever changes meanwhile, two listings have one tag if one of them is the other's answer.

    That is: they ask for the same, have the same bytes, and the same link to what follows.
    """
    databases.clear(server.database_url)
    service = server.client
    seen: dict[str, tuple[Any, ...]] = {}
    for step in steps:
        match step:
            case (dict(query), accept):
                asked = {"limit": "1000", "order": "asc", "q": ""} | query
                answer = service.get("/notes/", params=query, headers={"accept": accept})
                tag = answer.headers["etag"]
                link = answer.links.get("next", {}).get("url", "")
                what = (asked, accept, answer.content, link.partition("after=")[2])
                assert seen.setdefault(tag, what) == what
                assert list(seen.values()).count(what) == 1
                for other in seen:
                    condition = {"accept": accept, "if-none-match": other}
                    again = service.get("/notes/", params=query, headers=condition)
                    assert again.status_code == (304 if other == tag else 200)
            case ("insert", number, text):
                note = {"text": text, "completed": number % 2 == 0}
                assert service.post("/notes/", json=note).status_code == 200
            case ("delete", number, _):
                service.delete(f"/notes/{number}")
            case ("change", number, text):
                service.patch(f"/notes/{number}", json={"text": text})


@pytest.fixture(scope="module", params=KINDS)
def polled(
    request: pytest.FixtureRequest,
    new_database: databases.NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """The service on a database of each kind in turn, which can be made to wait."""
    log = tmp_path_factory.mktemp("polling") / "log"
    database_url = new_database(request.param)
    fill(database_url, MAX_PAGE)
    with watching(database_url, log, "--timeout-keep-alive=600") as service:
        yield service


@pytest.mark.parametrize("query", ["", "limit=100"])
def test_pollers_share_queries(polled: Service, query: str) -> None:
    """Clients that poll the same listing at once have their 304 or the listing by few queries."""
    path, count = f"/notes/?{query}", 30
    first = httpx2.get(f"{polled.url}{path}", headers={"accept-encoding": "identity"})
    tag = first.headers["etag"]
    before = batches(polled, "list_notes")
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(polled.url)) for _ in range(count)]
        for connection in connections:
            connection.request("GET", "/health/live")
            connection.getresponse().read()
        with paused(polled.process):
            for number, connection in enumerate(connections):
                value = tag if number % 2 else '"other"'
                connection.request("GET", path, headers={"if-none-match": value})
        answers = [connection.getresponse() for connection in connections]
        bodies = [answer.read() for answer in answers]
    assert [answer.status for answer in answers] == [200, 304] * (count // 2)
    assert bodies == [first.content, b""] * (count // 2)
    assert {answer.headers["etag"] for answer in answers} == {tag}
    callers, sent = batches(polled, "list_notes")
    assert callers - before[0] == count
    assert sent - before[1] <= count // 2
