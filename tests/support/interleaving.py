"""Writers and followers that take turns: a step of one of them, then a step of another."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol

import asyncpg
import orjson
from starlette.requests import Request
from starlette.types import Message

from service import settings
from service.live import feed, store, switch
from service.notes.resource import NOTES, usual
from service.resources.changes import Changes
from service.web import slots
from tests.support.databases import kind_of
from tests.support.notes import known

WRITERS, FOLLOWERS, PROCESSES = 3, 3, 2
# What each follower asks for at first. The last one lists, and then follows.
QUERIES = ("after=0", "after=0&completed=false", "")

Rows = dict[int, dict[str, Any]]
# The name of what happens, then numbers: who does it, and with what.
Step = tuple[Any, ...]

# {row} is one of the rows that all want to change, {step} makes texts that are all different. Who
# finds that another one changes a row leaves it alone: to wait would be the same as to come later.
FREE = "(SELECT id FROM notes WHERE id = {row} {locking})"
ALL_FREE = "(SELECT id FROM notes {locking})"
WRITES = {
    "insert": "INSERT INTO notes (text, completed) VALUES ('{step}', false), ('{step}!', true)",
    "change": f"UPDATE notes SET text = '{{step}}' WHERE id IN {FREE}",
    "complete": f"UPDATE notes SET text = '{{step}}', completed = true WHERE id IN {FREE}",
    "turn_all": f"UPDATE notes SET completed = NOT completed WHERE id IN {ALL_FREE}",
    # A window of these is told in parts.
    "enlarge_all": f"UPDATE notes SET text = '{{step}}' || {{large}} WHERE id IN {ALL_FREE}",
    "delete": f"DELETE FROM notes WHERE id IN {FREE}",
    "put": "INSERT INTO notes (id, text, completed) VALUES ({row}, '{step}', false)"
    " ON CONFLICT (id) DO UPDATE SET text = excluded.text, completed = excluded.completed",
    "move": f"UPDATE notes SET id = id + 1000 WHERE id IN {FREE}",
    "move_all": f"UPDATE notes SET id = id + 1000 WHERE id < 4 AND id IN {ALL_FREE}",
    "empty": "{empty}",
}
WORDS = {
    "sqlite": {"locking": "", "large": "hex(zeroblob(65000))", "empty": "DELETE FROM notes"},
    "postgresql": {
        "locking": "FOR UPDATE SKIP LOCKED",
        "large": "repeat('x', 130000)",
        "empty": "TRUNCATE notes",
    },
}
BEGIN = {
    "sqlite": ("BEGIN IMMEDIATE", "BEGIN"),
    "postgresql": ("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"),
}
RENEW = {
    "sqlite": (
        "DELETE FROM notes",
        "DELETE FROM changes",
        "UPDATE live SET swept = -1, life = lower(hex(randomblob(16)))",
        "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'notes'",
    ),
    "postgresql": (
        "TRUNCATE notes RESTART IDENTITY",
        "DELETE FROM changes",
        "UPDATE live SET swept = -1",
    ),
}
NUMBER = {"sqlite": "SELECT 1", "postgresql": "SELECT pg_current_xact_id()"}
# Transactions that are open, except those of the game. A snapshot names them too.
OTHERS = {
    "sqlite": "SELECT 0",
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
    " AND (datname <> current_database() OR backend_type <> 'client backend')",
}
TABLE = "SELECT id, text, completed FROM notes"
# Who wants a lock that another one has gives up.
REFUSED = (asyncpg.PostgresError, sqlite3.OperationalError, sqlite3.IntegrityError)


class Connection(Protocol):
    async def fetch(self, sql: str) -> list[Any]: ...
    async def close(self) -> None: ...


class File:
    """A connection to SQLite's file that waits for nobody."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        self._connection.execute("PRAGMA synchronous = OFF")

    async def fetch(self, sql: str) -> list[Any]:
        return self._connection.execute(sql).fetchall()

    async def close(self) -> None:
        self._connection.close()


async def connect() -> Connection:
    url = settings.DATABASE_URL
    if url.startswith("sqlite"):
        return File(url.removeprefix("sqlite:///"))
    connection: Any = await asyncpg.connect(url, server_settings={"lock_timeout": "1"})
    return connection  # type: ignore[no-any-return]


class Writer:
    """A client of the database, beside the service."""

    def __init__(self, connection: Connection, kind: str) -> None:
        self.connection = connection
        self._kind = kind
        self.is_open = False
        # Whether it has forgotten changes by TRUNCATE, or others were forgotten while it was open.
        self.has_emptied = self.is_old = False
        self._has_savepoint = False
        self.forgotten = 0

    async def run(self, sql: str) -> bool:
        """Whether the statement ran. If not, its transaction is over."""
        try:
            await self.connection.fetch(sql)
        except REFUSED:
            await self.end("ROLLBACK")
            return False
        return True

    async def begin(self, isolation: int = 0) -> None:
        """Begins a transaction, unless one is open."""
        if not self.is_open:
            self.is_open = await self.run(BEGIN[self._kind][isolation])

    async def take_number(self) -> None:
        """Takes the transaction's number early, as a write to another table does."""
        await self.begin()
        await self.run(NUMBER[self._kind])

    async def mark(self) -> None:
        if self.is_open:
            self._has_savepoint = await self.run("SAVEPOINT mark")

    async def undo(self) -> None:
        if self._has_savepoint:
            await self.run("ROLLBACK TO mark")

    async def end(self, how: str) -> None:
        if self.is_open:
            self.forgotten += self.is_old or (self.has_emptied and how == "COMMIT")
            self.is_open = self.has_emptied = self.is_old = self._has_savepoint = False
            await self.run(how)


