"""A budget in bytes for the large answers that are under way in this process.

An answer holds its bytes until its client has taken it, those who share a page hold them once.
Beyond MAX_ANSWER_BYTES a large answer waits, before it is read or stored, or is a 503. A small one
never waits.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.settings import MAX_ANSWER_BYTES, REQUEST_TIMEOUT
from service.web.errors import RETRY

# Larger answers count, and are sent in parts. Each part waits until the client has read the
# previous one.
LARGE_BYTES = 65_536
PART_BYTES = 131_072
# Answers over this number of bytes leave an eighth of the budget to the others.
HUGE_BYTES = 1_000_000
# What a value of JSON may take, with the description of what is wrong with it.
VALUE_BYTES = 800

_held = 0
# How many of these are parts of streams that wait for their next page, perhaps for bytes.
_idle = 0
# Those who wait for bytes. The huge ones hold up no others.
_waiting: dict[bool, deque[tuple[int, asyncio.Future["Hold"]]]] = {False: deque(), True: deque()}


class Hold:
    """Bytes of the budget. They are given back when nothing refers to this any more."""

    def __init__(self, size: int) -> None:
        # The client that takes an answer first has its part within these bytes.
        self.has_part = True
        self.size = 0
        self._loop = asyncio.get_running_loop()
        self.settle(size)

    def settle(self, size: int) -> None:
        """Holds this number of bytes instead."""
        before, self.size = self.size, size
        _change(size - before)

    def __del__(self) -> None:
        # A garbage collection may run in any thread.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_change, -self.size)
        else:
            _change(-self.size)


def _change(size: int) -> None:
    global _held
    _held += size
    if size < 0:
        _wake()


def _wake() -> None:
    for queue in _waiting.values():
        while queue and (queue[0][1].done() or _fits(queue[0][0])):
            wanted, future = queue.popleft()
            if not future.done():
                future.set_result(Hold(wanted))


def _fits(size: int) -> bool:
    # One that is larger than the budget goes alone.
    most = MAX_ANSWER_BYTES * 7 // 8 if size > HUGE_BYTES else MAX_ANSWER_BYTES
    return _held == _idle or _held + size <= most


def try_hold(size: int) -> Hold | None:
    """Holds bytes now; None if they are not there."""
    return Hold(size) if _fits(size) else None


async def hold(size: int) -> Hold:
    """Holds bytes as soon as they are there. Raises HTTPException 503 after REQUEST_TIMEOUT."""
    queue = _waiting[size > HUGE_BYTES]
    if not queue and _fits(size):
        return Hold(size)
    future: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
    queue.append((size, future))
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            return await future
    except TimeoutError:
        raise HTTPException(503, headers=RETRY) from None
    finally:
        # Those after one that gave up may fit.
        if future.cancelled():
            _wake()


def keep(scope: Scope, held: Hold) -> None:
    """Holds bytes until the request has ended."""
    scope.setdefault("service.holds", []).append(held)


async def claim(scope: Scope, size: int) -> None:
    """Lets a request hold the bytes of its answer as soon as they are there. A small one has none.

    Raises HTTPException 503.
    """
    if size > LARGE_BYTES and scope["method"] != "HEAD":
        keep(scope, await hold(size))


async def claim_write(scope: Scope, body: bytes, values: int) -> None:
    """Lets a write hold what its values take in memory, and then its answer. HTTPException 503.

    These are the body, the text and a copy that is folded. A text with a character outside the
    Basic Multilingual Plane has four bytes for each. Or they are many small values, and what is
    wrong with each of them.
    """
    is_narrow = body.isascii() and b"\\u" not in body
    await claim(scope, max(len(body) * (3 if is_narrow else 10), values * VALUE_BYTES))


def settle(scope: Scope, size: int) -> None:
    """Holds this number of bytes for an answer, instead of those for what it was made of."""
    release(scope)
    keep(scope, Hold(size))


def take(scope: Scope, size: int) -> None:
    """Like `claim`, for an answer that is there and so can't wait."""
    if size > LARGE_BYTES and scope["method"] != "HEAD":
        held = try_hold(size)
        if held is None:
            raise HTTPException(503, headers=RETRY)
        keep(scope, held)


def share(scope: Scope, held: Hold) -> None:
    """Keeps what others may hold, too. Those who don't read have a part each, of their own."""
    keep(scope, held)
    if held.has_part:
        held.has_part = False
    else:
        take(scope, PART_BYTES)


def take_part(scope: Scope, first: Hold | None) -> None:
    """Like `take`, for the part of a stream, which lasts longer than its first page."""
    if first is None or not first.has_part:
        take(scope, PART_BYTES)
    else:
        first.has_part = False
        keep(scope, Hold(PART_BYTES))
        first.settle(first.size - PART_BYTES)


@contextmanager
def waiting(scope: Scope) -> Iterator[None]:
    """Meanwhile what a stream holds keeps no answer from going alone.

    Streams would wait for themselves and each other.
    """
    global _idle
    size = sum(held.size for held in scope.get("service.holds", ()))
    _idle += size
    _wake()
    try:
        yield
    finally:
        _idle -= size


def release(scope: Scope) -> None:
    scope.pop("service.holds", None)
