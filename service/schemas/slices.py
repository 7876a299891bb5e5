"""Runs long work in slices, so that it doesn't block the event loop."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SLICE_SECONDS = 0.003


async def in_slices(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function's results for the items.

    Blocks the event loop for at most SLICE_SECONDS and one call at a time.
    """
    results = []
    began = time.perf_counter()
    for item in items:
        results.append(function(item))
        if time.perf_counter() - began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return results
