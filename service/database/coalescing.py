"""Many concurrent callers, one query.

While a query is in flight, the callers that want the same kind of thing wait together, and the
next query serves them all. A caller never joins a query that was sent before it asked, so a read
sees every write that was acknowledged before the read began, as it would without coalescing. With
one caller at a time nothing waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def coalesce(
    serve: Callable[[list[Argument]], Awaitable[Sequence[Result]]],
    max_batch: int,
    key: Callable[[Argument], Hashable] = lambda argument: None,
    observe: Callable[[int], object] = lambda size: None,
) -> Callable[[Argument], Awaitable[Result]]:
    """Makes a function for one caller out of one that serves many.

    `serve` takes the arguments of at most `max_batch` callers, all of the same key. It gives as
    many results in their order. One call of it is under way for a key at a time. Its error reaches
    every caller of that call and no other. A caller that is cancelled disturbs nobody; one that
    was still waiting is left out. `observe` is told the size of each batch.
    """
    queues: dict[Hashable, deque[tuple[Argument, asyncio.Future[Result]]]] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def work(queue_key: Hashable) -> None:
        queue = queues[queue_key]
        try:
            while queue:
                batch: list[tuple[Argument, asyncio.Future[Result]]] = []
                while queue and len(batch) < max_batch:
                    argument, future = queue.popleft()
                    if not future.done():
                        batch.append((argument, future))
                if batch:
                    observe(len(batch))
                    await settle(batch)
        finally:
            del queues[queue_key]
            # Only when the event loop is shut down is anybody left.
            for _, future in queue:
                future.cancel()

    async def settle(batch: list[tuple[Argument, asyncio.Future[Result]]]) -> None:
        try:
            results = await serve([argument for argument, _ in batch])
            pairs = list(zip(batch, results, strict=True))
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                    else:
                        future.cancel()
            # The futures hold the error, whose traceback holds this frame: a cycle with all that
            # the callers hold, which nothing but the garbage collector would end.
            batch.clear()
            del future
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in pairs:
                if not future.done():
                    future.set_result(result)

    async def call(argument: Argument) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        queue_key = key(argument)
        if queue_key in queues:
            queues[queue_key].append((argument, future))
        else:
            queues[queue_key] = deque([(argument, future)])
            # The work is a task of its own, so that no caller's cancellation ends it.
            task = loop.create_task(work(queue_key))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        try:
            return await future
        finally:
            # It holds the error, and the error this frame.
            del future

    return call
