"""ACCESS=private: notes of one's own, which nobody else notices."""

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.app import document
from service.users import queries
from tests.support import databases
from tests.support.notes import follow, known
from tests.support.operating import add_user, operate
from tests.support.provider import AUDIENCE, providing
from tests.support.raw import connect
from tests.support.servers import serving
from tests.support.usual import LAWS, Law, find
from tests.support.waiting import at_once

NOTE = {"text": "new", "completed": False}
LINES = "application/x-ndjson"
OTHERS = {"alice": "bob", "bob": "alice"}


class House(NamedTuple):
    """A private service with two users, who have just been added, and a client of each."""

    database_url: str
    url: str
    clients: Mapping[str, httpx2.Client]

    def owned(self) -> dict[str, list[tuple[Any, ...]]]:
        """The notes in the table by the name of their owner, who is nobody at times."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        query = (
            "SELECT username, notes.id, text, completed FROM notes"
            " LEFT JOIN users ON users.id = owner_id ORDER BY notes.id"
        )
        for name, *note in databases.fetch(self.database_url, query):
            found.setdefault(name or "nobody", []).append(tuple(note))
        return found


@pytest.fixture(scope="module")
def private(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    log = tmp_path_factory.mktemp("private") / "log"
    options = ("--no-access-log", "--timeout-keep-alive=600")
    with serving(shared_database_url, log, *options, ACCESS="private") as client:
        yield client


@pytest.fixture
def house(shared_database_url: str, private: httpx2.Client) -> Iterator[House]:
    databases.clear(shared_database_url)
    tokens = {name: queries.new_token() for name in OTHERS}
    rows = (f"('{name}', true, 0, '{queries.digest(token)}')" for name, token in tokens.items())
    databases.execute(
        shared_database_url,
        "INSERT INTO users (username, is_active, created_at, token_sha256) VALUES "
        + ", ".join(rows),
    )
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(
                httpx2.Client(
                    base_url=private.base_url,
                    headers={"authorization": f"Bearer {token}"},
                    timeout=60,
                )
            )
            for name, token in tokens.items()
        }
        yield House(shared_database_url, str(private.base_url), clients)


def mark(name: str) -> str:
    """What only texts of a user contain."""
    return f"whispered-by-{name}"


def create_notes(house: House, key: str = "{1}") -> dict[str, list[dict[str, Any]]]:
    """Both users create notes in turn: short, large and in other letters; done and not done.

    `key` is a pattern for keys of safe retries, of a name and a number.
    """
    texts = ("{0}", "{0} Größe", "{0}" * 1000, "{0}" * 20_000, "{0} last")
    created: dict[str, list[dict[str, Any]]] = {name: [] for name in OTHERS}
    for number, text in enumerate(texts):
        for name, client in house.clients.items():
            note = {"text": text.format(mark(name)), "completed": number % 2 == 0}
            headers = {"idempotency-key": key.format(name, number)}
            answer = client.post("/notes/", json=note, headers=headers)
            assert answer.status_code == 200
            created[name].append(answer.json())
    return created


# What users may ask for, with the ids of another's notes and the other's name in it. The first are
# asked for with all headers.
PATHS = (
    "/notes/{id}",
    "/notes/{large}",
    "/notes/",
    "/notes/?limit=1000",
    "/notes/?limit=2&after={id}",
    "/notes/?order=desc",
    "/notes/?completed=true&after={id}",
    "/notes/?q=whispered",
    "/users/{name}",
    "/users/{NAME}",
    "/notes/{id}?id={id}",
    "/notes/{id}/",
    "/notes/0{id}",
    "/notes/%20{id}",
    "/notes/{id}.0",
    "/notes//{id}",
    "//notes/{id}",
    "/notes/?limit=1",
    "/notes/?limit=2&after={id}&order=desc",
    "/notes/?completed=false&limit=1&after={large}",
    "/notes/?q=whispered-by-{name}&limit=2",
    "/notes/?q=GR%C3%96SSE&completed=0",
    "/notes/?owner_id=1&owner_id=2&user={name}",
    "/notes/?limit=0",
    "/notes/?sort=owner_id",
    "/notes/?cursor=WzEsMl0",
    "/notes/batch",
    "/notes/batch?id={id}",
    "/notes",
    "/users/{name}/",
    "/users/",
    "/openapi.json",
    "/docs",
    "/docs/assets/{id}",
    "/health/ready",
    "/",
    "/{name}/notes/{id}",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")


HOW_MANY_WITH_ALL_HEADERS = 10


def headers_of(method: str, path: str, tags: list[str]) -> Iterator[dict[str, str]]:
    """The headers to ask with, some of which have the tags and the key of another."""
    yield {}
    if path not in PATHS[:HOW_MANY_WITH_ALL_HEADERS] or method in ("OPTIONS", "TRACE", "PURGE"):
        return
    yield {"if-match": ", ".join(tags)}
    yield {"if-match": "*"}
    yield {"if-none-match": ", ".join(tags)}
    yield {"if-none-match": "*"}
    yield {"prefer": "return=minimal, count=exact"}
    yield {"accept": LINES, "accept-encoding": "gzip"}
    if method == "POST":
        yield {"idempotency-key": "{name}-0"}
        yield {"content-type": LINES}


def ask(
    connection: HTTPConnection, method: str, url: str, headers: Mapping[str, str]
) -> tuple[Any, ...]:
    """All of an answer, except its time and its number."""
    body = b'{"text":"mine","completed":true}' if method in ("POST", "PUT", "PATCH") else None
    connection.request(method, url, body, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    content = response.read()
    found = [(name, value) for name, value in response.getheaders() if name not in CHANGING]
    if response.headers["content-encoding"] == "gzip" and content:
        content = gzip.decompress(content)
    return response.status, found, content


CHANGING = {"date", "x-request-id"}


def look_around(
    house: House, me: str, theirs: list[dict[str, Any]], tags: list[str]
) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """The answer to each request of a user, who tries to get at what another has."""
    me_client, other = house.clients[me], OTHERS[me]
    who = {"authorization": me_client.headers["authorization"]}
    names = {"id": theirs[0]["id"], "large": theirs[3]["id"], "name": other, "NAME": other.upper()}
    mine = known(me_client.get("/notes/").json())
    answers: dict[tuple[str, ...], tuple[Any, ...]] = {}
    with connect(house.url) as connection:
        for path in PATHS:
            for method in METHODS:
                for headers in headers_of(method, path, tags):
                    url = path.format(**names)
                    all_headers = {name: one.format(**names) for name, one in headers.items()} | who
                    status, found, content = ask(connection, method, url, all_headers)
                    if method == "POST" and status in (200, 204):
                        # A new note has a new id.
                        found = [one for one in found if one[0] not in NEW]
                        content = re.sub(rb'"id":\d+', b"", content)
                        for note in me_client.get(f"/notes/?after={mine[-1]['id']}").json():
                            me_client.delete(f"/notes/{note['id']}").raise_for_status()
                    answers[method, path, str(headers)] = (status, found, content)
    assert me_client.get("/notes/").json() == mine
    return answers


NEW = {"content-length", "content-location", "etag", "location"}


@pytest.mark.parametrize("me", OTHERS)
def test_no_answer_depends_on_what_others_have(house: House, me: str) -> None:
    """Whatever a user asks for, each answer is the same as if the other user didn't exist."""
    other = OTHERS[me]
    theirs = create_notes(house, "{0}-{1}")[other]
    client = house.clients[other]
    urls = ("/notes/", "/notes/?limit=1", "/notes/?limit=1000", *map(path_of, theirs))
    tags = [client.get(url).headers["etag"] for url in (*urls, f"/users/{other}")]
    before = house.owned()
    with_them = look_around(house, me, theirs, tags)
    assert house.owned() == before
    databases.execute(
        house.database_url,
        f"DELETE FROM notes WHERE text LIKE '%{mark(other)}%'",
        f"DELETE FROM users WHERE username = '{other}'",
        "DELETE FROM idempotency_keys",
    )
    without_them = look_around(house, me, theirs, tags)
    for request, answer in with_them.items():
        assert mark(other).encode() not in answer[2], request
        assert answer == without_them[request], request


