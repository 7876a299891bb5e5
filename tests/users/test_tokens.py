"""The tokens of a user: several, with names, some of which expire or only read."""

import asyncio
import gc
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from service.database.errors import DatabaseUnavailable
from service.users import queries as users
from service.users import uses
from service.users.memory import TokenMemory
from service.users.uses import HOUR, Uses
from tests.support import databases
from tests.support.databases import NewDatabase, clear, execute
from tests.support.operating import Operate, add_user, operate, operating
from tests.support.processes import Run
from tests.support.servers import serving
from tests.support.waiting import poll

CACHE_SECONDS = 1.0
NOTE = {"text": "a", "completed": True}
TOKEN = re.compile(r"notes_[A-Za-z0-9_-]{43}\n")
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture(scope="module")
def shared_operate(shared_database_url: str) -> Iterator[Operate]:
    with operating(shared_database_url) as operate:
        yield operate


@pytest.fixture
def tokens(shared_operate: Operate, shared_database_url: str) -> Operate:
    """Runs commands for tokens on a database of each kind in turn, which has the user bob."""
    clear(shared_database_url)
    assert shared_operate("users", "add", "bob").returncode == 0
    return partial(shared_operate, "tokens")


def test_tokens_are_operated(tokens: Operate) -> None:
    """Tokens are added, with an end or only for reading, listed and revoked."""
    added = [
        tokens("add", "bob", "ci", "--expires", "30d"),
        tokens("add", "Bob", "Reader", "--read-only"),
    ]
    for result in added:
        assert (result.returncode, result.stderr) == (0, "")
        assert TOKEN.fullmatch(result.stdout)
    listed = tokens("list", "BOB").stdout
    assert re.fullmatch(
        "default\tread-write\tnever\tunused\n"
        f"ci\tread-write\t{TIME}\tunused\n"
        "reader\tread-only\tnever\tunused\n",
        listed,
    )
    month = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 30 * 24 * HOUR))
    assert month[:-1] in listed
    assert not any(result.stdout.strip() in listed for result in added)

    revoked = tokens("revoke", "bob", "CI")
    assert (revoked.returncode, revoked.stdout, revoked.stderr) == (0, "", "")
    assert tokens("revoke", "bob", "default").returncode == 0
    assert tokens("list", "bob").stdout == "reader\tread-only\tnever\tunused\n"
    tokens("revoke", "bob", "reader")
    none_left = tokens("list", "bob")
    assert (none_left.returncode, none_left.stdout, none_left.stderr) == (0, "", "")


