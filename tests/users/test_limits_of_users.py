"""RATE_LIMIT where there are users: each has a limit of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from service.users.queries import PREFIX
from tests.support.databases import NewDatabase
from tests.support.metrics import metric
from tests.support.operating import Operate, operate, operating
from tests.support.provider import AUDIENCE, providing
from tests.support.servers import nowhere, serving
from tests.support.waiting import poll

LIMIT = 3
VARIABLES = {"ACCESS": "token", "RATE_LIMIT": f"{LIMIT}/hour"}


def guess(number: int) -> str:
    """A token that could be a user's, and is not."""
    return f"{PREFIX}{number:043}"


class Limited(NamedTuple):
    """A service with users and a limit. A test that uses it has users and addresses of its own."""

    client: httpx2.Client
    operate: Operate
    log: Path

    def add_user(self, name: str) -> str:
        """Adds a user and gives the token."""
        return str(self.operate("users", "add", name).stdout.strip())

    def status(self, token: str, address: str) -> int:
        """The status of the answer to a request with the token from the address."""
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": address}
        return int(self.client.get("/notes/", headers=headers).status_code)

    def queries(self) -> float:
        """The number of queries for tokens until now."""
        return metric(self.client, "coalesced_batch_size_count", query="get_active")


@pytest.fixture(scope="module")
def limited(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Limited]:
    url = new_database("sqlite")
    log = tmp_path_factory.mktemp("limits") / "log"
    # The database is asked for the token of each request that is let in.
    variables = VARIABLES | {"ACCESS_CACHE_SECONDS": "0"}
    with operating(url) as operate, serving(url, log, **variables) as client:
        yield Limited(client, operate, log)


def test_each_user_has_a_limit(limited: Limited) -> None:
    """Users at one address don't limit each other; one who moves takes the limit along."""
    alice, bob = limited.add_user("alice"), limited.add_user("bob")
    for number in range(LIMIT):
        assert limited.status(alice, f"203.0.113.{number}") == 200
    assert limited.status(alice, "203.0.113.100") == 429
    for _ in range(LIMIT):
        assert limited.status(bob, "203.0.113.1") == 200
    assert limited.status(bob, "203.0.113.1") == 429
    assert limited.status(guess(1), "203.0.113.1") == 401
    # The log names who was refused.
    poll(lambda: "user=alice" in limited.log.read_text(), limited.log.read_text)
    refused = [line for line in limited.log.read_text().splitlines() if "status=429" in line]
    assert refused[0].endswith("user=alice")


def test_guesses_count_for_the_address(limited: Limited) -> None:
    """Wrong tokens are limited by address, before a query. Users who are known are served."""
    carol, dave = limited.add_user("carol"), limited.add_user("dave")
    assert limited.status(carol, "198.51.100.1") == 200
    guesses = [limited.status(guess(number), "198.51.100.1") for number in range(LIMIT + 3)]
    assert guesses == [401] * LIMIT + [429] * 3
    asked = limited.queries()
    for number in range(5):
        assert limited.status(guess(100 + number), "198.51.100.1") == 429
    # Nobody knows yet that it is no guess.
    assert limited.status(dave, "198.51.100.1") == 429
    assert limited.queries() == asked
    assert limited.status(carol, "198.51.100.1") == 200
    assert limited.status(dave, "198.51.100.2") == 200
    assert limited.status(dave, "198.51.100.1") == 200


def test_no_token_counts_for_the_address(limited: Limited) -> None:
    """Requests without a token are limited by address, too."""
    headers = {"x-forwarded-for": "198.51.100.9"}
    statuses = [
        limited.client.get("/notes/", headers=headers).status_code for _ in range(LIMIT + 1)
    ]
    assert statuses == [401] * LIMIT + [429]


def test_many_users_may_come_from_one_address(limited: Limited) -> None:
    """A token that turns out to be a user's costs the address nothing."""
    tokens = [limited.add_user(f"user{number}") for number in range(LIMIT + 2)]
    for token in tokens:
        assert limited.status(token, "198.51.100.3") == 200
    # Their first requests count for them.
    for _ in range(LIMIT - 1):
        assert limited.status(tokens[0], "198.51.100.3") == 200
    assert limited.status(tokens[0], "198.51.100.3") == 429


def test_a_revoked_token_takes_nothing_from_its_user(limited: Limited) -> None:
    """Once it is known to be revoked, requests with it count for the address."""
    old = limited.add_user("erin")
    assert limited.status(old, "198.51.100.4") == 200
    new = limited.operate("users", "rotate", "erin").stdout.strip()
    # The first of them finds out.
    assert [limited.status(old, "198.51.100.4") for _ in range(LIMIT + 2)] == [
        *([401] * (LIMIT + 1)),
        429,
    ]
    assert limited.status(new, "198.51.100.5") == 200


def test_a_user_has_one_limit_for_all_tokens(new_database: NewDatabase, tmp_path: Path) -> None:
    """Those of a provider count for their user, with the service's own; wrong ones don't."""
    url = new_database("sqlite")
    with providing() as provider:
        variables = VARIABLES | {"JWT_ISSUER": provider.url, "JWT_AUDIENCE": AUDIENCE}
        with serving(url, tmp_path / "log", **variables) as client:

            def ask(token: str, address: str) -> int:
                headers = {"authorization": f"Bearer {token}", "x-forwarded-for": address}
                return client.get("/notes/", headers=headers).status_code

            one, two = (provider.token(jti=number) for number in "12")
            assert ask(one, "198.51.100.1") == 200
            own = operate(url, "users", "rotate", "bob").stdout.strip()
            tokens = (own, two, one, two, own)
            statuses = [ask(token, f"198.51.100.{10 + n}") for n, token in enumerate(tokens)]
            assert statuses == [200, 200, 429, 429, 429]
            # The tokens of users cost the address nothing, and a known one needs nothing of it.
            alice = provider.token(sub="alice")
            assert ask(alice, "198.51.100.1") == 200
            wrong = [ask(provider.token(aud=number), "198.51.100.1") for number in "1234"]
            assert wrong == [401] * LIMIT + [429]
            assert ask(alice, "198.51.100.1") == 200


def test_the_database_is_not_asked_for_tokens(tmp_path: Path) -> None:
    """While the database is away, the surplus of an address is a 429 and not a 503."""
    with serving(nowhere(), tmp_path / "log", **VARIABLES) as client:
        headers = {"authorization": f"Bearer {guess(1)}"}
        statuses = [client.get("/notes/", headers=headers).status_code for _ in range(LIMIT + 1)]
        assert statuses == [503] * LIMIT + [429]
