"""Notes change hands: `users adopt`, and `users remove` with `--to` or `--with-notes`."""

import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import databases
from tests.support.databases import NewDatabase, execute, fetch, holding
from tests.support.operating import Operate, add_user, operate, operating
from tests.support.servers import serving
from tests.support.template import Process
from tests.support.waiting import poll

NOTE = {"text": "new", "completed": False}
# More than two batches, and more than are looked at at once.
COUNT = 1_210


@pytest.fixture(scope="module")
def shared_operate(shared_database_url: str) -> Iterator[Operate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCESS_CACHE_SECONDS", "0")
        with operating(shared_database_url) as operate:
            yield operate


@pytest.fixture
def url(shared_database_url: str) -> str:
    """A database of each kind in turn, which is empty."""
    databases.clear(shared_database_url)
    return shared_database_url


@pytest.fixture
def users(shared_operate: Operate, url: str) -> Operate:
    """Runs commands for users on a database where there are alice and bob."""
    for name in ("alice", "bob"):
        assert shared_operate("users", "add", name).returncode == 0
    return partial(shared_operate, "users")


def store(url: str, owner: str | int, count: int, text: str = "a") -> None:
    """Stores notes of an owner: a name, an id, or NULL."""
    if isinstance(owner, str) and owner != "NULL":
        owner = f"(SELECT id FROM users WHERE username = '{owner}')"
    values = ", ".join([f"('{text}', true, {owner})"] * count)
    execute(url, f"INSERT INTO notes (text, completed, owner_id) VALUES {values}")


def owned(url: str) -> dict[str, int]:
    """How many notes each user has, and nobody."""
    query = (
        "SELECT coalesce(username, 'nobody'), count(*) FROM notes"
        " LEFT JOIN users ON users.id = owner_id GROUP BY username"
    )
    return dict(fetch(url, query))


def test_notes_are_adopted(users: Operate, url: str) -> None:
    """Notes without an owner, or with one who is gone, are the adopter's, and no others."""
    store(url, "NULL", 5)
    store(url, "alice", 1003)
    store(url, 77, 105)
    store(url, "NULL", 150)
    store(url, "bob", 2)
    adopted = users("adopt", "BOB")
    assert (adopted.returncode, adopted.stdout, adopted.stderr) == (0, "notes: 260\n", "")
    assert owned(url) == {"alice": 1003, "bob": 262}
    assert users("adopt", "alice").stdout == "notes: 0\n"
    nobody = users("adopt", "carol")
    assert (nobody.returncode, nobody.stderr) == (1, "Error: There is no user carol.\n")


def test_a_user_with_notes_is_not_just_removed(users: Operate, url: str) -> None:
    """Without an option the removal of a user who has notes is refused, and changes nothing."""
    store(url, "bob", 3)
    refused = users("remove", "bob")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: bob has notes: 3. ")
    assert "--to" in refused.stderr
    assert "--with-notes" in refused.stderr
    for options in (["--to", "bob"], ["--to", "alice", "--with-notes"], ["--to", "BOB"]):
        assert users("remove", "bob", *options).returncode == 2
    nobody = users("remove", "bob", "--to", "carol")
    assert (nobody.returncode, nobody.stderr) == (1, "Error: There is no user carol.\n")
    assert users("list").stdout.count("\tactive\t") == 2
    assert owned(url) == {"bob": 3}


def test_a_removed_users_notes_are_given_away(users: Operate, url: str) -> None:
    """With --to another user has all notes of the removed one, and keeps those from before."""
    store(url, "alice", 2)
    store(url, "bob", 250)
    store(url, "NULL", 1)
    removed = users("remove", "bob", "--to", "Alice")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "")
    assert owned(url) == {"alice": 252, "nobody": 1}
    assert "bob" not in users("list").stdout


def test_a_user_is_removed_with_notes(users: Operate, url: str) -> None:
    """With --with-notes the user's notes go, too, and no others."""
    store(url, "alice", 2)
    store(url, "bob", 250)
    store(url, "NULL", 1)
    removed = users("remove", "bob", "--with-notes")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "")
    assert owned(url) == {"alice": 2, "nobody": 1}
    assert "bob" not in users("list").stdout


