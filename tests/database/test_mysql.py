"""What MySQL and MariaDB do differently: packets, ids, collations, DDL, read-only servers, TLS."""

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx2
import pytest

from tests.support.clusters import Authority
from tests.support.daemons import give, needs, unprivileged
from tests.support.databases import (
    NewDatabase,
    alembic,
    connected,
    create,
    execute,
    fetch,
    fill,
    locked,
    migrate,
    name_of,
    run,
    session,
    waiting,
)
from tests.support.mariadb import USER, Mariadb, running_mariadb
from tests.support.notes import known
from tests.support.proxies import Proxy
from tests.support.servers import serving
from tests.support.waiting import poll

PACKET = 1024**2
# Settings that others need. The service must not depend on them.
OTHERS = (
    f"--max-allowed-packet={PACKET}",
    "--sql-mode=ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT",
    "--character-set-server=gbk",
    "--collation-server=gbk_chinese_ci",
    "--skip-character-set-client-handshake",
    "--transaction-isolation=SERIALIZABLE",
    "--default-storage-engine=MyISAM",
    "--autocommit=0",
    "--completion-type=CHAIN",
    "--default-time-zone=+05:00",
    "--auto-increment-increment=3",
    "--auto-increment-offset=2",
)
# asyncmy alone would send it in Latin-1.
SECRET = "pä/ss:@"
NOTE = {"text": "a", "completed": True}


class Unusual(NamedTuple):
    """The service on a server with settings that others need."""

    server: Mariadb
    url: str
    client: httpx2.Client


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unusual]:
    log = tmp_path_factory.mktemp("unusual") / "log"
    with running_mariadb(*OTHERS) as server:
        # These have no option for the start.
        execute(server.url, "SET GLOBAL sql_select_limit = 3", "SET GLOBAL sql_safe_updates = 1")
        url = create(server.roles_url)
        migrate(url)
        with serving(url, log, "--timeout-keep-alive=600", MAX_BODY_BYTES="4000000") as client:
            yield Unusual(server, url, client)


def test_settings_of_others(unusual: Unusual) -> None:
    """Texts, ids, conditions and keys don't depend on the settings of the server."""
    client = unusual.client
    texts = ["it's", '"quoted"', "back\\slash\\'", "%s %(a)s 100%", "😀 naïve", "a", "A", "a "]
    # In GBK the quote would be no part of a character any more.
    texts += ["中', 0, NULL), (version(), 0, NULL) -- "]
    notes = [{"text": text, "completed": False} for text in texts]
    created = client.post("/notes/batch", json=notes).json()
    created += [client.post("/notes/", json=note).json() for note in notes]
    assert [note["text"] for note in created] == texts * 2
    assert client.get("/notes/").json() == created
    with session(unusual.url) as ask:
        # Nothing is kept in a transaction that isn't committed, and nothing in MyISAM.
        assert ask("SELECT count(*) FROM notes") == len(created)
        engines = "SELECT group_concat(DISTINCT engine) FROM information_schema.tables"
        assert ask(f"{engines} WHERE table_schema = database()") == "InnoDB"
    for q, found in (("A", 3), ("\\", 1), ("%", 1), ("_", 0), ("ï", 1), ("a ", 1)):
        expected = [note for note in created if q.lower() in note["text"].lower()]
        assert client.get("/notes/", params={"q": q}).json() == expected, (q, found)


def test_texts_that_some_collations_take_for_the_same(unusual: Unusual) -> None:
    """Such texts are not the same here: neither in notes, nor as keys."""
    for number, text in enumerate(("a", "A", "a ")):
        key = {"idempotency-key": f'"{text}"'}
        note = {"text": f"same {text}", "completed": True}
        first, again = (unusual.client.post("/notes/", json=note, headers=key) for _ in range(2))
        assert (first.status_code, first.json()["text"]) == (200, note["text"])
        assert again.content == first.content
        count = "SELECT count(*) FROM notes WHERE text"
        assert execute(unusual.url, f"{count} = 'same {text}'") == 1
        assert execute(unusual.url, f"{count} LIKE BINARY 'same%'") == number + 1


