"""Answers in gzip, for clients that take it."""

import asyncio
import http.client
import json
import subprocess
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service.resources.definition import MAX_PAGE
from service.resources.queries import BOUNDS
from service.web import budget, encodings
from service.web.responses import JSONBytes
from tests.conftest import Server
from tests.support import databases
from tests.support.databases import KINDS, fill
from tests.support.raw import connect
from tests.support.servers import started
from tests.support.watched import Service, watching
from tests.web.test_sharing import batches, paused

LINES = "application/x-ndjson"
GZIP = {"accept-encoding": "gzip"}
LONG = "a text that stands for what people write " * 50


def ask(
    url: httpx2.URL | str,
    path: str,
    coding: str | None = None,
    method: str = "GET",
    body: Any = None,
    **headers: str,
) -> http.client.HTTPResponse:
    """An answer as it is on the wire, read to its end; `data` has what was read."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if coding is not None:
        sent["accept-encoding"] = coding
    if body is not None:
        sent["content-type"] = "application/json"
    with connect(str(url)) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        payload = None if body is None else json.dumps(body).encode()
        for name, value in sent.items():
            connection.putheader(name, value)
        if payload is not None:
            connection.putheader("content-length", str(len(payload)))
        connection.endheaders(payload)
        answer = connection.getresponse()
        answer.data = answer.read()  # type: ignore[attr-defined]
    return answer


def plain(answer: http.client.HTTPResponse) -> bytes:
    """The body without its coding; AssertionError if its headers don't fit."""
    data: bytes = answer.data  # type: ignore[attr-defined]
    length = answer.headers["content-length"]
    assert length is None or int(length) == len(data)
    assert (length is None) == (answer.headers["transfer-encoding"] == "chunked")
    if answer.headers["content-encoding"] is None:
        return data
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"].split(", ")
    decoder = zlib.decompressobj(31)
    body = decoder.decompress(data)
    assert (decoder.eof, decoder.unused_data) == (True, b"")
    return body


# What a client accepts, and the coding of a large and of a small answer; None for a 406.
CODINGS: list[tuple[str | None, str | None, str | None]] = [
    (None, "identity", "identity"),
    ("", "identity", "identity"),
    ("gzip", "gzip", "identity"),
    ("GZip", "gzip", "identity"),
    ("x-gzip", "gzip", "identity"),
    ("gzip, deflate, br, zstd", "gzip", "identity"),
    ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip", "identity"),
    ("gzip ; q=0.001", "gzip", "identity"),
    ("*", "gzip", "identity"),
    ("*;q=0.5", "gzip", "identity"),
    ("gzip, identity", "gzip", "identity"),
    ("gzip;q=0.5, identity;q=0.5", "gzip", "identity"),
    ("gzip;q=0.5, identity", "identity", "identity"),
    ("identity", "identity", "identity"),
    ("deflate, br", "identity", "identity"),
    ("gzip;q=0", "identity", "identity"),
    ("gzip;q=0.000, *", "identity", "identity"),
    ("gzip;q=2", "identity", "identity"),
    ("gzip;q=x", "identity", "identity"),
    ("gzip;q = 0", "identity", "identity"),
    ("a," * 500 + "gzip", "identity", "identity"),
    ("gzipped, x-gzi", "identity", "identity"),
    (";q=1,,=;", "identity", "identity"),
    ("gzip, identity;q=0", "gzip", "gzip"),
    ("gzip, *;q=0", "gzip", "gzip"),
    ("*, identity;q=0", "gzip", "gzip"),
    ("identity;q=0.1, *;q=0", "identity", "identity"),
    ("identity;q=0", None, None),
    ("br, identity;q=0", None, None),
    ("*;q=0", None, None),
]


