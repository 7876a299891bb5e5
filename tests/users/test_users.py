"""Users: what can be done with them apart from the web, and the one route."""

import asyncio
import importlib
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.users.queries import normalize
from tests.conftest import Server
from tests.support.operating import operate

Run = Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Any]


def imported() -> list[str]:
    """The service's modules, but for the metrics, of which a process can have but one."""
    names = [name for name in sys.modules if name.partition(".")[0] == "service"]
    return [name for name in names if name != "service.metrics"]


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a function of `service.users`, imported for a fresh database of each kind in turn."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    users = importlib.import_module("service.users.queries")
    database = importlib.import_module("service.database")

    async def run_connected(action: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        async with database.connected():
            return await action(users)

    yield lambda action: asyncio.run(run_connected(action))
    for name in imported():
        del sys.modules[name]


def test_a_user_is_found_by_name(run: Run) -> None:
    """`get_user` gives the user, in whatever case the name is asked for, and no secret."""

    async def use(users: Any) -> Any:
        await users.add_user("Bob.1", users.new_token())
        return [dict(await users.get_user(name)) for name in ("bob.1", "BOB.1")]

    before = int(time.time())
    first, second = run(use)
    assert first == second
    assert before <= first.pop("created_at") <= time.time()
    assert {**first, "is_active": bool(first["is_active"])} == {
        "id": 1,
        "username": "bob.1",
        "is_active": True,
    }


@pytest.mark.parametrize("name", ["", "carol", "bob ", "b%b", "bo_", "\0", "\u212a", "b" * 5000])
def test_no_such_user(run: Run, name: str) -> None:
    """A name that nobody has, or nobody can have, finds and changes nobody."""

    async def use(users: Any) -> Any:
        await users.add_user("bob", users.new_token())
        await users.add_user("k", users.new_token())
        return [
            await users.get_user(name),
            await users.set_active(name, False),
            await users.set_token(name, users.new_token()),
            await users.remove_user(name),
            [bool(user["is_active"]) for user in await users.list_users()],
        ]

    assert run(use) == [None, None, None, None, [True, True]]


def test_a_removed_user_is_gone(run: Run) -> None:
    """Nobody has a removed user's name, token or id; another user may be given the name."""

    async def use(users: Any) -> Any:
        tokens = [users.new_token() for _ in range(3)]
        for name, token in zip(("alice", "bob"), tokens, strict=False):
            await users.add_user(name, token)
        assert (await users.remove_user("Bob"))["username"] == "bob"
        assert await users.get_user("bob") is None
        assert await users.remove_user("bob") is None
        again = await users.add_user("bob", tokens[2])
        known = await users.get_active([users.digest(token) for token in tokens])
        return again["id"], [users.digest(token) in known for token in tokens]

    assert run(use) == (3, [True, False, True])


def test_names_are_unique(run: Run) -> None:
    """A name is given once, in whatever case, and nobody is stored under what is no name."""

    async def use(users: Any) -> Any:
        stored = [await users.add_user(name, users.new_token()) for name in ("bob", "BOB")]
        with pytest.raises(ValueError, match="no username"):
            await users.add_user("", users.new_token())
        return [bool(user) for user in stored], len(await users.list_users())

    assert run(use) == ([True, False], 1)


def test_tokens_of_active_users_are_known(run: Run) -> None:
    """The digest of a token is known while its user is active and has no other."""

    async def use(users: Any) -> Any:
        tokens = [users.new_token() for _ in range(4)]
        digests = [users.digest(token) for token in tokens]
        for name, token in zip("abc", tokens, strict=False):
            await users.add_user(name, token)
        await users.set_active("b", False)
        await users.set_token("c", tokens[3])
        known = await users.get_active(digests)
        assert await users.has_users()
        return [digests.index(digest) for digest in known]

    assert sorted(run(use)) == [0, 3]


def test_remembered_tokens_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many users come, so many tokens at most are remembered, each for its own user."""

    async def use(users: Any) -> tuple[list[str], int]:
        access = importlib.import_module("service.users.access")
        monkeypatch.setattr(access, "MOST", 3)
        headers = []
        for number in range(7):
            token = users.new_token()
            await users.add_user(f"user-{number}", token)
            headers.append([(b"authorization", f"Bearer {token}".encode())])
        names, most = [], 0
        for one in headers * 2 + headers[:1] * 2:
            names.append((await access.find_user({"headers": one}))["username"])
            most = max(most, len(access._known))
        return names, most

    names = [f"user-{number}" for number in range(7)]
    assert run(use) == (names * 2 + names[:1] * 2, 3)


@given(st.text(max_size=70))
def test_usernames_are_normal(text: str) -> None:
    """What is taken for a username is the same in lower case, ASCII, and taken as itself again."""
    name = normalize(text)
    if re.fullmatch("[a-zA-Z0-9._-]{1,64}", text, re.ASCII):
        assert name == text.lower()
        assert normalize(name) == name
    else:
        assert name is None


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
