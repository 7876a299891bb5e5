"""What users own: the rows of every table with the column OWNER.

Rows change hands in batches, each of them a short transaction, so that nobody waits long for them.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Column, ColumnElement, Table, bindparam, exists, func, select

from service.database.dialect import dialect
from service.database.operations import Operation
from service.database.statements import Run, fetch, transact
from service.tables import OWNER, metadata, users

# A row may have 1 MB, and SQLite writes all of it.
BATCH = 100
# The number of rows among which those without an owner are looked for, as no index has these.
SEEN = 1000


class _Statements(NamedTuple):
    """The statements on a table."""

    total: Operation
    # Some ids of an owner.
    find: Operation
    # The last one of the next ids, and those up to it that are nobody's.
    last: Operation
    find_nobodys: Operation
    # These change rows by their ids.
    give: Operation
    delete: Operation


def _prepare(table: Table) -> _Statements:
    key, owner = table.c.id, table.c[OWNER]
    is_owned = owner == bindparam("owner", type_=BigInteger)
    is_next = key > bindparam("after", type_=BigInteger)
    is_given = dialect.is_one_of(key, "ids")
    following = select(key).where(is_next).order_by(key).limit(SEEN).subquery()
    is_seen = key <= bindparam("last", type_=BigInteger)
    has_user = exists().where(users.c.id == owner)
    new_owner = {OWNER: bindparam("new_owner", type_=BigInteger)}
    return _Statements(
        dialect.prepare(select(func.count().label("total")).where(is_owned), searches=True),
        _prepare_batch(key, is_owned),
        dialect.prepare(select(func.max(following.c.id).label("last"))),
        _prepare_batch(key, is_next, is_seen, ~has_user),
        dialect.prepare(table.update().where(is_given).values(new_owner)),
        dialect.delete(table, is_given),
    )


def _prepare_batch(key: Column[Any], *conditions: ColumnElement[bool]) -> Operation:
    query = select(key).where(*conditions).order_by(key).limit(BATCH)
    return dialect.prepare(query.with_for_update())


# Rows go before those that they refer to.
_TABLES: Mapping[str, _Statements] = {
    table.name: _prepare(table) for table in metadata.sorted_tables[::-1] if OWNER in table.c
}


async def count_owned(user_id: int) -> dict[str, int]:
    """How many rows a user owns, by the names of the tables where there are any."""
    counts = {}
    for name, statements in _TABLES.items():
        (row,) = await fetch(statements.total, owner=user_id)
        if row["total"]:
            counts[name] = int(row["total"])
    return counts


async def give_owned(user_id: int, new_owner: int | None) -> None:
    """Gives all that a user owns to another one, or removes it.

    Raises the errors of `dialect.CONFLICT` for a row that can't go, and DatabaseUnavailable.
    """
    for statements in _TABLES.values():

        async def give(run: Run, of: _Statements = statements) -> bool:
            ids = [row["id"] for row in await run(of.find, owner=user_id)]
            if ids:
                change = of.delete if new_owner is None else of.give
                await run(change, ids=ids, new_owner=new_owner)
            return bool(ids)

        while True:
            began = time.monotonic()
            if not await transact(give):
                break
            await _let_others_write(began)


async def adopt(user_id: int) -> dict[str, int]:
    """Gives all rows to a user that have no owner, or one who was removed.

    Returns how many these were, by the names of the tables. Raises DatabaseUnavailable.
    """
    counts = {}
    for name, statements in _TABLES.items():
        counts[name] = 0
        # Other programs may have stored any id.
        after = -(2**63)
        while (last := (await fetch(statements.last, after=after))[0]["last"]) is not None:

            async def give(
                run: Run, of: _Statements = statements, after: int = after, last: int = last
            ) -> list[int]:
                rows = await run(of.find_nobodys, after=after, last=last)
                ids = [row["id"] for row in rows]
                if ids:
                    await run(of.give, ids=ids, new_owner=user_id)
                return ids

            began = time.monotonic()
            ids = await transact(give)
            counts[name] += len(ids)
            after = ids[-1] if len(ids) == BATCH else last
            await _let_others_write(began)
    return counts


async def _let_others_write(began: float) -> None:
    """Waits as long as a batch took: writers on SQLite don't queue."""
    await asyncio.sleep(time.monotonic() - began)
