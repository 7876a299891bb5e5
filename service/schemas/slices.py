"""Work that would keep the event loop for long, in slices between which others' work goes on."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SLICE_SECONDS = 0.003


async def in_slices(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function's results for the items.

    The event loop is kept for SLICE_SECONDS at a time, and for as long as one call takes.
    """
    results = []
    began = time.perf_counter()
    for item in items:
        results.append(function(item))
        if time.perf_counter() - began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return results
