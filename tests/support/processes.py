"""The service's own functions, called in a process that was started for one database."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from service.database import connected

Run = Callable[..., Any]


@contextmanager
def new_process() -> Iterator[Run]:
    """Gives what an asynchronous function of a module gives, with the database open meanwhile.

    The process reads the environment as it is now, so DATABASE_URL can be set before.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
        yield lambda *call: process.submit(_run, *call).result(300)


def _run(action: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    async def run() -> Any:
        async with connected():
            return await action(*arguments)

    return asyncio.run(run())
