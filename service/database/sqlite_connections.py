"""Connections to a SQLite file, through encode/databases and aiosqlite."""

import asyncio
import sqlite3
import threading
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import clear_frames
from typing import Any, cast

import aiosqlite
import databases.backends.sqlite  # noqa: F401 - a later import fails when no file descriptors are left
from databases import Database, DatabaseURL

from service import settings
from service.database.operations import Lane, Result
from service.database.sqlite_file import Damaged, OpenFile

# The lanes with connections.
LANES: tuple[Lane, ...] = ("read", "large_read", "write", "search")

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

THREAD_SECONDS = 5
INTERRUPT_SECONDS = 0.1

# The write-ahead log is emptied after these seconds without a write, or beyond these bytes.
# SQLite itself begins it again at 4 MB, if nobody reads from it then.
QUIET_SECONDS = 1
LOG_BYTES = 8_000_000
LOG_CHECK_SECONDS = 0.1
# How long that waits for readers, in ms. Writes wait meanwhile.
READERS_MS = 100


# A trigger's own error, and a value that the service left out.
OTHERS = (sqlite3.SQLITE_CONSTRAINT_TRIGGER, sqlite3.SQLITE_CONSTRAINT_NOTNULL)


class ConstraintBroken(sqlite3.IntegrityError):
    """A statement breaks a constraint of a table."""


def path() -> Path:
    return Path(DatabaseURL(settings.DATABASE_URL).database)


def decode(stored: bytes | None) -> str | None:
    """A text with U+FFFD for bytes of other programs that are not UTF-8."""
    return None if stored is None else stored.decode("utf-8", "replace")


