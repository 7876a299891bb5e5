"""Opens connections to PostgreSQL: to the one host of DATABASE_URL, or to one of several."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeAlias
from typing import cast as as_type

import asyncpg

from service import settings
from service.database.keepalive import notice_loss
from service.database.passfile import find_password

# While a host is silent, hosts that refused are asked again: one may have been promoted.
ASK_AGAIN_SECONDS = 0.5

Connection: TypeAlias = "asyncpg.Connection[Any]"

# Defaults of the server, the database or the role may lack what the service relies on. Under
# another isolation a statement fails that waited for another transaction. Without waiting for the
# disk or a standby a commit may be lost.
COMMITS_SAFELY = """
    SELECT set_config('synchronous_commit', 'on', {is_local})
    WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""
_DEFAULTS = """
    SELECT current_setting('default_transaction_isolation') <> 'read committed'
        OR current_setting('synchronous_commit') IN ('off', 'local')
"""
_OWN_SESSION = "SET default_transaction_isolation = 'read committed';" + COMMITS_SAFELY.format(
    is_local="false"
)
# What the server said at the login may be out of date: PgBouncer keeps what it was told itself.
_KIND = """
    SELECT pg_is_in_recovery() AS is_standby,
        current_setting('transaction_read_only') = 'on' AS is_read_only
"""
# A standby that is promoted begins a timeline; its number is the first part of a file's name.
_TIMELINE = """
    SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8)
    FROM pg_control_system()
"""
# The answers of services that speak PostgreSQL's protocol and have no timelines.
NO_TIMELINES = (asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError)
# The newest timeline of each cluster that this process has seen.
_newest: dict[int, str] = {}


class Session(asyncpg.Connection):
    """A connection. If it `lacks_defaults`, a write begins a transaction with what it needs."""

    lacks_defaults = False


class NoHost(OSError):
    """No host can be used. The text says why not."""


class NoWritableHost(NoHost):
    """Of several hosts, one at least is there and of another kind."""


class FormerPrimary(OSError):
    """The host takes writes, but another one was promoted since."""


WRITABLE = ("read-write", "primary")


class EncodingIsNotUTF8(OSError):
    """The database can't store every text."""


OTHER_KIND = (asyncpg.TargetServerAttributeNotMatched, FormerPrimary)


async def connect(dsn: None = None, **options: Any) -> Connection:
    """Connects like `asyncpg.connect`, but asks several hosts at the same time.

    `host` and `port` are lists then. The first host that fits `target_session_attrs` is taken, and
    no connection to another one stays open. Raises NoHost when each host has refused, at the latest
    after `timeout` seconds.
    """
    if isinstance(options.get("host"), list):
        # A host may be named twice.
        hosts = dict.fromkeys(zip(options.pop("host"), options.pop("port"), strict=True))
        return await _race(list(hosts), options)
    return await _connect_to({}, options)


async def _race(hosts: list[tuple[str, int]], options: Mapping[str, Any]) -> Connection:
    first: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    refusals: dict[tuple[str, int], Exception] = {}

    async def ask(host: tuple[str, int]) -> None:
        while True:
            try:
                address = {"host": host[0], "port": host[1]}
                connection = await _connect_to(address, options)
            except Exception as error:
                # Their tracebacks hold this frame, and it holds the error: a reference cycle.
                error.__context__ = error.__cause__ = None
                refusals[host] = error.with_traceback(None)
            else:
                if first.done():
                    connection.terminate()
                else:
                    first.set_result(connection)
                return
            if len(refusals) == len(hosts) and not first.done():
                in_order = {host: refusals[host] for host in hosts}
                first.set_exception(_no_host(in_order, options["timeout"]))
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    tasks = [asyncio.create_task(ask(host)) for host in hosts]
    try:
        return await first
    except asyncio.CancelledError:
        # The caller was cancelled in the moment in which a host was found.
        if not first.cancelled() and first.exception() is None:
            first.result().terminate()
        raise
    finally:
        for task in tasks:
            task.cancel()


def _no_host(refusals: Mapping[tuple[str, int], Exception], timeout: float) -> NoHost:
    reasons = []
    for (host, port), error in refusals.items():
        reason = " ".join(str(error).split()) or f"no answer in {timeout:g} s"
        reasons.append(f"{host}:{port}: {type(error).__name__}: {reason}")
    is_other_kind = any(isinstance(error, OTHER_KIND) for error in refusals.values())
    return (NoWritableHost if is_other_kind else NoHost)("; ".join(reasons))


async def _connect_to(address: Mapping[str, Any], options: Mapping[str, Any]) -> Connection:
    wanted = options.get("target_session_attrs")
    options = {**options, **address}
    if not options.get("password"):
        options["password"] = find_password(options)
    # asyncpg would believe what the server said at the login.
    unchecked = {"target_session_attrs": "any"} if wanted else {}
    async with asyncio.timeout(options.get("timeout")):
        connection: Connection = await asyncpg.connect(
            **{"connection_class": Session, **options, **unchecked}
        )
        try:
            notice_loss(as_type("Any", connection)._transport)
            # A pooler may not tell it.
            encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
            if encoding != "UTF8":
                raise EncodingIsNotUTF8(
                    f"the database is encoded in {encoding}, and the service needs UTF8: make"
                    " another database with TEMPLATE template0 ENCODING 'UTF8'"
                )
            if wanted:
                await check_kind(connection, wanted)
            # A single host may be restored from a backup.
            if address and wanted in WRITABLE:
                await _refuse_former_primary(connection)
            if await connection.fetchval(_DEFAULTS):
                await _own_session(connection)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _own_session(connection: Connection) -> None:
    if settings.DATABASE_STATEMENT_CACHE:
        await connection.execute(_OWN_SESSION)
    else:
        # PgBouncer's next transaction may be in another session.
        as_type("Any", connection).lacks_defaults = True


async def check_kind(connection: Connection, wanted: str) -> None:
    """Raises TargetServerAttributeNotMatched if the server is of another kind than wanted.

    `wanted` is a value of libpq's target_session_attrs.
    """
    is_standby, is_read_only = as_type("Any", await connection.fetchrow(_KIND))
    fits = {
        "primary": not is_standby,
        "standby": is_standby,
        "read-write": not is_read_only,
        "read-only": is_read_only,
    }
    if not fits.get(wanted, True):
        kind = "a standby" if is_standby else "read-only" if is_read_only else "a primary"
        raise asyncpg.TargetServerAttributeNotMatched(f"it is {kind}, and {wanted} is wanted")


async def _refuse_former_primary(connection: Connection) -> None:
    """Raises FormerPrimary for a server that missed that another one was promoted.

    It may have hung, or its Patroni may have died. It takes writes until it is demoted, and its
    data are stale.
    """
    try:
        system, timeline = as_type("Any", await connection.fetchrow(_TIMELINE))
    except NO_TIMELINES:
        return
    newest = _newest.get(system, "")
    if timeline < newest:
        raise FormerPrimary(f"it is on timeline {timeline}, but {newest} has begun")
    _newest[system] = timeline
