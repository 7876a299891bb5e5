"""The service's own functions, called in a process that was started for one database."""

import asyncio
import multiprocessing
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.support.template import LIBRARIES

Run = Callable[..., Any]


def executor() -> ProcessPoolExecutor:
    """A process that has not imported the service, with the environment as it is now."""
    # The server of the forks has imported the libraries, and nothing of the service.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    return ProcessPoolExecutor(1, context, _set_environment, (dict(os.environ),))


@contextmanager
def new_process() -> Iterator[Run]:
    """Gives what an asynchronous function of a module gives, with the database open meanwhile.

    The process reads the environment as it is now, so DATABASE_URL can be set before.
    """
    with executor() as process:
        yield lambda *call: process.submit(_run, *call).result(300)


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _run(action: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    from service.database import connected

    async def run() -> Any:
        async with connected():
            return await action(*arguments)

    return asyncio.run(run())