def test_more_than_a_packet(unusual: Unusual) -> None:
    """Creates that share a query may be larger than a packet together, and so may a batch."""
    texts = [f"{number} {'x' * (PACKET // 5)}" for number in range(12)]
    notes = [{"text": text, "completed": True} for text in texts]
    before = unusual.client.get("/notes/?order=desc&limit=1").json()[0]["id"]

    def store(note: dict[str, object]) -> int:
        answer = unusual.client.post("/notes/", json=note)
        assert answer.status_code == 200
        return int(answer.json()["id"])

    with ThreadPoolExecutor(len(notes)) as threads:
        ids = list(threads.map(store, notes))
    answer = unusual.client.post("/notes/batch", json=notes)
    assert [note["text"] for note in answer.json()] == texts
    ids += [note["id"] for note in answer.json()]
    for note_id, text in zip(ids, texts * 2, strict=True):
        assert unusual.client.get(f"/notes/{note_id}").json()["text"] == text
    assert len(unusual.client.get(f"/notes/?after={before}&limit=17").json()) == 17


def test_a_note_that_is_larger_than_a_packet(unusual: Unusual) -> None:
    """It is a 503, alone and in a batch, which is not stored. No connection is lost by it."""
    client = unusual.client
    mine = "SELECT group_concat(id) FROM information_schema.processlist WHERE db = database()"
    with session(unusual.url) as ask:
        before, connections = ask("SELECT count(*) FROM notes"), ask(mine)
        large = {"text": "x" * PACKET, "completed": True}
        for path, body in (("/notes/", large), ("/notes/batch", [NOTE, large])):
            assert client.post(path, json=body).status_code == 503
        assert client.get("/notes/?limit=1").status_code == 200
        assert (ask("SELECT count(*) FROM notes"), ask(mine)) == (before, connections)


