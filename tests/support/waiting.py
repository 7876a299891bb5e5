"""Waiting for conditions, and doing things at the same time."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Result = TypeVar("Result")


def poll(
    condition: Callable[[], bool], otherwise: Callable[[], object] = str, pause: float = 0.05
) -> None:
    """Returns as soon as the condition holds. AssertionError if it doesn't within a minute.

    It looks again after a pause, in seconds.
    """
    for _ in range(int(60 / pause)):
        if condition():
            return
        time.sleep(pause)
    raise AssertionError(otherwise())


def at_once(actions: list[Callable[[], Result]]) -> list[Result]:
    """Carries out all actions at the same time, each in a thread of its own."""
    barrier = Barrier(len(actions))

    def act(action: Callable[[], Result]) -> Result:
        barrier.wait(30)
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, actions))