def test_no_such_token(tokens: Operate) -> None:
    """A name that is taken or unknown is an error of one line and changes nothing."""
    tokens("add", "bob", "ci", "--read-only")
    before = tokens("list", "bob").stdout
    for arguments, error in {
        ("add", "bob", "CI"): "bob has a token ci already.",
        ("add", "carol", "ci"): "There is no user carol.",
        ("add", "bob", "default"): "To replace the token default: users rotate bob.",
        ("list", "carol"): "There is no user carol.",
        ("revoke", "bob", "other"): "There is no user bob with a token other.",
        ("revoke", "carol", "default"): "There is no user carol with a token default.",
    }.items():
        result = tokens(*arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"Error: {error}\n"
    assert tokens("list", "bob").stdout == before
    tokens("revoke", "bob", "default")
    assert tokens("revoke", "bob", "default").returncode == 1


@pytest.mark.parametrize("time", ["30", "d", "0d", "-1d", "1.5d", "30 d", "1y", "٣d", "999999w"])
def test_no_time(tokens: Operate, time: str) -> None:
    """What is no time to come is an error of usage, which shows some."""
    result = tokens("add", "bob", "ci", f"--expires={time}")
    assert (result.returncode, result.stdout) == (2, "")
    assert "12h, 30d or 52w" in result.stderr


def test_a_removed_user_loses_tokens(
    tokens: Operate, shared_operate: Operate, shared_database_url: str
) -> None:
    """With a user all tokens go, also if the version before removes the user."""
    tokens("add", "bob", "ci")
    shared_operate("users", "add", "alice")
    tokens("add", "alice", "ci")
    assert shared_operate("users", "remove", "bob").returncode == 0
    assert execute(shared_database_url, "SELECT count(*) FROM tokens") == 1
    statements = ["DELETE FROM users"]
    if shared_database_url.startswith("sqlite"):
        statements.insert(0, "PRAGMA foreign_keys = ON")
    execute(shared_database_url, *statements)
    assert execute(shared_database_url, "SELECT count(*) FROM tokens") == 0


class House(NamedTuple):
    """A service that asks for tokens, and bob's token `default`."""

    client: httpx2.Client
    database_url: str
    default: str

    def add(self, name: str, *options: str) -> str:
        result = operate(self.database_url, "tokens", "add", "bob", name, *options)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def status(self, token: str, method: str = "GET", path: str = "/notes/") -> int:
        body = NOTE if method in ("POST", "PUT", "PATCH") else None
        return self.client.request(method, path, json=body, headers=bearer(token)).status_code


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def house(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    log = tmp_path_factory.mktemp("tokens") / "log"
    clear(shared_database_url)
    default = add_user(shared_database_url, "bob")
    variables = {"ACCESS": "token", "ACCESS_CACHE_SECONDS": str(CACHE_SECONDS)}
    # Commands take seconds on a busy machine, while a connection is idle.
    with serving(shared_database_url, log, "--timeout-keep-alive=95", **variables) as client:
        yield House(client, shared_database_url, default)


def refused_in_time(house: House, token: str) -> None:
    """The token is refused within ACCESS_CACHE_SECONDS from now on."""
    done = asked = time.monotonic()
    while house.status(token) == 200:
        assert asked - done < CACHE_SECONDS, "it still worked"
        asked = time.monotonic()
    answer = house.client.get("/notes/", headers=bearer(token))
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_each_token_ends_alone(house: House) -> None:
    """A token that is revoked is refused, and the others of its user stay."""
    first, second = house.add("first"), house.add("second")
    users_url = "/users/bob"
    assert [house.status(token, path=users_url) for token in (first, second)] == [200, 200]
    assert operate(house.database_url, "tokens", "revoke", "bob", "first").returncode == 0
    refused_in_time(house, first)
    rotated = operate(house.database_url, "users", "rotate", "bob").stdout.strip()
    refused_in_time(house, house.default)
    assert [house.status(token) for token in (second, rotated)] == [200, 200]
    assert operate(house.database_url, "tokens", "revoke", "bob", "default").returncode == 0
    refused_in_time(house, rotated)
    assert house.status(second, "POST") == 200
    again = operate(house.database_url, "users", "rotate", "bob").stdout.strip()
    assert house.status(again) == 200
    assert operate(house.database_url, "users", "deactivate", "bob").returncode == 0
    refused_in_time(house, second)
    assert operate(house.database_url, "users", "activate", "bob").returncode == 0
    assert house.status(second) == 200


def test_a_read_only_token_reads(house: House) -> None:
    """A read-only token gets 403 with the reason for every write, which does nothing."""
    writer, reader = house.add("writer"), house.add("reader", "--read-only")
    note = house.client.post("/notes/", json=NOTE, headers=bearer(writer)).json()
    path = f"/notes/{note['id']}"
    for url in ("/notes/", path, "/users/bob"):
        assert house.status(reader, "GET", url) == house.status(reader, "HEAD", url) == 200
        assert house.status(reader, "OPTIONS", url) == 204
    before = house.client.get("/notes/", headers=bearer(reader)).content
    for url in ("/notes/", "/notes/batch", path, "/users/bob"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "PURGE"):
            answer = house.client.request(
                method, url, json=NOTE, headers=bearer(reader) | {"idempotency-key": "a"}
            )
            assert (answer.status_code, answer.json()) == (
                403,
                {"detail": "The token is read-only"},
            )
            assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
    assert house.client.get("/notes/", headers=bearer(reader)).content == before
    assert house.status(writer, "PUT", path) == 200


def last_uses(database_url: str) -> list[str]:
    """The last use of each of bob's tokens, as the command lists them."""
    listed = operate(database_url, "tokens", "list", "bob").stdout
    return [line.split("\t")[3] for line in listed.splitlines()]


def test_the_last_use_is_told(house: House) -> None:
    """The list of tokens has the hour in which each was last used, soon after."""
    execute(house.database_url, "DELETE FROM tokens")
    token = house.add("used")
    house.add("unused")
    default = operate(house.database_url, "users", "rotate", "bob").stdout.strip()
    assert last_uses(house.database_url) == ["unused"] * 3
    begun = time.time()
    assert [house.status(token) for token in (token, default)] == [200, 200]
    stored = (
        "SELECT count(*) FROM users, tokens"
        " WHERE token_used_at IS NOT NULL AND last_used_at IS NOT NULL"
    )
    poll(lambda: execute(house.database_url, stored) == 1)
    hours = {time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime(at)) for at in (begun, time.time())}
    found = last_uses(house.database_url)
    assert {found[0], found[2]} <= hours
    assert found[1] == "unused"


async def ask_until_it_expires() -> list[bool]:
    await users.add_user("bob", users.new_token())
    token = users.new_token()
    expires = int(time.time()) + 2
    await users.add_token("bob", "ci", token, expires, False)
    memory = TokenMemory(seconds=3600, capacity=10)
    right = []
    before = 0.0
    while before < expires:
        before = time.time()
        found = await memory.find(str(users.digest(token)))
        if time.time() < expires:
            right.append(found is not None)
        elif before >= expires:
            right.append(found is None)
        await asyncio.sleep(0.01)
    return right


def test_a_token_expires(process: Run, shared_database_url: str) -> None:
    """A token counts until its end and no longer, however long it is cached."""
    clear(shared_database_url)
    right = process(ask_until_it_expires)
    assert all(right)


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 10.0 * HOUR

    def time(self) -> float:
        return self.now


class Writes:
    """The writes of `Uses`, of which each fails if told so."""

    def __init__(self) -> None:
        self.made: list[tuple[set[str], int]] = []
        self.fails = False

    async def __call__(self, digests: Iterable[str], hour: int) -> None:
        self.made.append((set(digests), hour // HOUR))
        if self.fails:
            raise DatabaseUnavailable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(uses, "time", clock)
    monkeypatch.setattr(uses, "PAUSE", 0)
    return clock


def test_a_use_is_written_once_an_hour(clock: Clock) -> None:
    """Many uses are one write, and each token has one at most in an hour, even if it fails."""

    complaints: list[Any] = []

    async def use() -> list[tuple[set[str], int]]:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        writes = Writes()
        found = Uses(writes, capacity=100)

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        stale: dict[str, Any] = {"a": None, "b": 9 * HOUR, "c": 10 * HOUR}
        for _ in range(3):
            found.add(stale)
        found.add({"d": 0})
        await settle()
        found.add(stale)
        await settle()
        writes.fails = True
        clock.now += HOUR
        found.add({"a": 10 * HOUR})
        await settle()
        found.add({"a": 10 * HOUR})
        await settle()
        writes.fails = False
        clock.now += HOUR
        found.add({"a": 10 * HOUR})
        await settle()
        return writes.made

    assert asyncio.run(use()) == [({"a", "b", "d"}, 10), ({"a"}, 11), ({"a"}, 12)]
    gc.collect()
    assert not complaints


def test_remembered_uses_are_bounded(clock: Clock) -> None:
    """However many tokens are used, so many at most are remembered."""

    async def use() -> int:
        found = Uses(Writes(), capacity=10)
        most = 0
        for number in range(100):
            found.add({f"{number}": None})
            await asyncio.sleep(0)
            most = max(most, len(found))
        return most

    assert asyncio.run(use()) == 10


def test_uses_that_cannot_be_written_are_no_harm(new_database: NewDatabase, tmp_path: Path) -> None:
    """If the database doesn't take the last use, requests are served all the same."""
    url = new_database("postgresql")
    token = add_user(url, "bob")
    variables = {
        "ACCESS": "token",
        "ACCESS_CACHE_SECONDS": "0",
        "DATABASE_STATEMENT_TIMEOUT": "1",
    }
    with serving(url, tmp_path / "log", **variables) as client:
        client.headers |= bearer(token)
        with databases.holding(url, "UPDATE users SET token_used_at = NULL"):
            assert client.get("/notes/").status_code == 200
            poll(lambda: databases.waiting(url) == 1)
            poll(lambda: databases.waiting(url) == 0)
        assert client.get("/notes/").status_code == 200
    assert last_uses(url) == ["unused"]


def test_tokens_before_and_after(database_url: str) -> None:
    """The version before adds and rotates on today's tables, and its tokens go on after both."""
    token = users.new_token()
    old = (
        "INSERT INTO users (username, is_active, created_at, token_sha256)"
        f" VALUES ('bob', true, 0, '{users.digest(token)}')"
    )
    execute(database_url, old)
    assert operate(database_url, "tokens", "add", "bob", "ci").returncode == 0
    for command in ("downgrade 0009-1", "upgrade head"):
        result = databases.alembic(database_url, *command.split())
        assert result.returncode == 0, result.stderr
    listed = operate(database_url, "tokens", "list", "bob").stdout
    assert listed == "default\tread-write\tnever\tunused\n"
    assert execute(database_url, "SELECT token_sha256 FROM users") == users.digest(token)