@pytest.mark.parametrize(("accepted", "large", "small"), CODINGS)
def test_the_coding_is_one_that_the_client_takes(
    service: httpx2.Client, accepted: str | None, large: str | None, small: str | None
) -> None:
    """Bodies over 1 KB are in gzip for those who take it, smaller ones for who takes nothing else.

    HEAD has GET's headers, but no length in gzip. What is stored is stored whatever the client
    takes.
    """
    service.post("/notes/", json={"text": "short", "completed": True})
    service.post("/notes/", json={"text": LONG, "completed": True})
    url = service.base_url
    for path, coding in (
        ("/notes/", large),
        ("/notes/2", large),
        ("/openapi.json", large),
        ("/notes/?limit=1", small),
        ("/notes/1", small),
    ):
        answer, head = (ask(url, path, accepted, method) for method in ("GET", "HEAD"))
        if coding is None:
            assert (answer.status, head.status) == (406, 406)
            continue
        assert answer.status == 200
        assert answer.headers.get("content-encoding", "identity") == coding
        assert plain(answer) == service.get(path, headers={"accept-encoding": "identity"}).content
        if coding == "gzip" or path not in ("/notes/1", "/notes/?limit=1"):
            assert "Accept-Encoding" in answer.headers["vary"].split(", ")
        dates = {"date", "x-request-id"}
        seen = [
            sorted((name, value) for name, value in each.getheaders() if name not in dates)
            for each in (answer, head)
        ]
        if coding == "gzip":
            # Nothing is compressed for it.
            seen[0] = [field for field in seen[0] if field[0] != "content-length"]
        assert seen[0] == seen[1]
        assert plain(answer)
    stored = ask(url, "/notes/", accepted, "POST", {"text": LONG, "completed": True})
    assert stored.status == 200
    assert stored.headers.get("content-encoding", "identity") == (large or "identity")
    assert json.loads(plain(stored))["text"] == LONG
    assert ask(url, "/notes/3", accepted, "DELETE").status == 204


@settings(max_examples=40)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
        | st.integers(0, 3000).map("x".__mul__),
        min_size=1,
        max_size=60,
    ),
    query=st.sampled_from(["", "limit=2", "limit=50&order=desc", "q=x", "completed=true"]),
    accept=st.sampled_from(["*/*", LINES]),
    coding=st.sampled_from(CODINGS[:-3]),
)
def test_listings_are_the_same_in_every_coding(
    server: Server,
    texts: list[str],
    query: str,
    accept: str,
    coding: tuple[str | None, str | None, str | None],
) -> None:
    """Decoded, any listing has the bytes that it has without coding; each coding has its tag."""
    databases.clear(server.database_url)
    notes = [{"text": text, "completed": bool(place % 2)} for place, text in enumerate(texts)]
    url = server.client.base_url
    assert ask(url, "/notes/batch", coding[0], "POST", notes).status == 200
    path = f"/notes/?{query}"
    identity = ask(url, path, accept=accept)
    answer = ask(url, path, coding[0], accept=accept)
    body = plain(identity)
    assert plain(answer) == body
    chosen = answer.headers.get("content-encoding", "identity")
    assert chosen == coding[1 if len(body) > 1024 else 2]
    tag = identity.headers["etag"]
    assert answer.headers["etag"] == (tag if chosen == "identity" else f'{tag[:-1]}-gzip"')
    assert answer.headers["link"] == identity.headers["link"]


@pytest.mark.parametrize("path", ["/notes/1", "/notes/?limit=1", "/notes/"])
def test_a_tag_names_one_encoding(service: httpx2.Client, path: str) -> None:
    """A client has 304 for the tag of the encoding that it would get, and for no other."""
    service.post("/notes/", json={"text": LONG, "completed": True})
    url = service.base_url
    tags = {coding: ask(url, path, coding).headers["etag"] for coding in ("identity", "gzip")}
    assert len(set(tags.values())) == 2
    for coding in tags:
        for method in ("GET", "HEAD"):
            for other, tag in tags.items():
                for value in (tag, f'W/{tag}, "a"'):
                    answer = ask(url, path, coding, method, if_none_match=value)
                    assert answer.status == (304 if other == coding else 200)
                    assert answer.headers["etag"] == tags[coding]
                    assert "Accept-Encoding" in answer.headers["vary"].split(", ")
                    if answer.status == 304:
                        assert answer.headers["content-encoding"] is None
                        assert answer.headers["content-length"] is None
        both = ", ".join(tags.values())
        answer = ask(url, path, coding, if_none_match=both)
        assert (answer.status, answer.headers["etag"]) == (304, tags[coding])


