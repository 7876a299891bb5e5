"""Runs long work in slices, so that it doesn't block the event loop.

All work of this kind takes turns: one slice runs, then the event loop turns. If each of many
requests ran a slice in each turn, all others would wait for all of them.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SLICE_SECONDS = 0.003
# Work that takes no longer doesn't wait for work that does.
SHORT_SECONDS = 0.0005

_short = asyncio.Lock()
# Its holder runs to the end, so that few have half of their results.
_long = asyncio.Lock()
# The seconds of short work since the last turn.
_spent = 0.0


async def in_slices(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function's results for the items.

    Blocks the event loop for at most SLICE_SECONDS and one call at a time, and short work as long
    again, however many callers there are.
    """
    global _spent
    results: list[Result] = []
    rest = iter(items)
    async with _short:
        began = time.perf_counter()
        is_done = _run(function, rest, results, SHORT_SECONDS)
        _spent += time.perf_counter() - began
        if _spent >= SLICE_SECONDS:
            _spent = 0.0
            await asyncio.sleep(0)
    if not is_done:
        async with _long:
            while not _run(function, rest, results, SLICE_SECONDS):  # noqa: ASYNC110
                await asyncio.sleep(0)
    return results


def _run(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    results: list[Result],
    seconds: float,
) -> bool:
    """Adds results for some seconds. Whether that was all."""
    end = time.perf_counter() + seconds
    for item in items:
        results.append(function(item))
        if time.perf_counter() >= end:
            return False
    return True
