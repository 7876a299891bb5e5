"""The law of coalescing, under thousands of interleavings.

An answer never misses a write that was acknowledged before its request began. A caller never joins
a query that was sent before it asked.
"""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.database.coalescing import coalesce

Result = TypeVar("Result")
MOST = 3
Coalesce = Callable[..., Callable[[Any], Awaitable[Any]]]


def joining(
    serve: Callable[[list[Any]], Awaitable[Sequence[Any]]],
    max_batch: int,
    key: Callable[[Any], Hashable] = lambda argument: None,
) -> Callable[[Any], Awaitable[Any]]:
    """The broken way: a caller joins any query in flight."""
    flights: dict[Hashable, asyncio.Task[Sequence[Any]]] = {}

    async def call(argument: Any) -> Any:
        name = key(argument)
        if name not in flights:
            flights[name] = asyncio.ensure_future(serve([argument]))
            flights[name].add_done_callback(lambda _: flights.pop(name))
        return (await asyncio.shield(flights[name]))[0]

    return call


class Lost(Exception):
    """The database's failure in these tests."""


@dataclass(eq=False)
class Query:
    """A query in flight: its callers, the state that it saw when it was sent, and its end."""

    arguments: list[Any]
    seen: list[str]
    end: asyncio.Future[None]


@dataclass(eq=False)
class Caller:
    """A caller: its question, and the writes and queries from before it asked."""

    argument: Any
    acknowledged: list[str]
    sent: int
    task: asyncio.Task[Any]
    cancelled: bool = False


@dataclass
class World:
    """A database that a test drives: nothing in flight ends before the test says so."""

    coalesce: Coalesce  # of the reads
    at_once: int = 1  # the most queries for a page
    stored: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    flying: list[Query] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.read = self.coalesce(self.serve_reads, max_batch=MOST, key=lambda page: page)
        coalesce_writes = self.coalesce if isinstance(self.coalesce, partial) else coalesce
        self.write = coalesce_writes(self.serve_writes, max_batch=MOST)

    async def fly(self, arguments: list[Any]) -> Query:
        assert 1 <= len(arguments) <= MOST
        query = Query(arguments, list(self.stored), asyncio.get_running_loop().create_future())
        self.flying.append(query)
        self.queries.append(query)
        try:
            await query.end
        finally:
            if query in self.flying:
                # Its caller was alone, and was cancelled.
                self.flying.remove(query)
        return query

    async def serve_reads(self, pages: list[str]) -> list[list[str]]:
        assert len(set(pages)) == 1
        flying = sum(query.arguments[0] == pages[0] for query in self.flying)
        assert flying < self.at_once
        query = await self.fly(pages)
        return [query.seen] * len(pages)

    async def serve_writes(self, texts: list[str]) -> list[tuple[int, str]]:
        await self.fly(texts)
        first = len(self.stored)
        self.stored += texts
        return [(first + place, text) for place, text in enumerate(texts)]

    def ask(self, call: Callable[[Any], Awaitable[Any]], argument: Any) -> None:
        task = asyncio.ensure_future(call(argument))
        self.callers.append(Caller(argument, list(self.acknowledged), len(self.queries), task))
        if call is self.write:
            task.add_done_callback(
                lambda done: (
                    self.acknowledged.append(argument)
                    if not done.cancelled() and not done.exception()
                    else None
                )
            )

    def end(self, place: int, error: Exception | None) -> None:
        if self.flying:
            query = self.flying.pop(place % len(self.flying))
            if error and not query.end.done():
                query.end.set_exception(error)
            elif not query.end.done():
                query.end.set_result(None)

    def check_law(self, caller: Caller) -> None:
        """The law as a client sees it: the history of questions and answers."""
        if caller.argument.startswith("page") and not caller.task.exception():
            missed = set(caller.acknowledged) - set(caller.task.result())
            assert not missed, "an answer missed a write that was acknowledged before"

    def check(self, caller: Caller) -> None:
        """Checks a caller's answer when all is over."""
        if caller.task.cancelled():
            assert caller.cancelled
            return
        self.check_law(caller)
        served = [query for query in self.queries if caller.argument in query.arguments]
        later = [query for query in served if self.queries.index(query) >= caller.sent]
        assert later, "joined a query that was sent before it asked"
        if isinstance(error := caller.task.exception(), Lost):
            assert any(query.end.exception() is error for query in later)
        elif caller.argument.startswith("note"):
            number, text = caller.task.result()
            assert text == caller.argument == self.stored[number]


