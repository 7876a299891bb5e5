"""Operations run, alone or in a transaction, within bounded time."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.database.connections import use
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.operations import Operation, Result
from service.tables import Row

# How often an operation or a transaction is begun, if the connection is out of date each time.
TRIES = 3

Run = Callable[..., Awaitable[Sequence[Row]]]


async def fetch(operation: Operation, **values: Any) -> Sequence[Row]:
    """Runs an operation, in a transaction of its own, and gives its rows.

    Raises DatabaseUnavailable, within bounded time. A read whose connection was lost is tried once
    more. A write never is, as it may have been carried out. Either is run anew if it has surely
    not been carried out, as the connection was out of date.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await use(operation.lane, lambda raw: operation.run(raw, values))
        except dialect.UNAVAILABLE as error:
            again = isinstance(error, dialect.OUT_OF_DATE) and tries < TRIES
            lost = isinstance(error, dialect.CONNECTION_LOST) and tries == 1
            if not (again or (lost and operation.lane != "write")):
                # The drivers' frames hold the error, and its traceback all frames up to this one.
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def transact(work: Callable[[Run], Awaitable[Result]]) -> Result:
    """Gives what `work` gives; its operations are carried out all or not at all.

    `work` is called with a function like `fetch`. It is called anew, in a fresh transaction, if an
    operation was refused because the connection was out of date. Raises DatabaseUnavailable.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await use("write", lambda raw: _transact(raw, work))
        except dialect.UNAVAILABLE as error:
            if not (isinstance(error, dialect.OUT_OF_DATE) and tries < TRIES):
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def _transact(raw: Any, work: Callable[[Run], Awaitable[Result]]) -> Result:
    def run(operation: Operation, **values: Any) -> Awaitable[Sequence[Row]]:
        return operation.run(raw, values)

    try:
        await raw.execute(dialect.BEGIN)
        result = await work(run)
        await raw.execute("COMMIT")
        return result
    except BaseException as error:
        await dialect.roll_back(raw, error)
        raise
