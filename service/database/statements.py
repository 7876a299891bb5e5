"""Runs operations, alone or in a transaction, within bounded time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service import telemetry
from service.database.connections import use
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.operations import Lane, Operation, Result
from service.tables import Row

# Tries of an operation or a transaction, if the connection is out of date each time.
MAX_TRIES = 3
# Tries if it is a deadlock each time. Those who wait for one key may meet again, so they pause for
# up to so many seconds.
MAX_DEADLOCKS = 20
MAX_PAUSE = 0.1
WRITES: tuple[Lane, ...] = ("write", "large_write")

Run = Callable[..., Awaitable[Sequence[Row]]]


async def fetch(operation: Operation, **values: Any) -> Sequence[Row]:
    """Runs an operation in its own transaction, and returns its rows.

    Raises DatabaseUnavailable, within bounded time. If the connection is lost, a read is retried
    once. A write is never retried then, because it may have run. If the connection is out of date,
    the operation did not run, so both are retried.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await use(operation.lane, lambda raw: _run(operation, raw, values))
        except dialect.UNAVAILABLE as error:
            again = await _is_again(error, tries)
            lost = isinstance(error, dialect.CONNECTION_LOST) and tries == 1
            if not (again or (lost and operation.lane not in WRITES)):
                # The drivers' frames hold the error, and its traceback holds the frames: a cycle.
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def _is_again(error: Exception, tries: int) -> bool:
    """Whether to try again what did not happen. It pauses after a deadlock."""
    if isinstance(error, dialect.DEADLOCK) and tries < MAX_DEADLOCKS:
        await asyncio.sleep(random.uniform(0, MAX_PAUSE))  # noqa: S311 - it is no secret
        return True
    return isinstance(error, dialect.OUT_OF_DATE) and tries < MAX_TRIES


def _run(operation: Operation, raw: Any, values: dict[str, Any]) -> Awaitable[Sequence[Row]]:
    rows = operation.run(raw, values)
    return telemetry.traced(operation.text(), rows) if telemetry.ON else rows


async def transact(work: Callable[[Run], Awaitable[Result]], lane: Lane = "write") -> Result:
    """Runs `work` in one transaction, and returns its result.

    `work` gets a function like `fetch`. If the connection is out of date, `work` is called again,
    in a new transaction. Raises DatabaseUnavailable.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await use(lane, lambda raw: _transact(raw, work))
        except dialect.UNAVAILABLE as error:
            if not await _is_again(error, tries):
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def _transact(raw: Any, work: Callable[[Run], Awaitable[Result]]) -> Result:
    def run(operation: Operation, **values: Any) -> Awaitable[Sequence[Row]]:
        return _run(operation, raw, values)

    try:
        await raw.execute(dialect.BEGIN)
        result = await work(run)
        await raw.execute("COMMIT")
        return result
    except BaseException as error:
        await dialect.roll_back(raw, error)
        raise