def path_of(note: dict[str, Any]) -> str:
    return f"/notes/{note['id']}"


def test_users_who_ask_at_once_get_their_own(house: House) -> None:
    """Reads that share queries, and creates that share an INSERT, mix nothing up."""
    created = create_notes(house)
    more = {"text": mark("bob"), "completed": True}
    created["bob"].append(house.clients["bob"].post("/notes/", json=more).json())

    def act(number: int) -> None:
        me = ("alice", "bob")[number % 2]
        client, mine, theirs = house.clients[me], created[me], created[OTHERS[me]]
        limit = 1 + number % 3
        assert client.get(f"/notes/?limit={limit}").json() == mine[:limit]
        after = mine[number % 4]["id"]
        assert client.get(f"/notes/?limit=1&after={after}").json() == [mine[number % 4 + 1]]
        packed = {"accept-encoding": "gzip", "prefer": "count=exact"}
        listed = client.get("/notes/?limit=5&q=WHISPERED", headers=packed)
        assert (listed.json(), listed.headers["x-total-count"]) == (mine[:5], str(len(mine)))
        assert client.get(path_of(mine[number % 5])).json() == mine[number % 5]
        assert client.get(path_of(theirs[number % 5])).status_code == 404
        # The key of both.
        key = {"idempotency-key": f"{number % 5}"}
        sent = {name: value for name, value in mine[number % 5].items() if name != "id"}
        assert client.post("/notes/", json=sent, headers=key).json() == mine[number % 5]

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(act, range(32)))
    new: list[Callable[[], httpx2.Response]] = [
        partial(house.clients[name].post, "/notes/", json={**NOTE, "text": f"by {name}"})
        for name in list(OTHERS) * 8
    ]
    ids = {answer.json()["id"]: answer.json()["text"] for answer in at_once(new)}
    batch = house.clients["bob"].post("/notes/batch", json=[{**NOTE, "text": "by bob"}] * 3)
    ids |= {note["id"]: note["text"] for note in batch.json()}
    stored = {
        note_id: f"by {name}"
        for name, notes in house.owned().items()
        for note_id, text, _ in notes
        if text.startswith("by ")
    }
    assert stored == ids


