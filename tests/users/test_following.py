"""Followers with ACCESS=private: each sees their own notes alone, as long as they may."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest

from service.users.identities import LEEWAY
from tests.support.databases import NewDatabase, execute, session
from tests.support.following import Follower, asking, following, live
from tests.support.operating import Operate, operating
from tests.support.provider import AUDIENCE, Provider, providing
from tests.support.servers import running

LIMIT = 12


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class House(NamedTuple):
    """A service whose users have notes of their own. Each test has users of its own."""

    url: str
    database_url: str
    operate: Operate
    provider: Provider

    def add(self, name: str) -> str:
        """Adds a user and gives the token."""
        return str(self.run("users", "add", name).strip())

    def run(self, *arguments: str) -> str:
        result = self.operate(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def create(self, token: str, text: str = "a note") -> Any:
        """Creates a note of the token's user."""
        note = {"text": text, "completed": False}
        answer = httpx2.post(f"{self.url}/notes/", json=note, headers=bearer(token))
        return answer.raise_for_status().json()


@pytest.fixture(scope="module")
def house(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    database_url = new_database("sqlite")
    live(database_url)
    log = tmp_path_factory.mktemp("house") / "log"
    with operating(database_url) as operate, providing() as provider:
        variables = {"JWT_ISSUER": provider.url, "JWT_AUDIENCE": AUDIENCE}
        variables |= {"RATE_LIMIT": f"{LIMIT}/hour", "ACCESS_CACHE_SECONDS": "1"}
        with running(database_url, log, LIVE="1", ACCESS="private", **variables) as url:
            yield House(url, database_url, operate, provider)
    assert "Traceback" not in log.read_text()


def told(follower: Follower, number: int) -> list[tuple[str, Any]]:
    """The kinds of the next events, and their data."""
    return [(event.kind, event.data) for event in follower.take(number)]


def is_ended(follower: Follower) -> bool:
    """Whether the stream ends, and tells nothing before."""
    return follower.next() is None


def test_each_user_follows_their_own_notes(house: House) -> None:
    """A user is told of no other's note. One that changes hands is deleted, and created."""
    ann, ben = house.add("ann"), house.add("ben")
    notes = f"{house.url}/notes"
    with following(notes, bearer(ann)) as anns, following(notes, bearer(ben)) as bens:
        assert [one.take(1)[0].kind for one in (anns, bens)] == ["start", "start"]
        first, second = house.create(ann, "ann's"), house.create(ben, "ben's")
        third = house.create(ann, "ann's again")
        assert told(anns, 2) == [("created", first), ("created", third)]
        assert told(bens, 1) == [("created", second)]
        execute(
            house.database_url,
            "UPDATE notes SET owner_id = (SELECT id FROM users WHERE username = 'ben')"
            f" WHERE id = {first['id']}",
        )
        assert told(anns, 1) == [("deleted", {"id": first["id"]})]
        assert told(bens, 1) == [("created", first)]
        house.run("users", "remove", "ann", "--to", "ben")
        assert told(bens, 1) == [("created", third)]
        # A user who is removed may be told of it first.
        while (event := anns.next()) is not None:
            assert (event.kind, event.data) == ("deleted", {"id": third["id"]})
    # An id is no secret: it tells only of the place.
    carl = house.add("carl")
    with following(notes, bearer(carl), after="0") as carls:
        note = house.create(carl)
        assert told(carls, 1) == [("created", note)]
        execute(house.database_url, "INSERT INTO notes (text, completed) VALUES ('lost', false)")
        house.run("users", "adopt", "carl")
        (found,) = carls.take(1)
        assert found.kind == "created"
        assert found.data["text"] == "lost"


def test_strangers_may_not_follow(house: House) -> None:
    """Without the token of a user it is a 401, as elsewhere."""
    for headers, challenge in (
        ({}, "Bearer"),
        (bearer(f"notes_{'a' * 43}"), 'Bearer error="invalid_token"'),
    ):
        with asking(f"{house.url}/notes", headers) as answer:
            assert (answer.status, answer.getheader("www-authenticate")) == (401, challenge)


@pytest.mark.parametrize("how", ["deactivated", "revoked", "rotated", "expired"])
def test_a_stream_ends_with_its_token(house: House, how: str) -> None:
    """Soon after a token has ended, so have its streams. Those of other tokens go on."""
    name = f"dora-{how}"
    default = house.add(name)
    token = house.run("tokens", "add", name, "ci").strip() if how != "rotated" else default
    other = house.add(f"other-{how}")
    notes = f"{house.url}/notes"
    with following(notes, bearer(token)) as ended, following(notes, bearer(other)) as stays:
        assert [one.take(1)[0].kind for one in (ended, stays)] == ["start", "start"]
        match how:
            case "deactivated":
                house.run("users", "deactivate", name)
            case "revoked":
                house.run("tokens", "revoke", name, "ci")
            case "rotated":
                house.run("users", "rotate", name)
            case "expired":
                soon = int(time.time()) + 2
                execute(
                    house.database_url,
                    f"UPDATE tokens SET expires_at = {soon} WHERE name = 'ci'",
                )
        assert is_ended(ended)
        note = house.create(other)
        assert told(stays, 1) == [("created", note)]
    with asking(notes, bearer(token)) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("how", ["deactivated", "expired"])
def test_a_stream_ends_with_the_token_of_a_provider(house: House, how: str) -> None:
    """The same holds for the users of an identity provider."""
    name = f"erin-{how}"
    token = house.provider.token(sub=name)
    if how == "expired":
        token = house.provider.token(sub=name, exp=int(time.time()) - LEEWAY + 8)
    stays = house.provider.token(sub=f"other-erin-{how}")
    notes = f"{house.url}/notes"
    with following(notes, bearer(token)) as ended, following(notes, bearer(stays)) as others:
        assert [one.take(1)[0].kind for one in (ended, others)] == ["start", "start"]
        if how == "deactivated":
            house.run("users", "deactivate", name)
        assert is_ended(ended)
        note = house.create(stays)
        assert told(others, 1) == [("created", note)]


def test_to_follow_is_one_request(house: House) -> None:
    """RATE_LIMIT counts who comes to follow, and leaves alone who follows."""
    token = house.add("fred")
    notes = f"{house.url}/notes"
    with following(notes, bearer(token)) as follower:
        follower.take(1)
        for _ in range(LIMIT - 1):
            with asking(notes, bearer(token)) as answer:
                assert answer.status == 200
        with asking(notes, bearer(token)) as answer:
            assert answer.status == 429
            assert int(answer.getheader("retry-after") or 0) > 0
        with session(house.database_url) as run:
            run(
                "INSERT INTO notes (text, completed, owner_id)"
                " SELECT 'a', false, id FROM users WHERE username = 'fred'"
            )
        assert [event.data["text"] for event in follower.take(1)] == ["a"]
