"""Sessions on MySQL and MariaDB, through encode/databases and asyncmy, and their errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from asyncmy import errors
from asyncmy.constants.CLIENT import FOUND_ROWS, SSL
from asyncmy.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS
from databases import Database
from sqlalchemy.engine import make_url

from service import settings
from service.database.keepalive import notice_loss
from service.database.operations import Result
from service.database.pool import IDLE_SECONDS
from service.tables import metadata


class Refused(Exception):
    """The server is away, full, refuses or gives up. The arguments are asyncmy's."""


class ConstraintBroken(Exception):
    """A statement breaks a constraint of a table. The server has rolled back this one alone."""


class NotMigrated(Refused):
    """A table or a column is missing."""


class ConnectionLost(Refused):
    """The connection is lost. The statement may have run."""


class Deadlock(Refused):
    """The server rolled back the whole transaction."""


class ReadOnly(Refused):
    """The server refuses writes."""


class RightMissing(Refused):
    """The user lacks a right on a table or a column."""


class Full(Refused):
    """The server's disk or the table is full."""


class CannotStoreUTF8(Refused):
    """A column has another character set than the migrations gave it."""


# https://mariadb.com/kb/en/mariadb-error-code-reference/
# https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html
KINDS: dict[int, type[Exception]] = {
    0: ConnectionLost,  # asyncmy: not connected
    1021: Full,  # the disk
    1053: ConnectionLost,  # the server shuts down
    1054: NotMigrated,  # unknown column
    1062: ConstraintBroken,  # unique
    1114: Full,  # the table
    1142: RightMissing,  # on a table
    1143: RightMissing,  # on a column
    1146: NotMigrated,  # no such table
    1152: ConnectionLost,  # aborted
    1213: Deadlock,
    1290: ReadOnly,  # the server's option read_only
    1366: CannotStoreUTF8,
    1451: ConstraintBroken,  # a row that is referred to
    1452: ConstraintBroken,  # a reference to nothing
    1792: ReadOnly,  # the transaction
    1836: ReadOnly,  # the server's mode
    1927: ConnectionLost,  # killed, on MariaDB
    2006: ConnectionLost,
    2013: ConnectionLost,
    3169: ConnectionLost,  # killed, on MySQL
    3819: ConstraintBroken,  # CHECK, on MySQL
    4025: ConstraintBroken,  # CHECK, on MariaDB
    4031: ConnectionLost,  # idle for too long, on MySQL
}
# The classes of SQLSTATE for bad data, broken constraints, and what triggers raise.
DATA_STATES = ("21", "22", "23", "45")

# The server's max_prepared_stmt_count is reached. This ends no transaction.
NO_MORE_PREPARED = 1461

BEGIN = "BEGIN"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
# Whether a transaction is open after each of them.
OPENS = {BEGIN: True, COMMIT: False, ROLLBACK: False}
TRANSACTION_FLAGS = SERVER_STATUS_AUTOCOMMIT | SERVER_STATUS_IN_TRANS
CANCEL_SECONDS = 1
CLOSE_SECONDS = 1
# An idle connection is closed here before the server closes it.
WAIT_SECONDS = 10 * IDLE_SECONDS

# max_allowed_packet until the server has told it, and what a packet contains besides texts.
MIN_PACKET = 1024**2
PACKET_MARGIN = 1024

