"""Opens connections to PostgreSQL: to the one host of DATABASE_URL, or to one of several."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeAlias
from typing import cast as as_type

import asyncpg

from service.database.keepalive import notice_loss

# While a host is silent, hosts that refused are asked again: one may have been promoted.
ASK_AGAIN_SECONDS = 0.5

Connection: TypeAlias = "asyncpg.Connection[Any]"

# A standby that is promoted begins a timeline; its number is the first part of a file's name.
_TIMELINE = """
    SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8)
    FROM pg_control_system()
"""
# The newest timeline of each cluster that this process has seen.
_newest: dict[int, str] = {}


class NoHost(OSError):
    """No host can be used. The text says why not."""


class NoWritableHost(NoHost):
    """Of several hosts, one at least is there and of another kind."""


class FormerPrimary(OSError):
    """The host takes writes, but another one was promoted since."""


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
        connection = await _race(list(hosts), options)
    else:
        connection = await asyncpg.connect(**options)
    notice_loss(as_type("Any", connection)._transport)
    return connection


async def _race(hosts: list[tuple[str, int]], options: Mapping[str, Any]) -> Connection:
    first: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    refusals: dict[tuple[str, int], Exception] = {}

    async def ask(host: tuple[str, int]) -> None:
        while True:
            try:
                async with asyncio.timeout(options["timeout"]):
                    connection = await _connect_to(host, options)
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


async def _connect_to(host: tuple[str, int], options: Mapping[str, Any]) -> Connection:
    connection: Connection = await asyncpg.connect(host=host[0], port=host[1], **options)
    try:
        if options["target_session_attrs"] in ("read-write", "primary"):
            await _refuse_former_primary(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _refuse_former_primary(connection: Connection) -> None:
    """Raises FormerPrimary for a server that missed that another one was promoted.

    It may have hung, or its Patroni may have died. It takes writes until it is demoted, and its
    data are stale.
    """
    try:
        system, timeline = as_type("Any", await connection.fetchrow(_TIMELINE))
    except asyncpg.PostgresError:
        # Not every service that speaks PostgreSQL's protocol has timelines.
        return
    newest = _newest.get(system, "")
    if timeline < newest:
        raise FormerPrimary(f"it is on timeline {timeline}, but {newest} has begun")
    _newest[system] = timeline