def test_what_can_not_be_given_stays(users: Operate, url: str) -> None:
    """A value that has to be unique keeps the user, deactivated, and the rest can go later."""
    execute(url, "CREATE UNIQUE INDEX only_one ON notes (owner_id, completed)")
    try:
        store(url, "alice", 1)
        store(url, "bob", 1)
        kept = users("remove", "bob", "--to", "alice")
        assert kept.returncode == 1
        assert kept.stderr.startswith("Error: bob is deactivated and still has notes: 1. ")
        assert "bob\tdeactivated" in users("list").stdout
        assert owned(url) == {"alice": 1, "bob": 1}
        assert users("remove", "bob", "--with-notes").returncode == 0
        assert owned(url) == {"alice": 1}
    finally:
        on_table = " ON notes" if databases.kind_of(url) == "mysql" else ""
        execute(url, f"DROP INDEX only_one{on_table}")


@contextmanager
def running(url: str, *arguments: str) -> Iterator[Process]:
    """Runs a command beside the block."""
    command = [sys.executable, "-m", "service", "users", *arguments]
    with tempfile.TemporaryFile() as output:
        process = databases.start(
            command, output, output, DATABASE_URL=url, ACCESS_CACHE_SECONDS="0"
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


# A note of the last batch, and which notes a command has changed before it comes to that.
LOCK = f"UPDATE notes SET completed = true WHERE id = {COUNT - 5}"


@pytest.mark.parametrize("kind", databases.SERVED)
def test_notes_change_hands_in_batches(new_database: NewDatabase, kind: str) -> None:
    """While a command waits for a note, what came before is done, and free for others."""
    url = new_database(kind)
    for name in ("alice", "bob"):
        add_user(url, name)
    store(url, "NULL", COUNT)
    with ExitStack() as adopting:
        with holding(url, LOCK):
            adopt = adopting.enter_context(running(url, "adopt", "bob"))
            poll(lambda: owned(url).get("bob", 0) >= COUNT - 200)
            execute(url, "UPDATE notes SET text = 'free' WHERE id = 1")
            assert owned(url)["nobody"] > 0
        assert adopt.wait(60) == 0
    assert owned(url) == {"bob": COUNT}
    with holding(url, LOCK), running(url, "remove", "bob", "--to", "alice"):
        poll(lambda: owned(url).get("alice", 0) >= COUNT - 200)
        # Nobody can add notes any more, and the user is there as long as any note is.
        assert "bob\tdeactivated" in operate(url, "users", "list").stdout
    # The command was killed.
    assert owned(url)["bob"] > 0
    remove = ("users", "remove", "bob", "--to", "alice")
    assert operate(url, *remove, ACCESS_CACHE_SECONDS="0").returncode == 0
    assert owned(url) == {"alice": COUNT}


def test_a_service_in_use(database_url: str, tmp_path: Path) -> None:
    """Clients create and change notes meanwhile, and none of these is lost or anybody else's."""
    tokens = {name: add_user(database_url, name) for name in ("alice", "bob")}
    store(database_url, "NULL", COUNT)
    variables = {"ACCESS": "private", "ACCESS_CACHE_SECONDS": "1"}
    with serving(database_url, tmp_path / "log", **variables) as client:
        users = {name: {"authorization": f"Bearer {token}"} for name, token in tokens.items()}
        created: dict[str, list[int]] = {"alice": [], "bob": []}
        over = threading.Event()

        def write(name: str) -> int:
            """Creates and changes notes until the user is refused or all is over."""
            while not over.is_set():
                answer = client.post("/notes/", json=NOTE, headers=users[name])
                if answer.status_code != 200:
                    return answer.status_code
                created[name].append(answer.json()["id"])
                path = f"/notes/{created[name][0]}"
                changed = client.patch(path, json={"completed": True}, headers=users[name])
                assert changed.status_code in (200, 401)
            return 200

        with ThreadPoolExecutor(2) as threads:
            writers = {name: threads.submit(write, name) for name in users}
            try:
                poll(lambda: all(created.values()))
                adopted = operate(database_url, "users", "adopt", "bob")
                assert (adopted.stdout, adopted.stderr) == (f"notes: {COUNT}\n", "")
                remove = ("users", "remove", "bob", "--to", "alice")
                # A request that has come in by then may take a second on a busy machine.
                removed = operate(database_url, *remove, ACCESS_CACHE_SECONDS="2")
                assert removed.returncode == 0, removed.stderr
                assert removed.stderr == "Waiting 2 s, until no process takes bob's tokens.\n"
                assert writers["bob"].result(60) == 401
            finally:
                over.set()
            assert writers["alice"].result(60) == 200
        count = COUNT + sum(map(len, created.values()))
        assert owned(database_url) == {"alice": count}
