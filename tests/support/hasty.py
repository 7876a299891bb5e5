"""An event loop for tests that can't wait for minutes."""

import asyncio
from collections.abc import Callable
from contextvars import Context

HASTE = 300


class HastyLoop(asyncio.SelectorEventLoop):
    """Sleeps and timers take a small part of their time.

    `asyncio.timeout` takes as long as ever.
    """

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_later(delay / HASTE, callback, *args, context=context)