async def ticks(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


steps = st.lists(
    st.tuples(st.just("read"), st.integers(0, 1))
    | st.tuples(st.just("write"), st.just(0))
    | st.tuples(st.sampled_from(["end", "end", "fail", "cancel"]), st.integers(0, 9))
    | st.tuples(st.just("tick"), st.integers(1, 8))
    | st.tuples(st.just("late"), st.just(0)),
    max_size=40,
)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when a test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(main)


def be_late() -> None:
    """What is in flight is slow from now on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.now += 1


async def play(coalesce: Coalesce, script: list[tuple[str, int]], at_once: int = 1) -> World:
    """Plays a script of arrivals, completions, failures and cancellations to its end."""
    world = World(coalesce, at_once)
    for number, (step, value) in enumerate(script):
        match step:
            case "read":
                world.ask(world.read, f"page {value}")
            case "write":
                world.ask(world.write, f"note {number}")
            case "tick":
                await ticks(value)
            case "late":
                be_late()
            case "cancel" if world.callers:
                caller = world.callers[value % len(world.callers)]
                caller.cancelled |= caller.task.cancel()
            case "end" | "fail":
                world.end(value, Lost(number) if step == "fail" else None)
    for _ in range(3 * len(script) + 3):
        await ticks(8)
        world.end(0, None)
    return world


@pytest.mark.parametrize(
    ("settle", "turns", "patience", "lone_after"),
    [
        (0, 0, None, 99),
        (8, 0, None, 99),
        (0, 0, 0.5, 99),
        (8, 3, 0.5, 99),
        (0, 0, None, 0),
        (8, 0, None, 1),
        (8, 3, 0.5, 0),
    ],
)
@settings(max_examples=200)
@given(script=steps)
def test_every_interleaving_keeps_the_law(
    settle: int,
    turns: int,
    patience: float | None,
    lone_after: int,
    script: list[tuple[str, int]],
) -> None:
    """Each caller gets the right answer in any order of arrivals, ends and cancellations."""
    if settle:
        script = [step for one in script for step in (one, ("tick", settle))]
    reads = partial(coalesce, turns=turns, patience=patience, lone_after=lone_after)
    world = run(play(reads, script, at_once=1 if patience is None else 2))
    assert all(caller.task.done() for caller in world.callers)
    for caller in world.callers:
        world.check(caller)


def test_the_check_catches_a_broken_variant() -> None:
    """A variant that joins queries in flight is found out by the same check."""

    # The first script that finds it out is enough.
    @settings(max_examples=1000, phases=[Phase.generate])
    @given(script=steps)
    def property_of_the_variant(script: list[tuple[str, int]]) -> None:
        calm = [step for step in script if step[0] not in ("cancel", "fail")]
        script = [step for one in calm for step in (one, ("tick", 8))]
        world = run(play(joining, script))
        for caller in world.callers:
            world.check_law(caller)

    with pytest.raises(AssertionError, match="missed a write"):
        property_of_the_variant()


def test_nothing_waits_when_there_is_nothing_to_share() -> None:
    """A lone caller's query is sent at once, and each key has a query of its own."""

    async def main() -> None:
        world = World(coalesce)
        world.ask(world.read, "page 0")
        world.ask(world.read, "page 1")
        world.ask(world.write, "note")
        await ticks(3)
        assert [query.arguments for query in world.flying] == [["page 0"], ["page 1"], ["note"]]
        for _ in range(3):
            world.end(0, None)
        await asyncio.gather(*(caller.task for caller in world.callers))

    run(main())


def test_a_caller_who_is_alone_needs_no_other_task() -> None:
    """After a while without others, queries run in their callers' tasks, until one has to wait."""
    owners: list[object] = []

    async def serve(texts: list[str]) -> list[str]:
        owners.append(asyncio.current_task())
        await asyncio.sleep(0)
        return texts

    async def main() -> None:
        call = coalesce(serve, max_batch=8, lone_after=3)
        for text in "abcde":
            assert await call(text) == text
        alone = asyncio.current_task()
        assert [owner is alone for owner in owners] == [False] * 3 + [True] * 2
        for texts in ("fg", "hij"):
            assert await asyncio.gather(*map(call, texts)) == list(texts)
            assert await call("k") == "k"
        assert alone not in owners[5:]

    run(main())


@pytest.mark.parametrize("error", [Lost("gone"), None], ids=["failed", "cancelled"])
def test_who_waits_for_one_who_was_alone_is_served(error: Exception | None) -> None:
    """A query in its caller's task ends with the caller, and the next one serves who waits."""

    async def main() -> None:
        world = World(partial(coalesce, lone_after=0))
        for text in ("alone", "waiting", "other"):
            world.ask(world.write, text)
            await ticks(3)
        alone = world.callers[0].task
        if error is None:
            alone.cancel()
        else:
            world.end(0, error)
        await ticks(3)
        assert alone.cancelled() if error is None else alone.exception() is error
        assert [query.arguments for query in world.flying] == [["waiting", "other"]]
        world.end(0, None)
        await ticks(3)
        assert world.callers[2].task.result() == (1, "other")

    run(main())


@pytest.mark.parametrize("lone_after", [0, 99])
def test_callers_share_the_next_query(lone_after: int) -> None:
    """Callers that come while a query is in flight share the next ones."""

    async def main() -> None:
        world = World(partial(coalesce, lone_after=lone_after))
        for number in range(6):
            world.ask(world.write, f"note {number}")
            await ticks(3)
        for _ in range(3):
            world.end(0, None)
            await ticks(3)
        assert [len(query.arguments) for query in world.queries] == [1, MOST, 2]
        assert world.stored == [f"note {number}" for number in range(6)]
        assert all(caller.task.done() for caller in world.callers)

    run(main())


async def serve_pages(sizes: list[int], pages: list[str]) -> list[str]:
    """Takes some turns, and notes how many callers there were."""
    sizes.append(len(pages))
    await ticks(8)
    return pages


def test_served_callers_join_those_who_wait() -> None:
    """Callers that ask again as soon as they are served share a query with those who wait."""
    sizes: list[int] = []

    async def main() -> None:
        read = coalesce(partial(serve_pages, sizes), max_batch=100, turns=3)

        async def keep_reading() -> None:
            for _ in range(4):
                await read("page")

        first = asyncio.create_task(keep_reading())
        await ticks(4)
        await asyncio.gather(first, *(keep_reading() for _ in range(5)))

    run(main())
    assert sizes == [1, 6, 6, 6, 5]


def test_callers_who_were_served_together_come_back_together() -> None:
    """Callers who shared a query and ask again soon, one after another, share the next one."""
    sizes: list[int] = []

    async def main() -> None:
        read = coalesce(partial(serve_pages, sizes), max_batch=100, turns=6)

        async def keep_reading(pause: int) -> None:
            for _ in range(3):
                await read("page")
                await ticks(pause)

        await asyncio.gather(*(keep_reading(pause) for pause in range(5)))

    run(main())
    assert sizes == [5, 5, 5]


@pytest.mark.parametrize("lone_after", [0, 99])
def test_a_slow_query_keeps_nobody_waiting(lone_after: int) -> None:
    """Callers who wait for a slow query, or come later, share another one, and no third."""

    async def main() -> None:
        world = World(partial(coalesce, patience=0.5, lone_after=lone_after), at_once=2)
        for number in range(4):
            world.ask(world.read, "page")
            await ticks(3)
            if number in (1, 2):
                be_late()
                await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [1, 1]
        # The second query is slow, too. When it ends, the others are served, beside the first.
        world.end(1, None)
        await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [1, 2]
        # When the first ends, there is one again.
        world.end(0, None)
        world.ask(world.read, "page")
        await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [2]
        be_late()
        await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [2, 1]
        for _ in range(2):
            world.end(0, None)
        await asyncio.gather(*(caller.task for caller in world.callers))

    run(main())


@pytest.mark.parametrize("lone_after", [0, 99])
def test_the_second_of_two_slow_queries_is_left(lone_after: int) -> None:
    """When the first of two slow queries ends, the callers who wait get another one."""

    async def main() -> None:
        world = World(partial(coalesce, patience=0.5, lone_after=lone_after), at_once=2)
        for _ in range(3):
            world.ask(world.read, "page")
            await ticks(3)
            be_late()
            await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [1, 1]
        world.end(0, None)
        be_late()
        await ticks(3)
        assert [len(query.arguments) for query in world.flying] == [1, 1]
        assert [caller.task.done() for caller in world.callers] == [True, False, False]
        for _ in range(2):
            world.end(0, None)
        await asyncio.gather(*(caller.task for caller in world.callers))

    run(main())


def test_a_failure_is_its_own_callers_alone() -> None:
    """A failed query fails its own callers and nobody after them."""

    async def main() -> None:
        world = World(coalesce)
        world.ask(world.write, "one")
        await ticks(3)
        world.ask(world.write, "two")
        world.end(0, Lost("gone"))
        await ticks(5)
        world.end(0, None)
        await ticks(5)
        one, two = (caller.task for caller in world.callers)
        assert isinstance(one.exception(), Lost)
        assert two.result() == (0, "two")

    run(main())


def test_a_refused_argument_is_its_own_callers_alone() -> None:
    """Callers who share a query with arguments that are refused are served without these."""
    sizes = []

    async def serve(texts: list[str]) -> list[str]:
        sizes.append(len(texts))
        if "refused" in texts:
            raise ValueError
        if "lost" in texts:
            raise Lost
        return texts

    async def main() -> None:
        call = coalesce(serve, max_batch=8, divides=(ValueError,))
        texts = ["first", *"abcde", "refused", "f"]
        results = await asyncio.gather(*map(call, texts), return_exceptions=True)
        assert [text for text in results if not isinstance(text, str)] == [results[6]]
        assert isinstance(results[6], ValueError)
        assert sizes == [8, 4, 4, 2, 2, 1, 1]
        # After any other error the query may have run.
        texts = ["first", "a", "lost", "b"]
        results = await asyncio.gather(*map(call, texts), return_exceptions=True)
        assert [type(result) for result in results] == [Lost] * 4

    run(main())


def test_context_variables_of_a_caller_reach_no_query() -> None:
    """A query that serves several callers knows none of their context variables."""
    user = ContextVar("user", default="nobody")

    async def serve(arguments: list[None]) -> list[str]:
        await asyncio.sleep(0)
        return [user.get()] * len(arguments)

    async def main() -> None:
        call = coalesce(serve, max_batch=8)

        async def ask(name: str) -> str:
            user.set(name)
            return await call(None)

        assert await asyncio.gather(*map(ask, ["bob", "ann", "zoe"])) == ["nobody"] * 3

    run(main())


@pytest.mark.parametrize("lone_after", [0, 99])
@pytest.mark.parametrize("divides", [(), (Lost,)], ids=["whole", "divided"])
def test_a_failure_holds_no_argument(divides: tuple[type[Exception], ...], lone_after: int) -> None:
    """The arguments of a failed query are freed without a garbage collection."""

    class Argument:
        pass

    async def fail(arguments: list[Argument]) -> list[None]:
        raise Lost("gone")

    async def main() -> None:
        call = coalesce(fail, max_batch=MOST, divides=divides, lone_after=lone_after)
        arguments = [Argument() for _ in range(2 * MOST)]
        references = [weakref.ref(argument) for argument in arguments]
        tasks = [asyncio.ensure_future(call(argument)) for argument in arguments]
        del arguments
        await asyncio.wait(tasks)
        assert all(isinstance(task.exception(), Lost) for task in tasks)
        tasks.clear()
        await ticks(3)
        assert [reference() for reference in references] == [None] * 2 * MOST

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_caller_that_left_is_not_served() -> None:
    """A cancelled write is never sent if it still waits. In flight it is not undone."""

    async def main() -> None:
        world = World(coalesce)
        for text in ("in flight", "waiting", "other"):
            world.ask(world.write, text)
            await ticks(3)
        world.callers[0].task.cancel()
        world.callers[1].task.cancel()
        for _ in range(2):
            await ticks(5)
            world.end(0, None)
        await ticks(5)
        assert world.stored == ["in flight", "other"]
        assert world.callers[2].task.result() == (1, "other")

    run(main())
