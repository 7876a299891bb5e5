"""What a dialect gives and what runs it: operations, their lanes, and connections."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from service.tables import Row

Result = TypeVar("Result")

# What an operation waits for before it gets a connection. Each lane has its own bound, so that
# writers that wait and long searches leave connections to those who read.
Lane = Literal["read", "write", "search"]


class Operation(NamedTuple):
    """One thing that a database does: a lane, and a function that does it on a connection.

    The function takes the driver's connection and the values of the parameters by name. It gives
    rows. It raises what the driver raises.
    """

    lane: Lane
    run: Callable[[Any, Mapping[str, Any]], Awaitable[Sequence[Row]]]


class Connections(Protocol):
    """The connections of one process, and all of their state."""

    @property
    def slots(self) -> Mapping[Lane, Sequence[asyncio.Semaphore]]:
        """A lane's slots; all of them are taken before a connection, one after the other."""

    async def open(self) -> None:
        """Opens what has to be open from the start."""

    async def close(self) -> None:
        """Closes all; the caller bounds the time."""

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Gives what `work` gives on a driver's connection, which nobody else uses meanwhile.

        If `work` is cancelled or times out, its statement ends on the server too, as far as the
        driver can see to it.
        """
        ...
