"""Conditional requests (RFC 9110): entity tags, and two clients that don't undo each other."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service.web import conditions
from tests.conftest import Server
from tests.support.databases import holding
from tests.support.metrics import metric
from tests.support.servers import async_clients
from tests.support.waiting import poll

NOTE = {"text": "note", "completed": False}
FAILED = (412, {"detail": "Precondition Failed"})
NOT_FOUND = (404, {"detail": "Not Found"})
WRITES: list[tuple[str, dict[str, Any] | None]] = [
    ("PUT", {"text": "new", "completed": True}),
    ("PATCH", {"text": "new"}),
    ("PATCH", {}),
    ("DELETE", None),
]


@pytest.fixture(scope="module")
def client(processes: list[str]) -> Iterator[httpx2.Client]:
    """A client of the first process."""
    with httpx2.Client(base_url=processes[0], timeout=30) as client:
        yield client


def create(client: httpx2.Client) -> tuple[str, str]:
    """Stores a note and gives its path and its tag."""
    answer = client.post("/notes/", json=NOTE)
    return f"/notes/{answer.json()['id']}", answer.headers["etag"]


def ask(
    client: httpx2.Client,
    method: str,
    path: str,
    name: str,
    *values: str | bytes,
    body: dict[str, Any] | None = None,
) -> httpx2.Response:
    """Sends a request whose header stands on as many lines as there are values."""
    headers = [
        (name.encode(), value.encode("latin-1") if isinstance(value, str) else value)
        for value in values
    ]
    return client.request(method, path, headers=headers, json=body)


def test_tags_change_if_and_only_if_the_note_changes(client: httpx2.Client) -> None:
    """Every answer with one note has a strong tag, which changes with the note's value."""
    path, tag = create(client)
    assert tag.startswith('"')
    assert tag.endswith('"')

    def current() -> str:
        get, head = client.get(path), client.head(path)
        assert get.headers["etag"] == head.headers["etag"]
        return str(get.headers["etag"])

    def changed(method: str, body: dict[str, Any]) -> str:
        answer = client.request(method, path, json=body)
        assert answer.status_code == 200
        assert answer.headers["etag"] == current()
        return str(answer.headers["etag"])

    assert current() == current() == tag
    assert changed("PUT", NOTE) == tag
    assert changed("PATCH", {}) == tag
    assert changed("PATCH", {"completed": 0, "other": 1}) == tag
    tags = [
        tag,
        changed("PATCH", {"completed": True}),
        changed("PATCH", {"text": "Note"}),
        changed("PUT", {"text": "", "completed": True}),
        changed("PUT", {"text": "", "completed": False}),
        changed("PATCH", {"text": "note "}),
        changed("PATCH", {"text": "e\u0301"}),
        changed("PATCH", {"text": "\u00e9"}),
    ]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "values",
    [
        ["{tag}"],
        ["W/{tag}"],
        ["*"],
        ['"a", {tag}'],
        ['"a" ,\t W/{tag} , "b"'],
        [', ,"a",,{tag},'],
        ['"a,b", {tag}'],
        ['"a"', "{tag}"],
        ['W/"a"', 'W/{tag}, "b"'],
        ['"\xe9\xff", {tag}'],
        ['"", {tag}'],
    ],
)
def test_what_a_client_has_is_not_sent_again(
    client: httpx2.Client, method: str, values: list[str]
) -> None:
    """With `If-None-Match` of the note's tag, strong or weak, the answer is 304 and no body."""
    path, tag = create(client)
    values = [value.replace("{tag}", tag) for value in values]
    answer = ask(client, method, path, "if-none-match", *values)
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    for write, body in WRITES:
        refused = ask(client, write, path, "if-none-match", *values, body=body)
        assert (refused.status_code, refused.json()) == FAILED
    assert client.get(path).headers["etag"] == tag

    client.patch(path, json={"completed": True})
    if "*" not in values[0]:
        answer = ask(client, method, path, "if-none-match", *values)
        assert (answer.status_code, bool(answer.content)) == (200, method == "GET")
        assert ask(client, "DELETE", path, "if-none-match", *values).status_code == 204
        assert ask(client, method, path, "if-none-match", *values).status_code == 404


