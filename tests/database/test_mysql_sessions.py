"""What ends or changes a session of MySQL or MariaDB, and may not change what is acknowledged."""

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.daemons import PASSWORD
from tests.support.databases import (
    NewDatabase,
    alembic,
    create,
    execute,
    fetch,
    locked,
    migrate,
    run,
    waiting,
)
from tests.support.mariadb import running_mariadb
from tests.support.processes import new_process
from tests.support.proxies import Proxy
from tests.support.servers import serving
from tests.support.waiting import poll

# A transaction adds a user and a note. In between, another session wants both tables, and gets that
# of the notes: a deadlock. The server ends the transaction, and the other session puts the tables
# back. The arguments: the number of deadlocks, and whether the notes' INSERT was prepared before.
DEADLOCKS = """
import asyncio, sys
from service import settings
from service.database.connections import connected
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.operations import Operation
from service.database.statements import transact
from service.tables import notes, users
from tests.support.databases import connect

ADD_USER = dialect.insert_many(
    users, ["username", "is_active", "created_at", "token_sha256"], [users.c.id]
)
ADD_NOTE = dialect.insert_many(notes, ["text", "completed", "folded"], [notes.c.id])
MORE = "CREATE TABLE more (id INT)"
END = Operation("write", lambda session, values: session.execute(MORE), lambda: MORE)
RENAME = "RENAME TABLE notes TO away, users TO apart, apart TO users, away TO notes"
WAITING = (
    "SELECT count(*) FROM information_schema.processlist"
    " WHERE db = database() AND state = 'Waiting for table metadata lock'"
)

def user(name):
    return {"username": name, "is_active": True, "created_at": 0, "token_sha256": name}

def note(text):
    return {"text": text, "completed": True, "folded": None}

async def main(deadlocks, is_prepared):
    address = settings.DATABASE_URL.replace("mysql+asyncmy", "mysql")
    other, observer = await connect(address), await connect(address)
    renamings = []

    async def add(run):
        number = len(renamings)
        await run(ADD_USER, rows=[user(f"u{number}")])
        if number < deadlocks:
            renamings.append(asyncio.create_task(other.rows(RENAME)))
            while await observer.rows(WAITING) == ((0,),):
                await asyncio.sleep(0.01)
        await run(ADD_NOTE, rows=[note(f"n{number}")])
        await asyncio.gather(*renamings)

    async def end(run):
        await run(ADD_USER, rows=[user("u")])
        await run(END)
        await run(ADD_NOTE, rows=[note("n")])

    async with connected():
        if is_prepared:
            await transact(lambda run: run(ADD_NOTE, rows=[note("before")]))
        try:
            await transact(add if deadlocks else end)
            print("stored")
        except DatabaseUnavailable as error:
            print(error.reason())

asyncio.run(main(int(sys.argv[1]), sys.argv[2] == "True"))
"""


# What a server may do to the sessions of all who are not administrators.
INIT_CONNECT = (
    "SET autocommit = 0, sql_mode = '', completion_type = 'CHAIN', sql_auto_is_null = 1,"
    " sql_quote_show_create = 0, sql_big_selects = 0, max_join_size = 1, sql_select_limit = 1;"
    " SET NAMES latin1;"
    " SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY;"
    " USE information_schema; BEGIN"
)


@contextmanager
def globally(url: str, name: str, value: str, usual: str) -> Iterator[str]:
    """Gives a variable of the server another value until the block ends.

    Yields the database's URL for the administrator.
    """
    _, _, place = urlsplit(url).netloc.rpartition("@")
    server = urlsplit(url)._replace(netloc=f"root@{place}").geturl()
    execute(server, f"SET GLOBAL {name} = {value}")
    try:
        yield server
    finally:
        execute(server, f"SET GLOBAL {name} = {usual}")


def transact(url: str, deadlocks: int, is_prepared: bool = False) -> str:
    """Runs DEADLOCKS, and returns what it says."""
    command = (sys.executable, "-c", DEADLOCKS, str(deadlocks), str(is_prepared))
    ended = run(*command, DATABASE_URL=url)
    assert ended.stderr == ""
    return ended.stdout


async def kill_elsewhere(url: str) -> None:
    """Kills a session that waits for a lock, as if others led to another server."""
    # Imported here, in the process whose environment names the database.
    from service.database.mysql_sessions import open_session

    session = await open_session()
    session.server = "another:3306"
    reading = asyncio.create_task(session.execute("SELECT * FROM notes"))
    await asyncio.to_thread(poll, lambda: waiting(url) == 1)
    await session.kill()
    await asyncio.gather(reading, return_exceptions=True)


