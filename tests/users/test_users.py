"""Users: what can be done with them apart from the web, and the one route."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.users import queries as users
from service.users.memory import TokenMemory
from service.users.queries import normalize
from service.users.schemas import user_out
from tests.conftest import Server
from tests.support.databases import NewDatabase, clear, execute
from tests.support.operating import operate
from tests.support.processes import Run
from tests.support.servers import serving


@pytest.fixture
def run(process: Run, shared_database_url: str) -> Run:
    """Runs a function on an empty database."""
    clear(shared_database_url)
    return process


async def find_in_all_cases() -> list[Any]:
    await users.add_user("Bob.1", users.new_token())
    found: list[Any] = [
        *[await users.get_user(name) for name in ("bob.1", "BOB.1")],
        await users.set_active("BOB.1", True),
        await users.set_token("BOB.1", users.new_token()),
    ]
    return [dict(user) for user in found]


def test_a_user_is_found_by_name(run: Run) -> None:
    """A user is found and changed, in whatever case the name is asked for, and shows no secret."""
    before = int(time.time())
    first, *others = run(find_in_all_cases)
    assert others == [first] * 3
    assert before <= first.pop("created_at") <= time.time()
    assert {**first, "is_active": bool(first["is_active"])} == {
        "id": 1,
        "username": "bob.1",
        "is_active": True,
    }


async def use_name_of_nobody(name: str) -> list[Any]:
    await users.add_user("bob", users.new_token())
    await users.add_user("k", users.new_token())
    return [
        await users.get_user(name),
        await users.set_active(name, False),
        await users.set_token(name, users.new_token()),
        await users.remove_user(name),
        [bool(user["is_active"]) for user in await users.list_users()],
    ]


@pytest.mark.parametrize("name", ["", "carol", "bob ", "b%b", "bo_", "\0", "\u212a", "b" * 5000])
def test_no_such_user(run: Run, name: str) -> None:
    """A name that nobody has, or nobody can have, finds and changes nobody."""
    assert run(use_name_of_nobody, name) == [None, None, None, False, [True, True]]


async def remove_and_add_again() -> tuple[list[bool], Any, int, list[bool]]:
    tokens = [users.new_token() for _ in range(3)]
    digests = [str(users.digest(token)) for token in tokens]
    for name, token in zip(("alice", "bob"), tokens, strict=False):
        await users.add_user(name, token)
    removed = [await users.remove_user(name) for name in ("Bob", "bob")]
    gone = await users.get_user("bob")
    again = await users.add_user("bob", tokens[2])
    assert again is not None
    active = await users.get_active(digests)
    return removed, gone, again["id"], [digest in active for digest in digests]


def test_a_removed_user_is_gone(run: Run) -> None:
    """Nobody has a removed user's name, token or id; another user may be given the name."""
    assert run(remove_and_add_again) == ([True, False], None, 3, [True, False, True])


async def add_twice() -> tuple[list[bool], int]:
    stored = [await users.add_user(name, users.new_token()) for name in ("bob", "BOB")]
    with pytest.raises(ValueError, match="no username"):
        await users.add_user("", users.new_token())
    return [bool(user) for user in stored], len(await users.list_users())


def test_names_are_unique(run: Run) -> None:
    """A name is given once, in whatever case, and nobody is stored under what is no name."""
    assert run(add_twice) == ([True, False], 1)


async def ask_for_tokens() -> list[int]:
    tokens = [users.new_token() for _ in range(4)]
    digests = [str(users.digest(token)) for token in tokens]
    for name, token in zip("abc", tokens, strict=False):
        await users.add_user(name, token)
    await users.set_active("b", False)
    await users.set_token("c", tokens[3])
    assert await users.has_users()
    return sorted(digests.index(digest) for digest in await users.get_active(digests))


def test_tokens_of_active_users_are_known(run: Run) -> None:
    """The digest of a token is known while its user is active and has no other."""
    assert run(ask_for_tokens) == [0, 3]


async def ask_in_turns() -> tuple[list[Any], int]:
    memory = TokenMemory(seconds=60, capacity=3)
    digests = []
    for number in range(7):
        token = users.new_token()
        await users.add_user(f"user-{number}", token)
        digests.append(str(users.digest(token)))
    names: list[Any] = []
    most = 0
    for digest in digests * 2 + digests[:1] * 2:
        user = await memory.find(digest)
        names.append(user and user["username"])
        most = max(most, len(memory))
    return names, most


def test_remembered_tokens_are_bounded(run: Run) -> None:
    """However many users come, so many tokens at most are remembered, each for its own user."""
    names = [f"user-{number}" for number in range(7)]
    assert run(ask_in_turns) == (names * 2 + names[:1] * 2, 3)


@given(st.text(max_size=70))
def test_usernames_are_normal(text: str) -> None:
    """What is taken for a username is the same in lower case, ASCII, and taken as itself again."""
    name = normalize(text)
    if re.fullmatch("[a-zA-Z0-9._-]{1,64}", text, re.ASCII):
        assert name == text.lower()
        assert normalize(name) == name
    else:
        assert name is None


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is nine hours ahead of UTC."""
    monkeypatch.setenv("TZ", "UTC-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_away")
def test_times_are_in_utc() -> None:
    """`created_at` is a time in UTC, wherever the service runs."""
    user = {"id": 1, "username": "bob", "is_active": True, "created_at": 1_772_280_000}
    assert user_out.dump(user)["created_at"] == "2026-02-28T12:00:00Z"


def test_a_user_is_served(server: Server, service: httpx2.Client) -> None:
    """`GET /users/{username}` gives the public part of a user and nothing else."""
    for command in (["add", "bob"], ["deactivate", "bob"]):
        assert operate(server.database_url, "users", *command).returncode == 0
    answer = service.get("/users/Bob")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    user = answer.json()
    assert list(user) == ["id", "username", "is_active", "created_at"]
    assert (user["id"], user["username"]) == (1, "bob")
    assert user["is_active"] is False
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", user["created_at"])
    assert service.head("/users/bob").headers["content-length"] == str(len(answer.content))
    for name in ("carol", "b%6Fb%00", "b%20", "%E2%84%AA", "b" * 5000):
        missing = service.get(f"/users/{name}")
        assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert service.post("/users/bob").headers["allow"] == "GET, HEAD, OPTIONS"


def test_foreign_names(new_database: NewDatabase, tmp_path: Path) -> None:
    """A username that is no UTF-8 doesn't spoil the list of users, nor their access."""
    url = new_database("sqlite")
    assert operate(url, "users", "add", "bob").returncode == 0
    values = "CAST(x'ff' AS TEXT), 1, 0, CAST(x'fe' AS TEXT)"
    columns = "username, is_active, created_at, token_sha256"
    execute(url, f"INSERT INTO users ({columns}) VALUES ({values})")
    listed = operate(url, "users", "list")
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ["bob", "\ufffd"]
    token = operate(url, "users", "rotate", "bob").stdout.strip()
    headers = {"authorization": f"Bearer {token}"}
    with serving(url, tmp_path / "log", ACCESS="token") as client:
        answer = client.get("/notes/", headers=headers)
    assert answer.json() == []