GARBAGE = [
    "",
    ",",
    "{bare}",
    '"{bare}',
    '{bare}"',
    "'{bare}'",
    "w/{tag}",
    "W/ {tag}",
    "W/W/{tag}",
    "W{tag}",
    '"a" {tag}',
    '"a"{tag}',
    "x{tag}",
    "{tag}x",
    "{tag};q=1",
    '"a b", x{tag}',
    '"{bare} "',
    '"{upper}"',
    "**",
    "W/*",
    '"*"',
    '"' * 20_000,
    "," * 20_000,
    'W/"' * 5_000,
    "\xe9\xff",
]


@pytest.mark.parametrize("value", GARBAGE)
def test_garbage_matches_nothing(client: httpx2.Client, value: str) -> None:
    """A malformed header has no tags: `If-Match` fails, `If-None-Match` holds."""
    path, tag = create(client)
    bare = tag.strip('"')
    value = value.format(tag=tag, bare=bare, upper=f"{bare}X".upper())
    assert ask(client, "GET", path, "if-none-match", value).status_code == 200
    for write, body in WRITES:
        answer = ask(client, write, path, "if-match", value, body=body)
        assert (answer.status_code, answer.json()) == FAILED
    assert ask(client, "PATCH", path, "if-none-match", value, body={}).status_code == 200
    assert client.get(path).json()["text"] == "note"


@pytest.mark.parametrize(("method", "body"), WRITES)
@pytest.mark.parametrize(
    "values",
    [
        ["{tag}"],
        ["*"],
        ['"a", {tag}'],
        ['W/"a", {tag} ,'],
        ['"a"', "{tag}"],
        ["W/{tag}"],
        ['W/"a" ,W/{tag}'],
    ],
)
def test_writes_to_what_has_not_changed(
    client: httpx2.Client, method: str, body: dict[str, Any] | None, values: list[str]
) -> None:
    """With `If-Match` of the note's tag, which a proxy may have made weak, a write goes through."""
    path, tag = create(client)
    values = [value.replace("{tag}", tag) for value in values]
    answer = ask(client, method, path, "if-match", *values, body=body)
    assert answer.status_code == (204 if method == "DELETE" else 200)
    assert client.get(path).headers.get("etag") == answer.headers.get("etag")


@pytest.mark.parametrize(("method", "body"), WRITES)
def test_writes_to_what_has_changed(
    client: httpx2.Client, method: str, body: dict[str, Any] | None
) -> None:
    """With `If-Match` of another tag, weak or strong, a write is refused and changes nothing."""
    path, old = create(client)
    tag = client.patch(path, json={"completed": True}).headers["etag"]
    other = f'W/"{tag[1:-1].upper()}x"'
    for values in ([old], [f"W/{old}"], [f"W/{old}, {other}"], ['"a", W/"b"', 'W/""', "W/*"]):
        answer = ask(client, method, path, "if-match", *values, body=body)
        assert (answer.status_code, answer.json()) == FAILED
    assert client.get(path).headers["etag"] == tag


@pytest.mark.parametrize(("method", "body"), [*WRITES, ("GET", None), ("HEAD", None)])
@pytest.mark.parametrize("name", ["if-match", "if-none-match"])
def test_what_is_not_there_is_404(
    client: httpx2.Client, name: str, method: str, body: dict[str, Any] | None
) -> None:
    """A note that is not there is 404 under any condition."""
    path, tag = create(client)
    client.delete(path)
    for missing in (path, "/notes/9007199254740992", "/notes/x"):
        for value in (tag, "*", "garbage"):
            answer = ask(client, method, missing, name, value, body=body)
            assert answer.status_code == 404
            assert method == "HEAD" or answer.json() == NOT_FOUND[1]
            assert "etag" not in answer.headers


def test_conditions_come_after_validation(client: httpx2.Client) -> None:
    """Wrong input is 422 under any condition, as it would be without one."""
    path, _ = create(client)
    for method in ("PUT", "PATCH"):
        answer = ask(client, method, path, "if-match", '"old"', body={"text": 1})
        assert answer.status_code == 422


