"""Safe retries with ACCESS=token: a key is its user's own."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support import databases
from tests.support.operating import add_user, operate
from tests.support.servers import serving
from tests.support.waiting import at_once

NOTE = {"text": "a", "completed": True}
OTHER = {"text": "b", "completed": False}
DAY = 24 * 60 * 60

# Each path with a body, another body, and the number of notes that the body makes.
PATHS = pytest.mark.parametrize(
    ("path", "body", "other", "count"),
    [("/notes/", NOTE, OTHER, 1), ("/notes/batch", [NOTE, OTHER], [NOTE], 2)],
    ids=["single", "batch"],
)


class House(NamedTuple):
    """Two processes on one database that ask for tokens, and the tokens of two users."""

    database_url: str
    clients: list[httpx2.Client]
    bob: str
    alice: str


@pytest.fixture(scope="module")
def shared_house(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    url = shared_database_url
    bob, alice = (add_user(url, name) for name in ("bob", "alice"))
    logs = tmp_path_factory.mktemp("keys")
    variables = {
        "ACCESS": "token",
        "ACCESS_CACHE_SECONDS": "0",
        # On a busy machine writers of one file wait long for each other.
        "DATABASE_POOL_TIMEOUT": "50",
        "DATABASE_STATEMENT_TIMEOUT": "50",
        "REQUEST_TIMEOUT": "200",
    }
    with (
        serving(url, logs / "1", **variables) as one,
        serving(url, logs / "2", **variables) as two,
    ):
        yield House(url, [one, two], bob, alice)


@pytest.fixture
def house(shared_house: House) -> House:
    """A house that holds nothing but its users."""
    databases.execute(
        shared_house.database_url, "DELETE FROM notes", "DELETE FROM idempotency_keys"
    )
    return shared_house


def post(
    client: httpx2.Client, token: str | None, key: str, path: str = "/notes/", body: object = NOTE
) -> httpx2.Response:
    headers = {"idempotency-key": key}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return client.post(path, json=body, headers=headers)


def count_notes(house: House) -> int:
    count: int = databases.execute(house.database_url, "SELECT count(*) FROM notes")
    return count


def stored(answer: httpx2.Response) -> bytes:
    """The notes of an answer. AssertionError if it has none."""
    assert answer.status_code == 200, answer.text
    return answer.content


@PATHS
def test_a_key_is_its_users_own(
    house: House, path: str, body: object, other: object, count: int
) -> None:
    """Two users with the same key each store their notes, and a retry gets its user's answer."""
    first, second = house.clients
    bobs = stored(post(first, house.bob, "k", path, body))
    alices = stored(post(first, house.alice, "k", path, body))
    assert bobs != alices
    assert count_notes(house) == 2 * count
    for client in (first, second):
        assert stored(post(client, house.bob, '"k"', path, body)) == bobs
        assert stored(post(client, house.alice, "k", path, body)) == alices
    assert count_notes(house) == 2 * count


@PATHS
def test_a_key_that_another_user_has_is_free(
    house: House, path: str, body: object, other: object, count: int
) -> None:
    """A key is used up for its own user only. Other users learn nothing of it."""
    stored(post(house.clients[0], house.bob, "k" * 255, path, body))
    stored(post(house.clients[0], house.alice, "k" * 255, path, other))
    reused = post(house.clients[1], house.bob, "k" * 255, path, other)
    assert reused.status_code == 422
    assert reused.json()["detail"][0]["type"] == "idempotency_key_reused"


@PATHS
def test_users_at_once(house: House, path: str, body: object, other: object, count: int) -> None:
    """Of each user's same requests at once, to two processes, one is stored."""
    for key in ("a", "b", "c", "d", "e"):
        answers = at_once(
            [
                partial(
                    post,
                    house.clients[number % 2],
                    (house.bob, house.alice)[number // 2 % 2],
                    key,
                    path,
                    body,
                )
                for number in range(12)
            ]
        )
        bobs = {stored(answer) for number, answer in enumerate(answers) if number // 2 % 2 == 0}
        alices = {stored(answer) for number, answer in enumerate(answers) if number // 2 % 2}
        assert len(bobs) == len(alices) == 1
        assert bobs != alices
    assert count_notes(house) == 5 * 2 * count


def test_keys_of_open_times_are_nobodys(house: House, tmp_path: Path) -> None:
    """No key from before ACCESS=token is a user's, in any spelling."""
    forged = ["k", "1k", "1:k", '"1 k"', "1\\k", "1/k", "bob:k", '"bob k"', "'1'k", '"None k"']
    with serving(house.database_url, tmp_path / "log") as client:
        opened = {key: stored(post(client, None, key)) for key in forged}
        for key in ('1"k', '"1"k"', '"1\\"k"'):
            assert post(client, None, key).status_code == 422
        bobs = stored(post(house.clients[0], house.bob, "k"))
        alices = stored(post(house.clients[0], house.alice, "k"))
        assert len({bobs, alices, *opened.values()}) == 2 + len(forged)
        # Where the service is open, a key is everybody's, whoever sends a token.
        for key, answer in opened.items():
            assert stored(post(client, house.bob, key)) == answer


def test_a_key_outlives_its_token(house: House) -> None:
    """A user with another token is the same user: a retry gets the first answer."""
    first = add_user(house.database_url, "carol")
    answer = stored(post(house.clients[0], first, "k"))
    rotated = operate(house.database_url, "users", "rotate", "carol").stdout.strip()
    assert post(house.clients[0], first, "k").status_code == 401
    assert stored(post(house.clients[1], rotated, "k")) == answer
    assert count_notes(house) == 1


def test_a_removed_user_leaves_no_key_to_a_namesake(house: House) -> None:
    """A namesake of a removed user has keys of its own. The old ones go within a day."""
    gone = add_user(house.database_url, "dave")
    answer = stored(post(house.clients[0], gone, "k"))
    remove = ("users", "remove", "dave", "--to", "bob")
    removed = operate(house.database_url, *remove, ACCESS_CACHE_SECONDS="0")
    assert removed.returncode == 0, removed.stderr
    assert post(house.clients[1], gone, "k").status_code == 401
    new = add_user(house.database_url, "dave")
    assert stored(post(house.clients[0], new, "k")) != answer
    assert count_notes(house) == 2

    databases.execute(
        house.database_url, f"UPDATE idempotency_keys SET created_at = created_at - {DAY + 1}"
    )
    stored(post(house.clients[0], house.bob, "k"))
    count = "SELECT count(*) FROM idempotency_keys"
    assert databases.execute(house.database_url, count) == 1


def test_a_user_who_may_not_come_in_uses_up_no_key(house: House) -> None:
    """A refused request stores nothing, and its key is free once its user is let in again."""
    token = add_user(house.database_url, "erin")
    operate(house.database_url, "users", "deactivate", "erin")
    assert post(house.clients[0], token, "k").status_code == 401
    assert count_notes(house) == 0
    operate(house.database_url, "users", "activate", "erin")
    stored(post(house.clients[0], token, "k", body=OTHER))