def primary_code(error: BaseException | None) -> int:
    """SQLite's result code without its extension (https://www.sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Connections:
    """One connection for each lane, so that reads never wait for writes or searches.

    encode/databases would open the file and start a thread for each statement.
    """

    def __init__(self) -> None:
        # `timeout`: seconds to wait for another writer.
        self._database = Database(
            settings.DATABASE_URL, timeout=settings.DATABASE_STATEMENT_TIMEOUT
        )
        # One statement at a time. In the thread's queue a statement would still run after its
        # caller timed out.
        self.slots: dict[Lane, list[asyncio.Semaphore]] = {
            lane: [asyncio.Semaphore(1)] for lane in LANES
        }
        self.slots["large_write"] = self.slots["write"]
        self.slots["missed"] = [asyncio.Semaphore(1), *self.slots["large_read"]]
        self._connections: dict[Lane, aiosqlite.Connection] = {}
        self._file = OpenFile(path())
        # When the file had changed last, in ns, and its size, at the last use of a lane.
        self._changed_at: dict[Lane, int] = {}
        self._size = 0
        self._is_damaged = False
        # Whether the file was read-only when it was opened.
        self._is_read_only = False
        # When this process wrote last, by `time.monotonic`; None if the log was emptied after that.
        self._wrote_at: float | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises sqlite3.DatabaseError for an unusable file."""
        await self._database.connect()
        for lane in LANES:
            await self._open(lane)
        self._keeping = asyncio.create_task(self._keep_log_short())

    async def _open(self, lane: Lane) -> None:
        self._file.check()
        # encode/databases has one connection for each task.
        opened = await asyncio.create_task(self._connect())
        self._connections[lane] = opened
        opened.row_factory = sqlite3.Row
        if lane == "write":
            # A read runs again if its rows are not UTF-8. A write must not run twice.
            opened.text_factory = decode
            await opened.create_function("decode", 1, decode)
            await opened.execute("PRAGMA foreign_keys = ON")
        if await _is_usable(opened):
            self._file.check_log()
        self._file.check()

    async def _connect(self) -> aiosqlite.Connection:
        others = threading.enumerate()
        try:
            connection = await self._database.connection().__aenter__()
        except sqlite3.Error:
            # aiosqlite doesn't wait for its thread, and the thread still uses the event loop.
            for thread in set(threading.enumerate()).difference(others):
                thread.join(THREAD_SECONDS)
            raise
        return cast("aiosqlite.Connection", connection.raw_connection)

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        for connection in self._connections.values():
            await connection.interrupt()
            await connection.close()
        await self._database.disconnect()

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Raises FileLost or Damaged if the result would not be in the file at the path.

        After a write it looks once more: what was committed to a file that was gone by then is not
        acknowledged.
        """
        try:
            await self._look(lane)
            result = await work(self._connections[lane])
        except sqlite3.DatabaseError as error:
            if primary_code(error) == sqlite3.SQLITE_READONLY:
                self._is_read_only = True
            if primary_code(error) in DAMAGE:
                self._is_damaged = True
                raise Damaged(str(error)) from error.with_traceback(None)
            raise
        if lane == "write":
            self._file.check()
            self._file.check_log()
            self._wrote_at = time.monotonic()
        return result

    async def _look(self, lane: Lane) -> None:
        """Looks at the file before it is used."""
        found = self._file.check()
        assert found is not None
        if lane == "write":
            if self._is_damaged:
                raise Damaged("the file was damaged when it was used last")
            if self._is_read_only:
                await self._open_again()
        if found.st_size < self._size:
            await self._check_size(lane)
        self._size = found.st_size
        if found.st_mtime_ns != self._changed_at.get(lane):
            # A checkpoint changes the file, and so does damage. SQLite finds that only in pages
            # that are not in its cache.
            await self._connections[lane].execute_fetchall("PRAGMA shrink_memory")
            self._changed_at[lane] = found.st_mtime_ns

    async def _check_size(self, lane: Lane) -> None:
        """Raises Damaged if the file was cut. A VACUUM makes it smaller, too."""
        (row,) = await self._connections[lane].execute_fetchall(
            "SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size"
        )
        # New pages are in the log first.
        in_log = self._file.check_log()
        found = self._file.check()
        if found is None or found.st_size == 0 or found.st_size + in_log < row["size"]:
            self._is_damaged = True
            raise Damaged("a part of the file is missing")

    async def _open_again(self) -> None:
        """SQLite opens a read-only file for reading only, and keeps that when this changes."""
        old = self._connections["write"]
        self._file.share_rights()
        try:
            await self._open("write")
        finally:
            if self._connections["write"] is not old:
                await old.close()
        self._is_read_only = False

    async def _keep_log_short(self) -> None:
        """Empties the write-ahead log in gaps between writes, and when it is long.

        SQLite itself never begins it again while reads overlap.
        """
        pause: float = LOG_CHECK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = LOG_CHECK_SECONDS
            # A request tells of the error.
            with suppress(sqlite3.DatabaseError):
                if self._is_log_due() and not await self._empty_log():
                    # Another process reads. Writes should not wait for it all the time.
                    pause = QUIET_SECONDS

    def _is_log_due(self) -> bool:
        if self._wrote_at is None or self._is_damaged:
            return False
        is_quiet = time.monotonic() - self._wrote_at > QUIET_SECONDS
        return is_quiet or self._file.check_log() > LOG_BYTES

    async def _empty_log(self) -> bool:
        # A search takes long. The next one waits, or else one of them would always read the log.
        slow, large, write = (self.slots[lane][0] for lane in ("search", "large_read", "write"))
        async with slow, large, write:
            raw = self._connections["write"]
            await raw.execute_fetchall(f"PRAGMA busy_timeout = {READERS_MS}")
            try:
                await raw.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                milliseconds = settings.DATABASE_STATEMENT_TIMEOUT * 1000
                await raw.execute_fetchall(f"PRAGMA busy_timeout = {milliseconds:.0f}")
            if self._file.check_log() > 0:
                return False
            self._wrote_at = None
            return True


async def _is_usable(raw: aiosqlite.Connection) -> bool:
    """Whether the file can be read now; False while it is locked.

    Raises an error for an unusable file. Opening the file doesn't read it.
    """
    try:
        await raw.execute_fetchall("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if primary_code(error) != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


async def run_statement(raw: aiosqlite.Connection, sql: str, arguments: list[Any]) -> Sequence[Any]:
    """Runs a statement. At a timeout or a cancellation, interrupts it and waits for its end."""
    running = asyncio.ensure_future(raw.execute_fetchall(sql, arguments))
    try:
        async with asyncio.timeout(settings.DATABASE_STATEMENT_TIMEOUT):
            return cast("Sequence[Any]", await asyncio.shield(running))
    except sqlite3.OperationalError as error:
        # Python's default decoding is faster, so `decode` is used only after it failed.
        if raw.text_factory is decode or "decode to UTF-8" not in str(error):
            raise
        # The frames hold the cursor, and an open cursor keeps an old snapshot of the database.
        clear_frames(error.__traceback__)
    except sqlite3.IntegrityError as error:
        # The message of a trigger that a migration makes.
        if "no ids are left" in str(error):
            raise sqlite3.OperationalError(str(error)) from None
        if error.sqlite_errorcode not in OTHERS:
            raise ConstraintBroken(str(error)) from None
        raise
    except (TimeoutError, CancelledError):
        # An interrupt before the thread has begun the statement does nothing.
        while not running.done():
            await raw.interrupt()
            await asyncio.wait([running], timeout=INTERRUPT_SECONDS)
        if interrupted := running.exception():
            # aiosqlite's frames hold the future: a reference cycle.
            interrupted.with_traceback(None)
        raise
    raw.text_factory = decode
    return await run_statement(raw, sql, arguments)