_SECONDS = settings.DATABASE_STATEMENT_TIMEOUT
_LOCK_SECONDS = max(1, int(_SECONDS))
# Nothing depends on the server's own settings, nor on what its init_connect did to a session.
SET_UP = (
    "ROLLBACK AND NO CHAIN NO RELEASE",
    # Texts are escaped for this character set. A server may ignore the one of the login.
    "SET NAMES utf8mb4",
    # Under REPEATABLE READ a transaction would not see what others commit while it waits for them.
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
    "SET sql_mode = 'TRADITIONAL', time_zone = '+00:00', completion_type = 'NO_CHAIN',"
    " foreign_key_checks = 1, unique_checks = 1, sql_auto_is_null = 0, sql_safe_updates = 0,"
    " sql_big_selects = 1, sql_select_limit = 18446744073709551615",
)
LIMITS = (
    f"SET autocommit = 1, wait_timeout = {WAIT_SECONDS}, lock_wait_timeout = {_LOCK_SECONDS},"
    f" innodb_lock_wait_timeout = {_LOCK_SECONDS},"
    # Only MariaDB reads the first comment, and only MySQL the second. MySQL limits only SELECT.
    f" /*M! max_statement_time = {_SECONDS} */"
    f"/*!80000 max_execution_time = {_SECONDS * 1000:.0f} */"
)
# A router may leave out a SET.
IS_SET_UP = (
    "SELECT @@character_set_client = 'utf8mb4' AND @@character_set_results = 'utf8mb4'"
    " AND /*M! @@tx_isolation *//*!80000 @@transaction_isolation */ = 'READ-COMMITTED'"
    " AND @@sql_mode LIKE '%STRICT_ALL_TABLES%'"
)
_COLUMNS = [str(column) for table in metadata.tables.values() for column in table.columns]
# A column that another program has changed, and its character set; no row if all are right.
NOT_UTF8 = (
    "SELECT concat(table_name, '.', column_name, ' has the character set ', character_set_name)"  # noqa: S608
    " FROM information_schema.columns WHERE table_schema = database()"
    f" AND concat(table_name, '.', column_name) IN ({', '.join(map(repr, _COLUMNS))})"
    " AND character_set_name <> 'utf8mb4' LIMIT 1"
)
# The bytes of a packet, the difference of the ids of two rows that are inserted together, and the
# server: behind one address there may be several.
SERVER = "SELECT @@max_allowed_packet, @@auto_increment_increment, concat(@@hostname, ':', @@port)"


_URL = make_url(settings.DATABASE_URL)