def test_a_read_only_server(unusual: Unusual) -> None:
    """Reads are served, and writes are a 503 until the server takes them again."""
    client = unusual.client
    execute(unusual.server.url, "SET GLOBAL read_only = ON")
    try:
        for headers in ({}, {"idempotency-key": "read-only"}):
            answer = client.post("/notes/", json=NOTE, headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/notes/?limit=1").status_code == 200
    finally:
        execute(unusual.server.url, "SET GLOBAL read_only = OFF")
    assert client.post("/notes/", json=NOTE).status_code == 200


def test_a_deadlock(unusual: Unusual) -> None:
    """The server ends one of two transactions that wait for each other. It is done again."""
    with session(unusual.url) as ask:
        ask("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        ask("BEGIN")
        # The server ends the transaction that has changed less.
        ask("INSERT INTO notes (text, completed) SELECT 'x', 0 FROM seq_1_to_100")
        # No note can be inserted meanwhile.
        ask("SELECT count(*) FROM notes WHERE id > 0 FOR UPDATE")

        def create_note() -> int:
            headers = {"idempotency-key": "deadlock"}
            return unusual.client.post("/notes/", json=NOTE, headers=headers).status_code

        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(create_note)
            inserts = "SELECT count(*) FROM information_schema.processlist"
            inserts += " WHERE info LIKE 'INSERT INTO notes%'"
            poll(lambda: execute(unusual.url, inserts) == 1)
            ask("INSERT INTO idempotency_keys VALUES ('deadlock', '', NULL, 0)")
            ask("ROLLBACK")
            assert answer.result() == 200
    keys = "SELECT count(*) FROM idempotency_keys WHERE `key` = 'deadlock'"
    assert execute(unusual.url, keys) == 1


# Cancels a statement that would run for minutes, and returns when the server runs it no more.
CANCELLING = """
import asyncio
from service.database.connections import connected, use

SLOW = "SELECT BENCHMARK(10000000000, MD5(1))"
RUNNING = f"SELECT count(*) FROM information_schema.processlist WHERE info = '{SLOW}'"

async def running():
    ((count,),) = (await use("read", lambda session: session.execute(RUNNING))).rows
    return count

async def main():
    async with connected():
        task = asyncio.create_task(use("write", lambda session: session.execute(SLOW)))
        while not await running():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        while await running():
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_a_cancelled_statement_ends_on_the_server(unusual: Unusual) -> None:
    """The service ends it by another connection, as closing its own doesn't."""
    variables = {"DATABASE_STATEMENT_TIMEOUT": "1000", "REQUEST_TIMEOUT": "3000"}
    ended = run(sys.executable, "-c", CANCELLING, DATABASE_URL=unusual.url, **variables)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_statement_of_another_server_is_ended(
    unusual: Unusual, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Behind one address there may be several servers, which give the same numbers."""
    one = new_database("mysql")
    # Nobody else ends statements on this server.
    other = create(unusual.server.roles_url, name=name_of(one))
    migrate(other)
    kills = "SHOW GLOBAL STATUS LIKE 'Com_kill'"
    with (
        closing(Proxy(one)) as switch,
        serving(switch.url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="0.5") as client,
    ):
        poll(lambda: client.get("/notes/1").status_code == 404)
        before, accepted = fetch(other, kills), switch.accepted
        switch.hang()
        switch.target = other
        assert client.get("/notes/1").status_code == 503
        poll(lambda: switch.accepted > accepted)
        assert fetch(other, kills) == before


SCHEMA = (
    "SELECT group_concat(concat_ws(' ', {}) ORDER BY 1) FROM information_schema.{}"
    " WHERE table_schema = database()"
)
COLUMNS = "table_name, column_name, column_type, is_nullable, collation_name, extra"
INDEXES = "table_name, index_name, seq_in_index, column_name, non_unique"


def schema(url: str) -> tuple[str, str]:
    with session(url) as ask:
        ask("SET group_concat_max_len = 1000000")
        return (
            ask(SCHEMA.format(COLUMNS, "columns")),
            ask(SCHEMA.format(INDEXES, "statistics")),
        )


def test_interrupted_migrations(new_database: NewDatabase, unusual: Unusual) -> None:
    """A migration that lost its connection behind one of its statements can run again."""
    url = create(unusual.server.roles_url)
    proxy = Proxy(url)
    try:
        for statement in (
            b"CREATE TABLE notes",
            b"CREATE INDEX ix",  # the last of three in its migration
            b"ADD COLUMN text_bytes",
        ):
            proxy.lose_answers(1, statement)
            broken = alembic(proxy.url, "upgrade", "head")
            assert (broken.returncode, broken.stdout) == (1, "")
        migrate(proxy.url)
    finally:
        proxy.close()
    assert schema(url) == schema(new_database("mysql"))


def test_a_table_of_others(unusual: Unusual) -> None:
    """A table that no migration has made stops the migrations, and is left alone."""
    url = create(unusual.server.roles_url)
    execute(url, "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    ended = alembic(url, "upgrade", "head")
    assert ended.returncode == 1
    assert "'users' already exists" in ended.stderr.splitlines()[-1]
    columns = "SELECT group_concat(column_name) FROM information_schema.columns"
    assert (
        execute(url, f"{columns} WHERE table_schema = database() AND table_name = 'users'")
        == "id,name"
    )


class Encrypted(NamedTuple):
    """A database that its user reaches over TLS only, on a server that is `localhost`."""

    server: Mariadb
    name: str
    ca: str


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Encrypted]:
    needs("openssl")
    with tempfile.TemporaryDirectory(prefix="notes-tls-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        authority = Authority(folder / "ca")
        options = []
        for kind, text in zip(("cert", "key"), authority.sign("localhost"), strict=True):
            (folder / kind).write_text(text)
            give(folder / kind, unprivileged(USER))
            options.append(f"--ssl-{kind}={folder / kind}")
        with running_mariadb(*options) as server:
            url = create(server.roles_url)
            migrate(url)
            execute(
                server.url,
                f"CREATE USER 'us/er'@'127.0.0.1' IDENTIFIED BY '{SECRET}' REQUIRE SSL",
                f"GRANT ALL ON {name_of(url)}.* TO 'us/er'@'127.0.0.1'",
            )
            yield Encrypted(server, name_of(url), str(authority.file))


@pytest.mark.parametrize(
    ("host", "query", "ca", "status"),
    [
        ("127.0.0.1", "", False, 200),
        ("127.0.0.1", "?ssl-mode=DISABLED", False, 503),
        ("localhost", "?ssl-ca={ca}", False, 200),
        ("127.0.0.1", "?ssl-ca={ca}", False, 503),
        ("localhost", "?ssl-mode=VERIFY_IDENTITY", False, 503),
        ("127.0.0.1", "?sslmode=verify-ca", True, 200),
    ],
)
def test_tls(
    encrypted: Encrypted, tmp_path: Path, host: str, query: str, ca: bool, status: int
) -> None:
    """The URL and DATABASE_CA_FILE decide on TLS and on verifying the server."""
    login = f"{quote('us/er', safe='')}:{quote(SECRET, safe='')}"
    url = f"mariadb://{login}@{host}:{encrypted.server.port}/{encrypted.name}"
    url += query.format(ca=encrypted.ca)
    with serving(url, tmp_path / "log", DATABASE_CA_FILE=encrypted.ca if ca else "") as client:
        assert client.get("/notes/").status_code == status
    assert SECRET not in (tmp_path / "log").read_text()


def test_tls_that_the_server_lacks(unusual: Unusual, tmp_path: Path) -> None:
    """If TLS is required, the service doesn't speak to a server without it."""
    with serving(f"{unusual.url}?ssl-mode=REQUIRED", tmp_path / "log") as client:
        assert client.get("/notes/").status_code == 503


def test_another_server_takes_over(
    unusual: Unusual, new_database: NewDatabase, tmp_path: Path
) -> None:
    """When the old server is read-only and the address leads to another, reads follow writes."""
    new = new_database("mysql")
    old = create(unusual.server.roles_url, name=name_of(new))
    migrate(old)
    fill(old, 2, "old")
    fill(new, 2, "new")
    with (
        closing(Proxy(old)) as switch,
        serving(switch.url, tmp_path / "log") as client,
        ThreadPoolExecutor() as threads,
    ):
        with locked(old):
            # Pages of this length share no statement.
            paths = [f"/notes/?limit={limit}" for limit in (101, 102, 103)]
            reads = [threads.submit(client.get, path) for path in paths]
            poll(lambda: waiting(old) == len(reads))
        assert {read.result().json()[0]["text"] for read in reads} == {"old"}
        execute(unusual.server.url, "SET GLOBAL read_only = ON")
        try:
            switch.target = new
            # One refused write gives up all connections, and is done again.
            assert known(client.post("/notes/", json=NOTE).json()) == {"id": 3, **NOTE}
            poll(lambda: connected(old) == 0)
            assert client.get("/notes/2").json()["text"] == "new"
        finally:
            execute(unusual.server.url, "SET GLOBAL read_only = OFF")
    assert fetch(old, "SELECT text FROM notes") == [("old",)] * 2


def test_a_server_without_tls_takes_over(
    unusual: Unusual, encrypted: Encrypted, tmp_path: Path
) -> None:
    """When the address leads to a server with another answer about TLS, that answer is used."""
    name, user = encrypted.name, "other@'127.0.0.1'"
    with_tls = f"mysql://other:secret@127.0.0.1:{encrypted.server.port}/{name}"
    without = f"mysql://other:secret@127.0.0.1:{unusual.server.port}/{name}"
    create(unusual.server.url, name=name)
    for server, condition in ((encrypted.server, "REQUIRE SSL"), (unusual.server, "")):
        execute(
            server.url,
            f"CREATE USER {user} IDENTIFIED BY 'secret' {condition}",
            f"GRANT ALL ON {name}.* TO {user}",
        )
    migrate(without)
    execute(
        f"{unusual.server.url}{name}", "INSERT INTO notes (text, completed) VALUES ('plain', 0)"
    )
    with closing(Proxy(with_tls)) as switch:
        url = switch.url.replace("=disable", "=prefer")
        with serving(url, tmp_path / "log") as client:

            def texts() -> list[str] | None:
                answer = client.get("/notes/")
                return [note["text"] for note in answer.json()] if answer.is_success else None

            assert texts() == []
            switch.target = without
            execute(encrypted.server.url, "KILL USER other")
            poll(lambda: texts() == ["plain"])
            switch.target = with_tls
            execute(unusual.server.url, "KILL USER other")
            poll(lambda: texts() == [])