class Seen(NamedTuple):
    """What a client knows after an event, and what had been forgotten by then.

    After it has listed the table, it may know what comes later, and be told of it once more.
    """

    last_id: str
    rows: Rows
    forgotten: int
    is_ahead: bool = False


class Client:
    """A follower that reads when it is told to, at one of the processes."""

    def __init__(self, game: "Game", query: str, process: int) -> None:
        self._game = game
        self._query = query
        self._process = process
        # The last one is what it knows.
        self.seen = [Seen("", {}, game.forgotten)]
        # What had been forgotten when its stream told all.
        self._forgotten = game.forgotten
        self._task: asyncio.Task[None] | None = None
        self._may_read = asyncio.Event()
        self._is_answered = asyncio.Event()
        self._is_idle = asyncio.Event()

    async def read(self) -> None:
        """Reads all that is committed."""
        del self.seen[:-1]
        self._may_read.set()
        # It is a second time if its stream ends.
        for _ in range(2):
            if self._task is None or self._task.done():
                self._ask()
            following = self._game.processes[self._process].feed
            if following.now is not None:
                with suppress(store.NotRecorded):
                    await following._poll(None)
            self._is_idle.clear()
            following._wake()
            await self._wait_for(self._is_idle)
            if self._task and not self._task.done():
                break
        self._may_read.clear()
        self._forgotten = self._game.forgotten
        if len(self.seen) > 1:
            self.seen[-1] = self.seen[-1]._replace(forgotten=self._forgotten, is_ahead=False)

    async def hop(self, lost: int) -> None:
        """Goes on at the next process. The last events have not arrived."""
        await self.leave()
        del self.seen[max(1, len(self.seen) - lost) :]
        self._forgotten = self.seen[-1].forgotten
        self._process = (self._process + 1) % PROCESSES
        self._ask()
        await self._wait_for(self._is_answered)

    def _ask(self) -> None:
        self._is_answered.clear()
        self._task = asyncio.create_task(self._follow())
        self._game.clients[self._task] = self

    async def _wait_for(self, event: asyncio.Event) -> None:
        """Returns when something happened, or the stream has ended."""
        assert self._task is not None
        happens = asyncio.create_task(event.wait())
        done, _ = await asyncio.wait(
            {happens, self._task}, timeout=60, return_when=asyncio.FIRST_COMPLETED
        )
        happens.cancel()
        assert done, "a follower waits"
        if self._task in done:
            self._task.result()

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _follow(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        last_id = self.seen[-1].last_id
        scope = {
            "type": "http",
            "method": "GET",
            "query_string": self._query.encode(),
            "headers": [(b"last-event-id", last_id.encode())] if last_id else [],
            "service.task": task,
        }
        try:
            response = await self._game.processes[self._process].follow(Request(scope))
            await response(scope, asyncio.Event().wait, self._receive)  # type: ignore[arg-type]
        finally:
            slots._followers.discard(task)

    def becomes_idle(self) -> None:
        """It has read all that there was."""
        self._is_idle.set()

    async def _receive(self, message: Message) -> None:
        self._is_answered.set()
        await self._may_read.wait()
        for event in message.get("body", b"").decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
            if "data" in fields:
                await self._apply(fields["event"], fields["id"], orjson.loads(fields["data"]))

    async def _apply(self, kind: str, name: str, data: Any) -> None:
        _, rows, forgotten, is_ahead = self.seen[-1]
        rows, note_id = dict(rows), data.get("id")
        match kind:
            case "start" | "reset":
                if kind == "reset":
                    is_needed = self._forgotten < self._game.forgotten
                    assert is_needed or self._game.has_swept_beside_others, "a reset without need"
                    self._forgotten += 1
                is_ahead = True
                rows = await self._game.table(self._query)
            case "created":
                assert is_ahead or note_id not in rows, f"created twice: {data}"
                rows[note_id] = known(data)
            case "changed":
                assert is_ahead or rows[note_id] != data, f"changed twice: {data}"
                rows[note_id] = known(data)
            case "deleted":
                assert is_ahead or note_id in rows, f"deleted twice: {data}"
                rows.pop(note_id, None)
        self.seen.append(Seen(name, rows, forgotten, is_ahead))


class Game:
    """The writers, the clients, and two processes that tell changes."""

    def __init__(self, kind: str, connections: list[Connection]) -> None:
        self._kind = kind
        self._reader = connections[0]
        self._writers = [Writer(connection, kind) for connection in connections[1:]]
        self.processes = [Changes(NOTES, usual.items.owner_of) for _ in range(PROCESSES)]
        self.watched = self.processes[0].watched
        for process in self.processes:
            self._watch(process.feed)
        self.clients: dict[asyncio.Task[Any] | None, Client] = {}
        self._forgotten = 0
        # Followers can't know what such a transaction changed, so its end may cost them a reset.
        self.has_swept_beside_others = False

    def _watch(self, followed: feed.Feed) -> None:
        read_next = followed.next

        async def next_window(position: Any) -> Any:
            window = await read_next(position)
            if window is None:
                self.clients[asyncio.current_task()].becomes_idle()
            return window

        followed.next = next_window  # type: ignore[method-assign]

    @property
    def forgotten(self) -> int:
        """How often changes were deleted that somebody may still want."""
        return self._forgotten + sum(writer.forgotten for writer in self._writers)

    async def table(self, query: str) -> Rows:
        """The rows that a query selects."""
        rows = [(row[0], row[1], bool(row[2])) for row in await self._reader.fetch(TABLE)]
        return {
            row[0]: dict(zip(("id", "text", "completed"), row, strict=True))
            for row in rows
            if "completed" not in query or not row[2]
        }

    async def _begin(self) -> None:
        """Three notes, and all their changes."""
        first = self._writers[0]
        while not first.is_open:
            # The service itself may be writing.
            await first.begin()
        for sql in RENEW[self._kind]:
            await first.connection.fetch(sql)
        await first.run(
            "INSERT INTO notes (text, completed) VALUES ('1', false), ('2', true), ('3', false)"
        )
        await first.end("COMMIT")

    async def play(self, steps: list[Step]) -> None:
        """AssertionError if a client hasn't the table after it has read all, or for an event that
        tells nothing new."""
        self.has_swept_beside_others = False
        await self._begin()
        clients = [Client(self, query, place % PROCESSES) for place, query in enumerate(QUERIES)]
        try:
            for number, step in enumerate(steps):
                await self._do(clients, number, step)
            for writer in self._writers:
                await writer.end("ROLLBACK")
            for client in clients:
                await self._check(client)
        finally:
            for client in clients:
                await client.leave()
            for writer in self._writers:
                await writer.end("ROLLBACK")
            self.clients.clear()

    async def _do(self, clients: list[Client], number: int, step: Step) -> None:
        match step:
            case ("read", who):
                await self._check(clients[who])
            case ("hop", who, lost):
                await self._check(clients[who])
                await clients[who].hop(lost)
            case ("renew",):
                if not any(writer.is_open for writer in self._writers):
                    self._forgotten += 1
                    await switch.turn_off(self.watched.table)
                    await switch.turn_on(self.watched)
            case ("sweep",):
                if not self._is_locked("sqlite"):
                    self._forgotten += 1
                    ((others,),) = await self._reader.fetch(OTHERS[self._kind])
                    self.has_swept_beside_others |= others > 0
                    await store.sweep()
                    for writer in self._writers:
                        writer.is_old = writer.is_open
            case ("repeatable", who):
                await self._writers[who].begin(1)
            case ("number", who):
                await self._writers[who].take_number()
            case ("mark", who):
                await self._writers[who].mark()
            case ("undo", who):
                await self._writers[who].undo()
            case ("commit" | "rollback" as how, who):
                await self._writers[who].end(how.upper())
            case (kind, who, row):
                await self._write(self._writers[who], number, kind, row)

    def _is_locked(self, kind: str = "") -> bool:
        """Whether somebody holds up all others: by TRUNCATE, or any writer of a kind."""
        return any(one.has_emptied or (one.is_open and self._kind == kind) for one in self._writers)

    async def _write(self, writer: Writer, number: int, kind: str, row: int) -> None:
        await writer.begin()
        if not writer.is_open:
            return
        sql = WRITES[kind].format(step=number, row=row, **WORDS[self._kind])
        if await writer.run(sql) and "TRUNCATE" in sql:
            writer.has_emptied = True

    async def _check(self, client: Client) -> None:
        """After a client has read all, it has the table."""
        if self._is_locked():
            return
        await client.read()
        rows, expected = client.seen[-1].rows, await self.table(client._query)
        assert rows == expected, f"{client._query}: {_short(rows)} for {_short(expected)}"


def _short(rows: Rows) -> Mapping[int, Any]:
    return {key: (row["text"][:9], row["completed"]) for key, row in rows.items()}


@asynccontextmanager
async def playing() -> AsyncIterator[Game]:
    """The changes of the notes are recorded, and only what the test wants happens."""
    # Nothing happens by itself. All changes are old, and a reader who waits loses the window.
    feed.POLL_SECONDS = 1e9
    feed.MAX_WINDOWS = 3
    store.LIFETIME_SECONDS = -1
    connections = [await connect() for _ in range(WRITERS + 1)]
    try:
        game = Game(kind_of(settings.DATABASE_URL), connections)
        await switch.turn_on(game.watched)
        yield game
    finally:
        for connection in connections:
            await connection.close()