@pytest.mark.parametrize("coding", [None, "gzip"])
@pytest.mark.parametrize("mark", ["", "W/"])
def test_writes_take_the_tag_of_either_encoding(
    service: httpx2.Client, mark: str, coding: str | None
) -> None:
    """With `If-Match` of what was read in gzip a write goes through, until the note changes."""
    body = {"text": LONG, "completed": True}
    url = service.base_url
    created = ask(url, "/notes/", "gzip", "POST", body)
    read = ask(url, "/notes/1", "gzip")
    assert created.headers["etag"] == read.headers["etag"]
    tag = mark + read.headers["etag"]
    assert tag.endswith('-gzip"')
    known = ask(url, "/notes/1", coding, "PATCH", {}, if_none_match=tag)
    assert known.status == 412
    assert ask(url, "/notes/1", coding, "PATCH", {}, if_match=tag).status == 200
    assert ask(url, "/notes/1", coding, if_match=tag).status == 200
    changed = ask(url, "/notes/1", coding, "PATCH", {"completed": False}, if_match=tag)
    assert changed.status == 200
    for method in ("PATCH", "GET", "DELETE"):
        refused = ask(
            url, "/notes/1", coding, method, {} if method == "PATCH" else None, if_match=tag
        )
        assert refused.status == 412
    tag = changed.headers["etag"]
    assert ask(url, "/notes/1", coding, "DELETE", if_match=tag).status == 204


@pytest.mark.parametrize("accept", ["*/*", LINES])
def test_streams_are_compressed_as_they_go(
    server: Server, service: httpx2.Client, accept: str
) -> None:
    """A long listing is in gzip too, under the headers that HEAD has, and has no tag."""
    fill(server.database_url, 5 * MAX_PAGE + 3, "x" * 1000)
    identity = ask(service.base_url, "/notes/", accept=accept)
    whole = ask(service.base_url, "/notes/", "gzip", accept=accept)
    assert plain(whole) == plain(identity)
    head = ask(service.base_url, "/notes/", "gzip", "HEAD", accept=accept)
    for answer in (whole, head):
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-length"] is None
        assert answer.headers["etag"] is None
        assert "Accept-Encoding" in answer.headers["vary"].split(", ")
    assert head.data == b""  # type: ignore[attr-defined]
    assert "Accept-Encoding" in identity.headers["vary"].split(", ")


def test_each_part_can_be_decoded_when_it_is_there() -> None:
    """A client of a stream has the notes of a page before the next page is read."""
    pages = [b"[" + b"a" * 5000, b",", b"b" * 5000, b",", b"c" * 5000, b"]"]
    read = []

    async def parts() -> AsyncGenerator[bytes | memoryview, None]:
        for page in pages:
            read.append(page)
            yield page

    async def decode() -> bytes:
        decoder = zlib.decompressobj(31)
        decoded = b""
        async for part in encodings._compress_parts(parts()):
            assert part
            decoded += decoder.decompress(part)
            assert decoded == b"".join(read)
        assert decoder.eof
        return decoded

    assert asyncio.run(decode()) == b"".join(pages)


