"""A law: however writers and followers take turns, whoever replays the events has the table."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.databases import NewDatabase
from tests.support.following import KINDS
from tests.support.interleaving import FOLLOWERS, WRITERS, WRITES, Step, playing
from tests.support.laws import LAWS
from tests.support.processes import new_process

writers = st.integers(0, WRITERS - 1)
followers = st.integers(0, FOLLOWERS - 1)
rows = st.integers(1, 3)
steps = st.one_of(
    st.tuples(st.sampled_from(["change", "complete", "delete", "put"]), writers, rows),
    st.tuples(st.sampled_from(sorted(WRITES)), writers, rows),
    st.tuples(st.sampled_from(["number", "number", "repeatable", "mark", "undo"]), writers),
    st.tuples(st.just("commit"), writers),
    st.tuples(st.sampled_from(["commit", "commit", "rollback"]), writers),
    st.tuples(st.just("read"), followers),
    st.tuples(st.just("hop"), followers, st.integers(0, 3)),
    st.sampled_from([("sweep",), ("sweep",), ("renew",)]),
)
games = st.lists(steps, min_size=20, max_size=40)

# One takes its number early and changes the row last, while an unrelated one is open.
EARLY: list[Step] = [
    *(("number", 1), ("number", 2)),
    *(("change", 0, 1), ("commit", 0), ("change", 1, 1), ("commit", 1)),
    *(("read", 0), ("commit", 2)),
]
# One was open for so long that its change is deleted as soon as it ends.
OLD: list[Step] = [
    *(("change", 1, 1), ("insert", 0, 1), ("commit", 0), ("read", 0)),
    *(("commit", 1), ("sweep",)),
]
# One empties the table, and doesn't see the change before.
UNSEEN: list[Step] = [
    *(("read", 0), ("repeatable", 1), ("number", 1), ("change", 0, 1), ("commit", 0)),
    *(("empty", 1, 1), ("commit", 1), ("insert", 0, 1), ("commit", 0)),
]
# One comes back with an id from before a change that is told in parts.
LARGE: list[Step] = [("read", 0), ("enlarge_all", 1, 1), ("commit", 1), ("hop", 0, 3)]


async def check(most: int) -> None:
    """Tries the law with games of Hypothesis, which has a thread of its own."""
    loop = asyncio.get_running_loop()
    async with playing() as game:
        # This process has not imported conftest.py.
        @settings(LAWS, max_examples=most, report_multiple_bugs=False)
        @given(games)
        @example(EARLY)
        @example(OLD)
        @example(UNSEEN)
        @example(LARGE)
        def law(steps: list[Step]) -> None:
            asyncio.run_coroutine_threadsafe(game.play(steps), loop).result(300)

        await asyncio.to_thread(law)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_replays_the_events_has_the_table(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing is missed and nothing told twice, in whatever order writers and followers act.

    Writers have open transactions and take back a part of them or all; followers, with a filter or
    without, go on at another process after any event; changes are deleted meanwhile.
    """
    monkeypatch.setenv("DATABASE_URL", new_database(kind))
    with new_process() as run:
        run(check, 60)