def test_tags_are_of_one_user(house: House) -> None:
    """The same listing of two users, such as an empty one, has two tags."""
    for path in ("/notes/", "/notes/?limit=3", "/notes/?q=a"):
        bobs = house.clients["bob"].get(path)
        alices = house.clients["alice"].get(path, headers={"if-none-match": bobs.headers["etag"]})
        assert (bobs.content, alices.content, alices.status_code) == (b"[]", b"[]", 200)


def test_pages_are_walked_past_those_of_others(house: House) -> None:
    """The pages of a user have all notes of the user, and count them."""
    created = create_notes(house)
    client, mine = house.clients["bob"], created["bob"]
    for query in ("limit=2", "limit=2&order=desc", "limit=2&q=whispered"):
        found = [note for page in follow(client, f"/notes/?{query}") for note in page.json()]
        assert found == (mine[::-1] if "desc" in query else mine)
    done = client.get("/notes/?completed=1&limit=9", headers={"prefer": "count=exact"})
    assert (done.json(), done.headers["x-total-count"]) == (mine[::2], "3")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_usual_operations(law: Law, house: House) -> None:
    """What holds for notes of all holds for each user's, beside the notes of another."""
    note = {"text": "GRÖSSE 1", "completed": True}
    house.clients["alice"].post("/notes/batch", json=[note] * 20).raise_for_status()
    (usual,) = find(document)
    law(house.clients["bob"], usual)
    assert len(house.owned()["alice"]) == 20


def test_users_see_themselves(house: House) -> None:
    """A user finds themself, by the name in upper or lower case, and nobody else."""
    for me, client in house.clients.items():
        assert client.get(f"/users/{me.upper()}").json()["username"] == me
        for name in (OTHERS[me], "carol", "%00"):
            assert client.get(f"/users/{name}").status_code == 404


def test_notes_without_an_owner_are_nobodys(house: House) -> None:
    """What was stored without a user is a 404 for all, until somebody adopts it."""
    databases.execute(
        house.database_url, "INSERT INTO notes (text, completed) VALUES ('old', false)"
    )
    (((note_id, *_),),) = house.owned().values()
    for client in house.clients.values():
        assert client.get("/notes/").json() == []
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            answer = client.request(method, f"/notes/{note_id}", json=NOTE)
            assert answer.status_code == 404
    result = operate(house.database_url, "users", "adopt", "bob")
    assert (result.returncode, result.stdout) == (0, "notes: 1\n")
    old = {"id": note_id, "text": "old", "completed": False}
    assert house.clients["bob"].get("/notes/").json() == [old]
    assert house.clients["alice"].get(f"/notes/{note_id}").status_code == 404