def test_a_compressed_listing_takes_little_memory(database_url: str, tmp_path: Path) -> None:
    """A listing of many megabytes is compressed in flat memory."""
    fill(database_url, 150, "x" * (BOUNDS.max_bytes // 2))
    with started(database_url, tmp_path / "log") as (url, server):
        with httpx2.stream("GET", f"{url}/notes/", headers=GZIP, timeout=60) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            length = sum(map(len, answer.iter_bytes()))
        status = Path(f"/proc/{server.pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
            assert int(peak.split()[1]) < 250_000
    assert length > 150 * BOUNDS.max_bytes // 2


def test_a_compressed_answer_holds_its_own_bytes() -> None:
    """What an answer was made of leaves the budget when it is compressed."""
    scope = {"type": "http", "method": "GET", "headers": [(b"accept-encoding", b"gzip")]}

    async def sizes() -> tuple[int, list[int]]:
        budget.keep(scope, budget.Hold(1_000_000))
        answer = await encodings.negotiate(Request(scope), JSONBytes(b"a" * 1_000_000))
        return len(answer.body), [held.size for held in scope["service.holds"]]  # type: ignore[attr-defined]

    size, held = asyncio.run(sizes())
    assert held == [size]
    assert size < 10_000


def test_usual_clients_decode_it(service: httpx2.Client) -> None:
    """What curl and httpx see is the listing, with a fraction of its bytes on the wire."""
    notes = [{"text": f"note {number}", "completed": True} for number in range(500)]
    stored = service.post("/notes/batch", json=notes, headers=GZIP)
    assert stored.headers["content-encoding"] == "gzip"
    assert [note["text"] for note in stored.json()] == [note["text"] for note in notes]
    answer = service.get("/notes/")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == stored.json()
    assert int(answer.headers["content-length"]) < len(answer.content) / 4
    metrics = service.get("/metrics")
    assert metrics.headers["content-encoding"] == "gzip"
    assert "http_request_duration_seconds" in metrics.text
    result = subprocess.run(
        ["curl", "-sS", "--compressed", "--fail", f"{service.base_url}/notes/"],
        capture_output=True,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == answer.content


def test_only_answers_with_content_are_refused(service: httpx2.Client) -> None:
    """A redirect and an error stay what they are for a client that takes no coding."""
    nothing = {"accept-encoding": "identity;q=0"}
    for path, status in (("/", 307), ("/notes/?limit=0", 422), ("/notes/", 406)):
        assert service.get(path, headers=nothing).status_code == status


def test_large_pages_are_not_kept(database_url: str, tmp_path: Path) -> None:
    """Pages of many megabytes leave no memory behind, in either encoding."""
    fill(database_url, 80, "x" * 1_000_000)
    with watching(database_url, tmp_path / "log") as service:
        ask(service.url, "/notes/?limit=10", "gzip")
        before = service.memory()
        for page in range(1, 8):
            ask(service.url, f"/notes/?limit=10&after={10 * page}", "gzip")
        assert service.memory() - before < 40_000_000


@pytest.fixture(scope="module", params=KINDS)
def shared(
    request: pytest.FixtureRequest,
    new_database: databases.NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """The service on a database of each kind in turn, which can be made to wait."""
    log = tmp_path_factory.mktemp("compression") / "log"
    database_url = new_database(request.param)
    fill(database_url, MAX_PAGE)
    with watching(database_url, log, "--timeout-keep-alive=600") as service:
        yield service


def test_head_compresses_nothing(shared: Service) -> None:
    """`HEAD` of a body that would be compressed tells no length, and nothing is compressed."""
    before = batches(shared, "compress")
    for _ in range(3):
        head = ask(shared.url, "/notes/", "gzip", "HEAD")
        assert head.headers["content-encoding"] == "gzip"
        assert (head.headers["content-length"], head.headers["transfer-encoding"]) == (None, None)
    assert batches(shared, "compress") == before


@pytest.mark.parametrize("query", ["", "limit=100"])
def test_a_page_is_compressed_once_for_all(shared: Service, query: str) -> None:
    """Clients that want a page at once share its query and its compression, and those who don't."""
    path, count = f"/notes/?{query}", 30
    identity = ask(shared.url, path)
    before = [batches(shared, name) for name in ("list_notes", "compress")]
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(shared.url)) for _ in range(count)]
        for connection in connections:
            connection.request("GET", "/health/live")
            connection.getresponse().read()
        with paused(shared.process):
            for number, connection in enumerate(connections):
                coding = "identity" if number % 3 == 0 else "gzip"
                connection.request("GET", path, headers={"accept-encoding": coding})
        answers = [connection.getresponse() for connection in connections]
        for answer in answers:
            answer.data = answer.read()  # type: ignore[attr-defined]
    codings = [answer.headers["content-encoding"] for answer in answers]
    assert codings == [None, "gzip", "gzip"] * (count // 3)
    assert {plain(answer) for answer in answers} == {plain(identity)}
    after = [batches(shared, name) for name in ("list_notes", "compress")]
    # Each look at the metrics is compressed for nobody.
    (readers, queries), (wanting, compressed) = (
        (now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)
    )
    assert (readers, wanting) == (count, count * 2 // 3)
    assert queries <= count // 2
    assert compressed <= queries


def test_pages_of_one_size_are_told_apart(shared: Service) -> None:
    """Pages that are compressed at once go each to its own clients, also if their sizes agree."""
    paths = [f"/notes/?limit=200&after={after}" for after in (100, 300, 500, 700)]
    bodies = [plain(ask(shared.url, path)) for path in paths]
    assert len(set(map(len, bodies))) == 1
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(shared.url)) for _ in paths]
        with paused(shared.process):
            for connection, path in zip(connections, paths, strict=True):
                connection.request("GET", path, headers=GZIP)
        for connection, body in zip(connections, bodies, strict=True):
            answer = connection.getresponse()
            answer.data = answer.read()  # type: ignore[attr-defined]
            assert plain(answer) == body


def test_clients_that_leave_disturb_nobody(shared: Service) -> None:
    """While a page is compressed for some who leave, the others get it whole."""
    host = urlsplit(shared.url)
    assert host.hostname is not None
    identity = ask(shared.url, "/notes/")
    with connect(shared.url) as stays, connect(shared.url) as leaves:
        with paused(shared.process):
            for connection in (leaves, stays):
                connection.request("GET", "/notes/", headers=GZIP)
            leaves.close()
        answer = stays.getresponse()
        answer.data = answer.read()  # type: ignore[attr-defined]
    assert plain(answer) == plain(identity)
