"""The one database: its options, and the connections to it."""

import asyncio
import math
import sqlite3
import threading
import time
from asyncio import CancelledError
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, cast, get_args

import aiosqlite
import asyncpg
from databases import Database
from databases.core import Connection

from service import metrics, settings
from service.database.errors import TROUBLE

CLOSE_SECONDS = 5
CANCEL_SECONDS = 1
IDLE_SECONDS = 60
EXPIRE_SECONDS = 1


async def _keep(connection: Any) -> None:
    """Stands in for asyncpg's reset query, a round trip at every release.

    Nothing here changes a session's state: no SET, LISTEN, advisory lock or open cursor.
    """


def decode(stored: bytes | None) -> str | None:
    """A text as it is shown, with U+FFFD where another program has stored what is no UTF-8."""
    return None if stored is None else stored.decode("utf-8", "replace")


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Seconds to wait for another writer.
        return {"timeout": settings.DATABASE_STATEMENT_TIMEOUT}
    # The server ends a statement itself, so that nothing of it is left. PgBouncer, where no
    # statements are kept, lets no connection say so.
    milliseconds = str(round(settings.DATABASE_STATEMENT_TIMEOUT * 1000))
    limits = {"statement_timeout": milliseconds} if settings.DATABASE_STATEMENT_CACHE else {}
    return {
        # No connection is opened at the start, so the service starts while the database is away.
        "min_size": 0,
        "max_size": settings.DATABASE_POOL_MAX,
        "timeout": settings.DATABASE_CONNECT_TIMEOUT,
        # A server that answers ends statements itself, a moment before.
        "command_timeout": settings.DATABASE_STATEMENT_TIMEOUT + 1,
        "statement_cache_size": settings.DATABASE_STATEMENT_CACHE,
        "server_settings": settings.DATABASE_SERVER_SETTINGS | limits,
        "ssl": settings.DATABASE_SSL,
        **settings.DATABASE_ARGUMENTS,
        "reset": _keep,
    }


database = Database(settings.DATABASE_URL, **_options(settings.DATABASE_URL))
DIALECT = database.url.dialect


Lane = Literal["read", "write", "search"]

# What a statement waits for before it gets a connection, by its lane: encode/databases itself waits
# without end for a connection of an exhausted pool. A connection to SQLite serves one at a time
# too. In the queue of its thread a statement that waited too long would be carried out, after its
# caller was told that it failed. A search may take as long as a statement can: on PostgreSQL it
# waits for its turn among the searches first, which leave connections to the others.
_turns: dict[Lane, list[asyncio.Semaphore]] = {}

# Connections to PostgreSQL that no statement uses. To give one back to asyncpg's pool and take it
# out again takes as long as a statement.
_idle: list[Connection] = []

# Connections to PostgreSQL that were taken out in another generation are not used any more.
_generation = 0
_expired_at = -math.inf

# At the end connections go back to the pool, which waits for them.
_is_closing = False