def test_both_conditions_hold_or_the_write_fails(client: httpx2.Client) -> None:
    """With `If-Match` and `If-None-Match` a write needs both."""
    path, tag = create(client)
    for match, none_match, status in [
        (tag, '"a"', 200),
        (tag, tag, 412),
        ("*", "*", 412),
        ('"a"', '"b"', 412),
        ('"a"', tag, 412),
        (tag, "garbage", 200),
    ]:
        headers = {"if-match": match, "if-none-match": none_match}
        assert client.patch(path, json={}, headers=headers).status_code == status


tags = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='"\x7f').filter(
        lambda character: not "\x80" <= character < "\xa0"
    ),
    max_size=4,
)
spaces = st.sampled_from(["", " ", "\t ", "  "])


@settings(max_examples=40)
@given(
    listed=st.lists(
        st.none() | st.tuples(st.booleans(), st.none() | tags, spaces, spaces), min_size=1
    )
)
def test_any_list_of_tags(
    client: httpx2.Client, listed: list[tuple[bool, str | None, str, str] | None]
) -> None:
    """A tag is found in any list that has it, strong or weak."""
    path, tag = create(client)
    items = []
    found = False
    for item in listed:
        if item is None:
            items.append("")
            continue
        weak, opaque, before, behind = item
        # None stands for the note's own tag.
        text = tag if opaque is None else f'"{opaque}"'
        items.append(f"{before}{'W/' if weak else ''}{text}{behind}")
        if opaque is None:
            found = True
    value = ",".join(items).strip()
    read = ask(client, "GET", path, "if-none-match", value)
    assert read.status_code == (304 if found else 200)
    written = ask(client, "PATCH", path, "if-match", value, body={})
    assert written.status_code == (200 if found else 412)
    written = ask(client, "PATCH", path, "if-none-match", value, body={})
    assert written.status_code == (412 if found else 200)


def write(method: str, number: int) -> tuple[str, dict[str, Any] | None]:
    """A write that changes the note, different for each number."""
    if method == "PUT":
        return method, {"text": f"{number}", "completed": number % 2 == 0}
    return method, {"text": f"{number}"} if method == "PATCH" else None


MIXES = {
    "put": ["PUT"],
    "patch": ["PATCH"],
    "delete": ["DELETE"],
    "mixed": ["PUT", "PATCH", "PATCH", "PUT", "DELETE"],
    "two": ["PATCH", "PUT"],
}


