"""Deletes old changes, and says if none are recorded."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from service.database.errors import DatabaseUnavailable
from service.live import store
from service.live.watched import Watched

# Several processes do it, each at another time.
SWEEP_SECONDS = 60

logger = logging.getLogger("service")


@asynccontextmanager
async def sweeping(watched: Sequence[Watched]) -> AsyncIterator[None]:
    """Sweeps all the time, if any table is watched."""
    if not watched:
        yield
        return
    task = asyncio.create_task(_sweep_on(watched))
    try:
        yield
    finally:
        task.cancel()


async def _sweep_on(watched: Sequence[Watched]) -> None:
    for one in watched:
        try:
            await store.look(one, None)
        except store.NotRecorded:
            logger.warning(
                "LIVE is on, and changes of %s are not recorded: python -m service live on",
                one.table,
            )
        except DatabaseUnavailable:
            pass
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
        try:
            await sweep_all()
        except DatabaseUnavailable as error:
            logger.warning("old changes stay: %s", error.reason())


async def sweep_all() -> None:
    """Deletes all old changes, in batches. Others write in between. Raises DatabaseUnavailable."""
    began = time.monotonic()
    while await store.sweep():
        await asyncio.sleep(time.monotonic() - began)
        began = time.monotonic()