def test_a_statement_of_another_server_goes_on(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a router, the number of a session may be that of somebody else's at another server."""
    url = new_database("mysql")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT", "100")
    monkeypatch.setenv("REQUEST_TIMEOUT", "400")
    with new_process() as run, locked(url):
        run(kill_elsewhere, url)
        assert waiting(url) == 1


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_deadlock_is_done_again(new_database: NewDatabase, is_prepared: bool) -> None:
    """The whole transaction, also if it ended while a statement was prepared."""
    url = new_database("mysql")
    assert transact(url, 1, is_prepared) == "stored\n"
    assert fetch(url, "SELECT username FROM users") == [("u1",)]
    assert fetch(url, "SELECT text FROM notes WHERE text <> 'before'") == [("n1",)]


def test_deadlocks_that_go_on(new_database: NewDatabase) -> None:
    """After some tries the transaction is given up, and nothing of it is stored."""
    url = new_database("mysql")
    assert transact(url, 20) == "The database is unavailable: Deadlock\n"
    assert fetch(url, "SELECT username FROM users UNION SELECT text FROM notes") == []


def test_a_transaction_that_ended_early(new_database: NewDatabase) -> None:
    """No statement follows when the server says that no transaction is open any more."""
    url = new_database("mysql")
    assert transact(url, 0) == "The database is unavailable: Refused\n"
    assert fetch(url, "SELECT text FROM notes") == []


@pytest.fixture(scope="module")
def own() -> Iterator[str]:
    """The URL of a server whose variables may be changed."""
    with running_mariadb() as server:
        yield server.roles_url


def test_a_server_that_prepares_no_more(own: str) -> None:
    """Where other programs have prepared too much, statements are sent as texts."""
    url = create(own)
    migrate(url)
    with globally(url, "max_prepared_stmt_count", "0", "16382"):
        assert transact(url, 1) == "stored\n"
    assert fetch(url, "SELECT text FROM notes") == [("n1",)]


def test_what_init_connect_does(own: str, tmp_path: Path) -> None:
    """Migrations, commands and requests set up their sessions: what they acknowledge is stored."""
    url = create(own)

    def operate(*arguments: str) -> None:
        ended = run(sys.executable, "-m", "service", "users", *arguments, DATABASE_URL=url)
        assert (ended.returncode, ended.stderr) == (0, "")

    with globally(url, "init_connect", repr(INIT_CONNECT), "''") as administrators:
        migrate(url)
        operate("add", "ann")
        operate("add", "bob")
        operate("remove", "ann")
        with serving(url, tmp_path / "log") as client:
            notes = [{"text": text, "completed": True} for text in ("€", "b", "c", "d")]
            stored = [client.post("/notes/", json=note).json() for note in notes[:2]]
            stored += client.post("/notes/batch", json=notes[2:]).json()
            again = {"idempotency-key": "again"}
            stored += [client.post("/notes/", json=notes[0], headers=again).json()] * 2
            assert client.post("/notes/", json=notes[0], headers=again).json() == stored.pop()
            assert client.patch("/notes/2", json={"text": "€b"}).json()["text"] == "€b"
            assert client.delete("/notes/3").status_code == 204
            assert [note["id"] for note in client.get("/notes/").json()] == [1, 2, 4, 5]
        assert fetch(administrators, "SELECT username FROM users") == [("bob",)]
        assert fetch(administrators, "SELECT id, text FROM notes ORDER BY id") == [
            *((1, "€"), (2, "€b"), (4, "d"), (5, "€"))
        ]


def test_wrong_passwords_block_nobody(new_database: NewDatabase, tmp_path: Path) -> None:
    """The server is asked once for TLS: it blocks those who ask it often, and never log in."""
    with closing(Proxy(new_database("mysql").replace(PASSWORD, "wrong"))) as proxy:
        url = proxy.url.replace("=disable", "=prefer")
        with serving(url, tmp_path / "log") as client, ThreadPoolExecutor() as threads:
            paths = [f"/notes/?limit={limit}" for limit in (101, 102, 103)]
            answers = [*threads.map(client.get, paths), *map(client.get, paths)]
            assert {answer.status_code for answer in answers} == {503}
            assert proxy.accepted == 1 + len(answers)


def test_a_column_that_cannot_store_utf8(new_database: NewDatabase, tmp_path: Path) -> None:
    """The service is not ready, and Alembic refuses the database, each in a line."""
    url = new_database("mysql")
    change = "ALTER TABLE users MODIFY username VARCHAR(64) CHARACTER SET latin1 NOT NULL"
    execute(url, change)
    ended = alembic(url, "upgrade", "head")
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert ended.stderr.endswith("CannotStoreUTF8: users.username has the character set latin1\n")
    with serving(url, tmp_path / "log") as client:
        answer = client.get("/health/ready")
        detail = "The database can't store UTF-8: CannotStoreUTF8"
        assert (answer.status_code, answer.json()["detail"]) == (503, detail)
        execute(url, change.replace("latin1", "utf8mb4"))
        assert client.get("/health/ready").status_code == 200
        execute(url, change.replace("users MODIFY username", "notes MODIFY text"))
        answer = client.post("/notes/", json={"text": "中", "completed": True})
        assert answer.status_code == 503