@pytest.mark.parametrize("mix", MIXES)
def test_one_of_many_writers_wins(processes: list[str], mix: str) -> None:
    """Of clients that write a note under its tag at once, exactly one succeeds."""
    writers = 2 if mix == "two" else 10
    methods = MIXES[mix]

    async def compete() -> None:
        async with async_clients(processes * (writers // 2)) as clients:
            for number in range(8):
                created = await clients[0].post("/notes/", json=NOTE)
                path = f"/notes/{created.json()['id']}"
                read = await asyncio.gather(*(client.get(path) for client in clients))
                bodies = [
                    write(methods[(number + place) % len(methods)], place)
                    for place in range(writers)
                ]
                answers = await asyncio.gather(
                    *(
                        client.request(
                            method, path, json=body, headers={"if-match": seen.headers["etag"]}
                        )
                        for client, seen, (method, body) in zip(clients, read, bodies, strict=True)
                    )
                )
                statuses = Counter(answer.status_code for answer in answers)
                assert statuses[200] + statuses[204] == 1, statuses
                assert set(statuses) <= {200, 204, 404, 412}
                assert statuses[404] == 0 or statuses[204] == 1
                winner = next(answer for answer in answers if answer.is_success)
                for client in clients[:2]:
                    left = await client.get(path)
                    if winner.status_code == 204:
                        assert left.status_code == 404
                    else:
                        assert left.json() == winner.json()
                        assert left.headers["etag"] == winner.headers["etag"]

    asyncio.run(compete())


def test_no_update_is_lost(processes: list[str]) -> None:
    """Clients that read, change and try again at a 412 have all their changes in the note."""

    async def increment(client: httpx2.AsyncClient, path: str, times: int) -> None:
        for _ in range(times):
            status = 412
            while status == 412:
                read = await client.get(path)
                answer = await client.patch(
                    path,
                    json={"text": str(int(read.json()["text"]) + 1)},
                    headers={"if-match": read.headers["etag"]},
                )
                status = answer.status_code
            assert status == 200

    async def count() -> None:
        async with async_clients(processes) as clients:
            created = await clients[0].post("/notes/", json={"text": "0", "completed": False})
            path = f"/notes/{created.json()['id']}"
            await asyncio.gather(*(increment(client, path, 15) for client in clients * 2))
            assert (await clients[0].get(path)).json()["text"] == "60"

    asyncio.run(count())


def count_reads(service: httpx2.Client) -> float:
    """How many queries for single notes have begun."""
    return metric(service, "coalesced_batch_size_count", query="get_notes")


@pytest.mark.parametrize(("method", "body"), WRITES)
@pytest.mark.parametrize("change", [{"text": "other"}, {"completed": True}])
def test_a_change_behind_the_condition_is_seen(
    server: Server,
    service: httpx2.Client,
    change: dict[str, Any],
    method: str,
    body: dict[str, Any] | None,
) -> None:
    """A write is refused if a field changes after the check of its condition."""
    path, tag = create(service)
    before = count_reads(service)
    ((name, value),) = change.items()
    statement = f"UPDATE notes SET {name} = {value!r} WHERE id = {path.removeprefix('/notes/')}"
    with ThreadPoolExecutor(1) as threads:
        with holding(server.database_url, statement):
            writing = threads.submit(ask, service, method, path, "if-match", tag, body=body)
            poll(lambda: count_reads(service) > before)
            # Queries for single notes follow one another, so the write's own has ended with this.
            assert service.get(path).headers["etag"] == tag
            assert not writing.done()
        answer = writing.result()
    assert answer.status_code == 412
    assert answer.json() == FAILED[1]
    left = service.get(path).json()
    assert {key: left[key] for key in NOTE} == NOTE | change


def test_users_wait_for_no_other_user() -> None:
    """Who writes an item under a condition holds up its user's writes to it, and nobody else's."""
    held = asyncio.Event()

    async def act(item: int | None) -> bool:
        if item == 1:
            await held.wait()
        return True

    async def write(user: int, item: int) -> bool:
        scope = {
            "type": "http",
            "path": "/notes/1",
            "headers": [(b"if-match", b'"a"')],
            "user": {"id": user},
        }

        async def find() -> int:
            return item

        return await conditions.write(Request(scope), find, lambda _: '"a"', act)

    async def write_all() -> list[bool]:
        writers = [asyncio.create_task(write(*each)) for each in [(1, 1), (1, 2), (2, 2)]]
        for _ in range(10):
            await asyncio.sleep(0)
        done = [writer.done() for writer in writers]
        held.set()
        assert await asyncio.gather(*writers) == [True] * 3
        return done

    assert asyncio.run(write_all()) == [False, False, True]


@pytest.mark.parametrize(
    ("field", "reads_each"), [({"if-match": "*"}, 0), ({"if-none-match": '"other"'}, 1)]
)
def test_contenders_wait_for_each_other(
    server: Server, service: httpx2.Client, field: dict[str, str], reads_each: int
) -> None:
    """However many write a note under a condition at once, each reads it once, or never for `*`."""
    writers = 40
    path, _ = create(service)
    before = count_reads(service)

    async def compete() -> list[httpx2.Response]:
        async with async_clients([str(server.client.base_url)] * writers) as clients:
            return await asyncio.gather(
                *(
                    client.patch(path, json={"text": str(number)}, headers=field)
                    for number, client in enumerate(clients)
                )
            )

    assert {answer.status_code for answer in asyncio.run(compete())} == {200}
    assert count_reads(service) - before == writers * reads_each