# The connections to SQLite, one for each lane, so that nobody reads behind a writer that waits or a
# search; encode/databases would open a file and start a thread for each statement.
_files: dict[Lane, aiosqlite.Connection] = {}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time.

    Raises sqlite3.DatabaseError for a SQLite file that can't be used; a locked one is waited for,
    by each statement.
    """
    global _is_closing
    _is_closing = False
    await database.connect()
    idling = asyncio.create_task(_give_back_idle())
    try:
        if DIALECT == "sqlite":
            for lane in get_args(Lane):
                await asyncio.create_task(_open())
                file = _files[lane] = _idle.pop().raw_connection
                file.row_factory = sqlite3.Row
                if lane == "write":
                    # A write can't be run again to decode its rows otherwise.
                    file.text_factory = decode
                    await file.create_function("decode", 1, decode)
                await _check(file)
                _turns[lane] = [asyncio.Semaphore(1)]
        else:
            every = asyncio.Semaphore(settings.DATABASE_POOL_MAX)
            searches = asyncio.Semaphore(max(1, settings.DATABASE_POOL_MAX // 2))
            _turns["read"] = _turns["write"] = [every]
            _turns["search"] = [searches, every]
        yield
    finally:
        idling.cancel()
        _is_closing = True
        # What is left of the time between SIGTERM and SIGKILL; asyncpg then closes by force.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for file in _files.values():
                    await file.interrupt()
                    await file.close()
                _files.clear()
                await _give_back()
                await database.disconnect()


async def _check(file: aiosqlite.Connection) -> None:
    """Reads from a file for the first time, which opening it doesn't."""
    try:
        await file.execute_fetchall("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise


async def _open() -> None:
    """Adds a connection to the idle ones, where it isn't lost if its caller is cancelled just then.

    Runs as a task of its own, as encode/databases has one connection for each task.
    """
    others = threading.enumerate()
    try:
        opened = await database.connection().__aenter__()
    except sqlite3.Error:
        # aiosqlite ends its thread, which needs the event loop, but doesn't wait for that.
        for thread in set(threading.enumerate()).difference(others):
            thread.join(CLOSE_SECONDS)
        raise
    except asyncpg.PostgresError as error:
        if isinstance(error, TROUBLE):
            raise
        # The server refuses what the options of its URL ask for.
        raise asyncpg.CannotConnectNowError(str(error)) from error
    _idle.append(opened)


async def _take() -> Connection:
    while True:
        while _idle:
            connection = _idle.pop()
            if _is_usable(connection):
                return connection
            await connection.__aexit__()
        await asyncio.create_task(_open())


def _is_usable(connection: Connection) -> bool:
    raw = connection.raw_connection
    try:
        return not (raw.is_closed() or raw.is_in_transaction())
    except asyncpg.InterfaceError:
        # The pool has noticed already.
        return False


async def _give_back() -> None:
    while _idle:
        with suppress(*TROUBLE):
            await _idle.pop().__aexit__()


async def _expire() -> None:
    """Closes all connections: idle ones now, and those that are in use when they come back.

    After a failover they may lead to a server that is read-only now, and reads there would never
    fail. At most once a second, as a server may also stay read-only, and serve reads meanwhile.
    """
    global _generation, _expired_at
    now = time.monotonic()
    if now - _expired_at < EXPIRE_SECONDS:
        return
    _expired_at = now
    _generation += 1
    for idle in _idle:
        _terminate(idle)
    pool: asyncpg.Pool[Any] = cast("Any", database)._backend._pool
    await pool.expire_connections()


def _terminate(connection: Connection) -> None:
    """Closes a connection at once; asyncpg's pool would wait for a server that may hang."""
    # The pool may have noticed that it is lost.
    with suppress(asyncpg.InterfaceError):
        connection.raw_connection.terminate()


async def _give_back_idle() -> None:
    """Lets the pool close and replace connections, as it does those that it has for some time."""
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        await _give_back()


async def _acquire(turns: list[asyncio.Semaphore]) -> None:
    """Takes all turns, one after the other, or none."""
    for place, turn in enumerate(turns):
        try:
            await turn.acquire()
        except BaseException:
            _release(turns[:place])
            raise


def _release(turns: list[asyncio.Semaphore]) -> None:
    for turn in turns:
        turn.release()


@asynccontextmanager
async def connection(writes: bool, searches: bool = False) -> AsyncIterator[Any]:
    """A connection as the driver has it, waited for and used for bounded times."""
    lane: Lane = "write" if writes else "search" if searches else "read"
    turns = _turns[lane]
    if any(map(asyncio.Semaphore.locked, turns)):
        with metrics.waiting.track_inprogress():
            async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
                await _acquire(turns)
    else:
        await _acquire(turns)
    metrics.in_use.inc()
    try:
        if DIALECT == "sqlite":
            yield _files[lane]
            return
        generation = _generation
        pooled = await _take()
        raw = pooled.raw_connection
        try:
            yield raw
        except asyncpg.ReadOnlySQLTransactionError:
            await _expire()
            raise
        except (TimeoutError, CancelledError):
            # The server may hang, and never take the cancellation of what it has begun.
            with suppress(*TROUBLE):
                await raw.close(timeout=CANCEL_SECONDS)
            raise
        finally:
            if generation != _generation:
                _terminate(pooled)
            if _is_usable(pooled) and not _is_closing:
                _idle.append(pooled)
            else:
                await pooled.__aexit__()
    finally:
        metrics.in_use.dec()
        _release(turns)