def _tls() -> tuple[SSLContext | None, bool]:
    """The context for asyncmy, and whether TLS is required."""
    chosen = settings.DATABASE_SSL
    if isinstance(chosen, SSLContext):
        return chosen, True
    if chosen in ("disable", False) or "unix_socket" in settings.DATABASE_ARGUMENTS:
        return None, False
    made = SSLContext(PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = CERT_NONE
    return made, chosen == "require"


def _options(tls: SSLContext | None) -> dict[str, Any]:
    return {
        "connect_timeout": settings.DATABASE_CONNECT_TIMEOUT,
        "charset": "utf8mb4",
        # asyncmy would encode a text as Latin-1, so it must not get the URL's password.
        "password_creator": str(_URL.password or "").encode,
        # UPDATE counts the rows that it finds, not only those that it changes.
        "client_flag": FOUND_ROWS,
        "ssl": tls,
        "stmt_cache_size": settings.DATABASE_STATEMENT_CACHE,
        **settings.DATABASE_ARGUMENTS,
    }


# The first byte of a greeting.
PROTOCOL = b"\x0a"
# Whether the server offers TLS; None if that is not known.
_offers_tls: bool | None = None
# A lock belongs to one event loop.
_asking: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def with_tls(connect: Callable[[dict[str, Any]], Awaitable[Result]]) -> Result:
    """Calls `connect` with asyncmy's options: with TLS, or without it if the server has none.

    Raises Refused and OSError, also if TLS is required and the server has none.
    """
    try:
        tls, required = _tls()
        offered = tls is not None and (required or await _is_tls_offered())
        return await connect(_options(tls if offered else None))
    except BaseException as error:
        if not _is_answer(error):
            forget_tls()
        # asyncmy lacks some ways to log in.
        if isinstance(error, errors.MySQLError | RuntimeError):
            raise Refused(*error.args) from None
        raise


def forget_tls() -> None:
    """The next connection may lead to another server."""
    global _offers_tls
    _offers_tls = None


def _is_answer(error: BaseException) -> bool:
    """Whether the server itself has refused the login. Its codes are not those of clients.

    Then TLS is not the reason. A server counts those who ask it for TLS and then leave, and blocks
    their host after max_connect_errors of them without a login.
    """
    code = error.args[0] if error.args else None
    return (
        isinstance(error, errors.MySQLError) and isinstance(code, int) and code // 1000 in (1, 3, 4)
    )


async def _is_tls_offered() -> bool:
    global _offers_tls
    async with _asking.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        if _offers_tls is None:
            _offers_tls = await _ask_for_tls()
        return _offers_tls


async def _ask_for_tls() -> bool:
    """Whether the server offers TLS. It says so in its greeting, which asyncmy doesn't look at.

    https://mariadb.com/kb/en/connection/#initial-handshake-packet
    """
    reader, writer = await asyncio.open_connection(_URL.host, _URL.port or 3306)
    try:
        head = await reader.readexactly(4)
        greeting = await reader.readexactly(int.from_bytes(head[:3], "little"))
    except EOFError:
        raise ConnectionLost("the server greets nobody") from None
    finally:
        writer.close()
    if greeting[:1] != PROTOCOL:
        # An error without SQLSTATE, such as "Too many connections".
        raise Refused(
            int.from_bytes(greeting[1:3], "little"), greeting[3:].decode(errors="replace")
        )
    # Behind the version: the number of the connection, 8 bytes of a nonce and a zero.
    place = greeting.index(b"\0", 1) + 1 + 4 + 8 + 1
    return bool(int.from_bytes(greeting[place : place + 2], "little") & SSL)


class Answer(NamedTuple):
    """Rows, or how many rows were found and the first id that was generated."""

    rows: Sequence[tuple[Any, ...]]
    found: int
    first_id: int


class Session:
    """A connection to the server. It is not used again after an error or a cancellation."""

    def __init__(self, raw: Any) -> None:
        # asyncmy's connection.
        self._raw = raw
        self._is_failed = False
        # Whether a transaction was begun and not ended.
        self._in_transaction = False
        self.max_packet = MIN_PACKET
        self.id_step = 1
        self.server = ""

    async def set_up(self) -> None:
        await set_up(self._raw, LIMITS)
        ((self.max_packet, self.id_step, self.server),) = (await self.execute(SERVER)).rows

    async def execute(self, sql: str, arguments: Sequence[Any] | None = None) -> Answer:
        """Runs a statement.

        With arguments, `%s` is a parameter, and `%%` a percent sign. Raises TimeoutError if the
        server hangs; otherwise it ends the statement earlier. Raises Refused if the server ended or
        kept open a transaction that nobody here did.
        """
        self._check_size([sql, *(arguments or ())])
        cursor = self._raw.cursor()
        try:
            async with asyncio.timeout(_SECONDS + 1):
                if (
                    arguments is not None
                    and sql not in self._raw._stmt_cache
                    and not await self._prepare(sql, len(arguments))
                ):
                    sql, arguments = cursor.mogrify(sql, arguments), None
                await cursor.execute(sql, arguments)
                answer = Answer(await cursor.fetchall(), cursor.rowcount, cursor.lastrowid)
            self._in_transaction = OPENS.get(sql, self._in_transaction)
            self._check_transaction()
            return answer
        except BaseException as error:
            known = _known(error) if isinstance(error, errors.MySQLError) else error
            self._is_failed = not isinstance(known, ConstraintBroken)
            if known is not error:
                raise known from None
            raise

    async def _prepare(self, sql: str, parameters: int) -> bool:
        """Prepares a statement. False if it has to be sent as a text.

        asyncmy 0.2.18 prepares statements itself (`_acquire_cached_statement`), but ignores every
        error and sends the statement as a text. If the error was a deadlock, the server has rolled
        back the transaction, and that text is committed alone. So asyncmy finds each statement
        prepared here. This can go when asyncmy raises such an error.
        """
        prepared = self._raw._stmt_cache
        if not settings.DATABASE_STATEMENT_CACHE:
            return False
        if len(prepared) >= settings.DATABASE_STATEMENT_CACHE:
            # asyncmy moves what it uses to the end.
            await prepared.pop(next(iter(prepared))).close()
        try:
            prepared[sql] = await self._raw.prepare(sql % (("?",) * parameters))
        except errors.MySQLError as error:
            if error.args[0] == NO_MORE_PREPARED:
                return False
            raise
        return True

    def _check_transaction(self) -> None:
        """Refuses what the server says about the transaction, if it is not what was begun here.

        A router may have replaced its own connection to the server.
        """
        expected = SERVER_STATUS_AUTOCOMMIT
        if self._in_transaction:
            expected = TRANSACTION_FLAGS
        if self._raw.server_status & TRANSACTION_FLAGS != expected:
            state = "is not" if self._in_transaction else "is"
            raise Refused(f"a transaction {state} open after the statement, or autocommit is off")

    def _check_size(self, values: Sequence[Any]) -> None:
        """Refuses what is too large: the server would close the connection."""
        texts = [value for value in values if isinstance(value, str)]
        most = self.max_packet - PACKET_MARGIN
        # UTF-8 has at most 4 bytes for a character.
        if sum(map(len, texts)) * 4 > most:
            size = sum(len(text.encode()) for text in texts)
            if size > most:
                raise Refused(f"{size} bytes are too much for max_allowed_packet")

    def literal(self, value: Any) -> str:
        """A value in the text of a statement."""
        return str(self._raw.literal(value))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction, or a part of the open one."""
        if self._in_transaction:
            yield
            return
        await self.execute(BEGIN)
        try:
            yield
            await self.execute(COMMIT)
        except Exception:
            await self.roll_back()
            raise

    async def roll_back(self) -> None:
        # The server itself rolls back when a connection ends.
        if not self._is_failed:
            await self.execute(ROLLBACK)

    def is_usable(self) -> bool:
        """Whether it can be used again, as far as is known here."""
        received = self._raw._proto
        return not (
            self._is_failed
            or self._raw._stream_broken
            or self._in_transaction
            # The server says something between statements only before it closes.
            or received.pos < received.length
        )

    def abort(self) -> None:
        """Closes the connection without waiting for the server, which may hang."""
        self._is_failed = True
        if transport := self._raw._transport:
            transport.abort()
        self._raw.close()

    async def end(self) -> None:
        with suppress(OSError, errors.MySQLError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._raw.ensure_closed()
        self.abort()

    async def kill(self) -> None:
        """Closes the connection, and ends its statement on the server, if possible."""
        self.abort()
        with suppress(OSError, Refused):
            async with asyncio.timeout(CANCEL_SECONDS):
                other = await open_session()
                try:
                    if other.server == self.server:
                        await other.execute(f"KILL QUERY {self._raw.thread_id()}")
                finally:
                    other.abort()


def _known(error: Any) -> Exception:
    """The error to raise instead of asyncmy's. It stays asyncmy's for a defect of this service."""
    is_refusal = isinstance(error, errors.OperationalError | errors.InternalError)
    is_of_data = (error.sqlstate or "")[:2] in DATA_STATES
    kind = KINDS.get(error.args[0], Refused if is_refusal and not is_of_data else None)
    return kind(*error.args) if kind else error


async def set_up(connection: Any, limits: str) -> None:
    """Sets everything that statements rely on. Raises asyncmy's errors, and Refused."""
    await connection.select_db(_URL.database)
    cursor = connection.cursor()
    for statement in (*SET_UP, limits, IS_SET_UP):
        await cursor.execute(statement)
    if await cursor.fetchone() != (1,):
        raise Refused("the session keeps settings that the service has changed")


async def open_session() -> Session:
    """Opens a session within DATABASE_CONNECT_TIMEOUT. Raises Refused and OSError."""
    session = None
    try:
        async with asyncio.timeout(settings.DATABASE_CONNECT_TIMEOUT):
            session = Session(await with_tls(_connect))
            await session.set_up()
    except BaseException as error:
        if session is not None:
            session.abort()
        if isinstance(error, errors.MySQLError):
            raise Refused(*error.args) from None
        raise
    return session


async def _connect(options: dict[str, Any]) -> Any:
    # A pool of asyncmy opens one connection at a time, however long that takes. So each connection
    # has its own.
    url = _URL._replace(password=None).render_as_string()
    database = Database(url, min_size=0, max_size=1, **options)
    await database.connect()
    connection = await database.connection().__aenter__()
    notice_loss(connection.raw_connection._transport)
    return connection.raw_connection