def test_a_private_service_asks_for_a_token(house: House) -> None:
    """Without a token every path of a resource is a 401, and the document says so."""
    with httpx2.Client(base_url=house.url) as client:
        for path in ("/notes/", "/notes/batch", "/notes/1", "/users/bob"):
            for method in ("GET", "POST", "DELETE"):
                answer = client.request(method, path, json=NOTE)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        described = client.get("/openapi.json").json()
    validate(described, cls=OpenAPIV31SpecValidator)
    assert "token" in described["components"]["securitySchemes"]


def test_all_tokens_of_a_user_have_the_same_notes(database_url: str, tmp_path: Path) -> None:
    """Users of a provider have their own notes, which each of a user's tokens reaches."""
    with providing() as provider:
        variables = {"ACCESS": "private", "JWT_ISSUER": provider.url, "JWT_AUDIENCE": AUDIENCE}
        with serving(database_url, tmp_path / "log", **variables) as client:

            def ask(token: str, method: str, path: str, **options: Any) -> httpx2.Response:
                headers = {"authorization": f"Bearer {token}", "idempotency-key": "one"}
                return client.request(method, path, headers=headers, **options)

            alice, bob = (provider.token(sub=name) for name in OTHERS)
            notes = [ask(user, "POST", "/notes/", json=NOTE).json() for user in (alice, bob)]
            assert [note["id"] for note in notes] == [1, 2]
            add = ("tokens", "add", "bob")
            writer = operate(database_url, *add, "writer").stdout.strip()
            reader = operate(database_url, *add, "reader", "--read-only").stdout.strip()
            # The key of a safe retry is the user's, whatever the token.
            assert ask(writer, "POST", "/notes/", json=NOTE).json() == notes[1]
            for token in (bob, writer, reader):
                assert ask(token, "GET", "/notes/").json() == notes[1:]
                assert ask(token, "GET", path_of(notes[0])).status_code == 404
                assert ask(token, "GET", "/users/alice").status_code == 404
            assert ask(alice, "GET", "/notes/").json() == notes[:1]
            assert ask(alice, "DELETE", path_of(notes[1])).status_code == 404
            for note in notes:
                assert ask(reader, "DELETE", path_of(note)).status_code == 403
            assert ask(reader, "POST", "/notes/", json=NOTE).status_code == 403
            assert ask(writer, "DELETE", path_of(notes[1])).status_code == 204
            assert ask(bob, "GET", "/notes/").json() == []


def test_a_database_without_owners_is_told(database_url: str, tmp_path: Path) -> None:
    """On the tables of the version before, a private service says that these are not migrated."""
    token = add_user(database_url, "bob")
    assert databases.alembic(database_url, "downgrade", "0007").returncode == 0
    with serving(database_url, tmp_path / "log", ACCESS="private") as client:
        client.headers["authorization"] = f"Bearer {token}"
        for answer in (client.get("/notes/"), client.post("/notes/", json=NOTE)):
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert "migrated to 0007" in client.get("/health/ready").json()["detail"]
    with serving(database_url, tmp_path / "log") as client:
        assert client.post("/notes/", json=NOTE).json() == {"id": 1, **NOTE}
        assert client.get("/notes/").json() == [{"id": 1, **NOTE}]


def test_the_creator_is_recorded_with_a_token(database_url: str, tmp_path: Path) -> None:
    """With ACCESS=token all see all notes, and later, in private, each user their own."""
    tokens = [add_user(database_url, name) for name in OTHERS]
    users = [{"authorization": f"Bearer {token}"} for token in tokens]
    with serving(database_url, tmp_path / "log") as client:
        # Nobody is recorded where the service is open, whoever sends a token.
        client.post("/notes/", json=NOTE, headers=users[0]).raise_for_status()
    with serving(database_url, tmp_path / "log", ACCESS="token") as client:
        for user in users:
            client.post("/notes/", json=NOTE, headers=user).raise_for_status()
            client.post("/notes/batch", json=[NOTE], headers=user).raise_for_status()
        notes = client.get("/notes/", headers=users[0]).json()
        assert notes == client.get("/notes/", headers=users[1]).json()
        assert len(notes) == 5
        changed = client.patch(path_of(notes[1]), json={"text": "by bob"}, headers=users[1])
        notes[1] = changed.json()
        assert client.get(f"/users/{OTHERS['bob']}", headers=users[1]).status_code == 200
    with serving(database_url, tmp_path / "log", ACCESS="private") as client:
        assert client.get("/notes/", headers=users[0]).json() == notes[1:3]
        assert client.get("/notes/", headers=users[1]).json() == notes[3:]
