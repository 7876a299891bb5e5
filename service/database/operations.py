"""Operations, their lanes, and the connections that run them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from service.tables import Row

Result = TypeVar("Result")

# Lanes have separate slots, so that one does not block another: on a server searches are limited,
# SQLite has one connection for each lane. Large writes are writes that wait for each other before,
# and so are reads of changes that were missed among large reads.
Lane = Literal["read", "large_read", "missed", "write", "large_write", "search"]


# A text of more characters makes a write large: its index alone may take long.
LARGE = 50_000


class Operation(NamedTuple):
    """One operation of a database: its lane, and a function that runs it on a connection.

    The function takes the driver's connection and the parameters by name. It returns rows, and
    raises the driver's errors. `text` gives its statement, or the first of several, for traces.
    The rows of a page that `tells_more` have a column `_is_followed`: whether one more follows.
    """

    lane: Lane
    run: Callable[[Any, Mapping[str, Any]], Awaitable[Sequence[Row]]]
    text: Callable[[], str]
    tells_more: bool = False


def slots_of_server(connections: int) -> dict[Lane, list[asyncio.Semaphore]]:
    """The slots of each lane, for a server with this number of connections.

    Searches get half of them, and so do large writes; the last one is for neither. Large reads
    don't take as long, and get a quarter. Of these, one at a time is for changes that were missed.
    """
    all_slots = asyncio.Semaphore(connections)
    slow = asyncio.Semaphore(max(1, connections - 1))
    searches = asyncio.Semaphore(max(1, connections // 2))
    large = asyncio.Semaphore(max(1, connections // 4))
    return {
        "read": [all_slots],
        "large_read": [large, all_slots],
        "missed": [asyncio.Semaphore(1), large, all_slots],
        "write": [all_slots],
        "large_write": [slow, all_slots],
        "search": [searches, slow, all_slots],
    }


class PageBounds(NamedTuple):
    """How large a page may be whose values may be large, each of them in bytes.

    A page that would have over `max_bytes` has `short` rows at most. It has that number only with
    values of over `large` bytes, which an index has. If it `tells_more`, it has as many rows as
    fit, and at least `short`.
    """

    max_bytes: int
    short: int
    large: int


class Connections(Protocol):
    """The connections of one process, and their state."""

    @property
    def slots(self) -> Mapping[Lane, Sequence[asyncio.Semaphore]]:
        """The slots of each lane. A caller acquires all of them in order, then a connection."""

    async def open(self) -> None:
        """Opens the connections that are needed at the start."""

    async def close(self) -> None:
        """Closes all connections; the caller limits the time."""

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Runs `work` on a driver's connection, alone, and returns its result.

        If `work` is cancelled or times out, the statement ends on the server too, if possible.
        """
        ...
