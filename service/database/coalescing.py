"""Coalescing: many concurrent callers share one query.

While a query is in flight, new callers with the same key wait together. The next query serves all
of them. A caller never joins a query that started before the call. So a read sees every write that
was acknowledged before the read began, as without coalescing. A single caller never waits. Nobody
waits long for a query on a connection that hangs: a second one begins beside it.

A query has a task of its own, and begins one turn of the event loop after the call, so that others
can join it. Where none came for some queries, a caller runs the next one in its own task, at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Any, TypeVar

from service import settings, telemetry

Argument = TypeVar("Argument")
Result = TypeVar("Result")

# After these seconds a query is slow. A second one needs a second connection, and SQLite has one
# for each lane.
PATIENCE = (
    0.25
    if settings.DATABASE_POOL_MAX > 1 and not settings.DATABASE_URL.startswith("sqlite")
    else None
)

# The turns of the event loop between two queries, in which clients nearby can ask again and join
# the next one. In the first the callers answer, in the second the answers are sent, in the third
# the next requests are read, in the fourth their tasks begin; the others are for slower clients.
# To read one row for each of 32 clients takes an eighth less CPU than without them.
TURNS = 6

# After this number of queries during which nobody else came, a caller serves itself.
LONE_QUERIES = 8


def coalesce(
    serve: Callable[[list[Argument]], Awaitable[Sequence[Result]]],
    max_batch: int,
    key: Callable[[Argument], Hashable] = lambda argument: None,
    count: Callable[[Argument], Hashable] | None = None,
    observe: Callable[[int], object] = lambda size: None,
    turns: int = 0,
    patience: float | None = PATIENCE,
    divides: tuple[type[Exception], ...] = (),
    lone_after: int = LONE_QUERIES,
) -> Callable[[Argument], Awaitable[Result]]:
    """Makes a function for one caller from a function that serves many.

    `serve` takes the arguments of at most `max_batch` callers with the same key. It returns one
    result for each argument, in the same order. For each key only one call of `serve` runs at a
    time, or two if one has run for `patience` seconds; with None it is never two. An error reaches
    every caller of its call and no other. A cancelled caller does not affect the others; if it was
    still waiting, the next batch leaves it out. After `lone_after` calls of `serve`, during which
    no other caller came, the next one runs it in its own task, which may be cancelled. With
    `count`, callers for whom it returns the same count as one. `observe` gets the number of callers
    of each batch. After a query the event loop turns `turns` times, so that more can join the next
    one, if callers wait or several shared it. An error of `divides` means that an argument is
    refused and nothing was done: then each half of the callers is served alone.
    """
    # For each key the callers who wait for a query in flight, unless that is slow.
    queues: dict[Hashable, deque[tuple[Argument, asyncio.Future[Result]]]] = {}
    timers: dict[Hashable, asyncio.TimerHandle] = {}
    # The keys of slow queries. There is one for each key at most.
    slow: set[Hashable] = set()
    tasks: set[asyncio.Task[None]] = set()
    # The requests of the callers, for traces.
    requests: dict[asyncio.Future[Result], tuple[Any, ...]] = {}
    # How many queries in a row began and ended without another call.
    lone = 0

    def begin(queue_key: Hashable, queue: deque[tuple[Argument, asyncio.Future[Result]]]) -> None:
        queues[queue_key] = queue
        # A separate task, so that the cancellation of one caller does not end it. It has an empty
        # context, because the context variables of one caller are none of the others'.
        task = asyncio.get_running_loop().create_task(work(queue_key, queue), context=Context())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def work(
        queue_key: Hashable, queue: deque[tuple[Argument, asyncio.Future[Result]]]
    ) -> None:
        nonlocal lone
        try:
            while queue:
                is_shared = False
                if batch := take(queue):
                    is_shared = len(batch) > 1
                    observe(len(batch))
                    lone += 1
                    watch(queue_key)
                    await settle(batch)
                    if queues.get(queue_key) is not queue:
                        break
                    stop_watching(queue_key)
                # Those who shared a query may come back together.
                if queue or is_shared:
                    for _ in range(turns):
                        await asyncio.sleep(0)
        finally:
            if queues.get(queue_key) is queue:
                del queues[queue_key]
                stop_watching(queue_key)
            else:
                slow.discard(queue_key)
            # Callers are left only when the event loop shuts down.
            for _, future in queue:
                future.cancel()

    def watch(queue_key: Hashable) -> None:
        if patience is not None:
            loop = asyncio.get_running_loop()
            timers[queue_key] = loop.call_later(patience, overtake, queue_key)

    def stop_watching(queue_key: Hashable) -> None:
        if timer := timers.pop(queue_key, None):
            timer.cancel()

    def overtake(queue_key: Hashable) -> None:
        """Gives the callers who wait for a slow query another one, now or when they come."""
        if queue_key in slow:
            watch(queue_key)
            return
        slow.add(queue_key)
        del timers[queue_key]
        queue = queues.pop(queue_key)
        if queue:
            begin(queue_key, queue.copy())
            queue.clear()

    # A function of its own, as an error's traceback leads to the frame of `work`: see below.
    def take(
        queue: deque[tuple[Argument, asyncio.Future[Result]]],
    ) -> list[tuple[Argument, asyncio.Future[Result]]]:
        batch: list[tuple[Argument, asyncio.Future[Result]]] = []
        counted: set[Hashable] = set()
        while queue and len(counted) < max_batch:
            argument, future = queue.popleft()
            if not future.done():
                batch.append((argument, future))
                counted.add(count(argument) if count else len(batch))
        return batch

    async def settle(batch: list[tuple[Argument, asyncio.Future[Result]]]) -> None:
        halves = []
        if telemetry.ON:
            spans = [span for _, future in batch for span in requests.get(future, ())]
            telemetry.served.set(tuple(spans))
        try:
            results = await serve([argument for argument, _ in batch])
            pairs = list(zip(batch, results, strict=True))
        except BaseException as error:
            if len(batch) > 1 and isinstance(error, divides):
                middle = len(batch) // 2
                halves = [batch[:middle], batch[middle:]]
            else:
                fail(batch, error)
            # The futures hold the error, and its traceback holds this frame. This would be a
            # reference cycle, and only the garbage collector would free it.
            batch.clear()
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in pairs:
                if not future.done():
                    future.set_result(result)
        for place, half in enumerate(halves):
            try:
                await settle(half)
            except BaseException as error:
                for other in halves[place + 1 :]:
                    fail(other, error)
                raise

    def fail(batch: list[tuple[Argument, asyncio.Future[Result]]], error: BaseException) -> None:
        for _, future in batch:
            if not future.done():
                if isinstance(error, Exception):
                    future.set_exception(error)
                else:
                    future.cancel()

    async def serve_itself(queue_key: Hashable, argument: Argument) -> Result:
        queue = queues[queue_key] = deque()
        observe(1)
        watch(queue_key)
        try:
            (result,) = await serve([argument])
            return result
        finally:
            if queues.get(queue_key) is not queue:
                slow.discard(queue_key)
            else:
                stop_watching(queue_key)
                del queues[queue_key]
                if queue:
                    begin(queue_key, queue)

    async def call(argument: Argument) -> Result:
        nonlocal lone
        queue_key = key(argument)
        if queues:
            lone = 0
        elif lone >= lone_after:
            return await serve_itself(queue_key, argument)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if telemetry.ON:
            requests[future] = telemetry.served.get()
        if queue_key in queues:
            queues[queue_key].append((argument, future))
        else:
            begin(queue_key, deque([(argument, future)]))
        try:
            return await future
        finally:
            if telemetry.ON:
                del requests[future]
            # The future holds the error, and the error holds this frame: a reference cycle.
            del future

    return call
