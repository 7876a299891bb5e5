"""The requests under way in this process, and the room for their bodies.

A request takes one of MAX_REQUESTS slots when its body is there. Until then it waits in another
room. If that is full, the body that waits longest gives way to the newest: so clients that send
heads without bodies hold up nobody who sends both.
"""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import Scope

from service import shutdown
from service.descriptors import MAX_CONNECTIONS
from service.settings import MAX_BODY_BYTES, MAX_FOLLOWERS, MAX_REQUESTS, REQUEST_TIMEOUT
from service.web.errors import RETRY

Task = asyncio.Task[None]

# The most bodies that wait. A client's address has at most half of this, and of the bytes.
MAX_WAITING = min(2000, max(2, MAX_CONNECTIONS // 2))
# The most bytes of bodies, both of those that wait and of those that requests under way have.
MAX_BYTES = max(128 * 1024 * 1024, 16 * MAX_BODY_BYTES)

FULL = "Too many requests are under way"

# At shutdown, a follower may take its last event for this time.
LAST_EVENT_SECONDS = 1.0

# The deadline of each request under way, by `time.perf_counter`.
deadlines: dict[Task, float] = {}


class Room:
    """Bodies that wait, the oldest first, and their bytes."""

    def __init__(self) -> None:
        self.waiting: dict[Task, Scope] = {}
        self.size = 0


_all = Room()
_rooms: dict[str, Room] = {}
# Requests that follow changes. They don't take slots.
_followers: set[Task] = set()
# The bytes that each request with a body has received.
_sizes: dict[Task, int] = {}


def is_full() -> bool:
    """Whether there is no slot for one more request."""
    return len(deadlines) - len(_all.waiting) - len(_followers) >= MAX_REQUESTS


def follow(task: Task) -> None:
    """Takes a follower's place instead of a slot. HTTPException 503 if there is none."""
    if len(_followers) >= min(MAX_FOLLOWERS, max(1, MAX_CONNECTIONS // 2)):
        raise HTTPException(503, "Too many clients follow changes", RETRY)
    _followers.add(task)


def renew(task: Task) -> None:
    """Gives a follower its time again, as it may have to wait for the database now."""
    deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT


def _end_followers() -> None:
    """Ends those whose clients don't read. The stop of the process would wait for them."""

    def cancel() -> None:
        for task in _followers:
            task.cancel()

    asyncio.get_running_loop().call_later(LAST_EVENT_SECONDS, cancel)


shutdown.at_stop.append(_end_followers)


def wait(task: Task, scope: Scope) -> None:
    """Lets a request wait for its body. Where there is no room, the oldest one gives way."""
    # While this is true, a timeout is the client's fault: 408, not 503.
    scope["body_expected"] = True
    _sizes[task] = 0
    _all.waiting[task] = scope
    if len(_all.waiting) > MAX_WAITING:
        _dismiss(next(iter(_all.waiting)))
    address = _address(scope)
    if address:
        room = _rooms.get(address)
        if room is None:
            room = _rooms[address] = Room()
        room.waiting[task] = scope
        if len(room.waiting) > MAX_WAITING // 2:
            _dismiss(next(iter(room.waiting)))


def add(task: Task, size: int) -> None:
    """Counts bytes of a body that waits. HTTPException 503 if there is no room for them."""
    if task not in _all.waiting:
        return  # dismissed just now
    _sizes[task] += size
    _all.size += size
    room = _rooms.get(_address(_all.waiting[task]))
    if room is not None:
        room.size += size
        if room.size > MAX_BYTES // 2:
            _make_room(room, MAX_BYTES // 2, task)
    if _all.size > MAX_BYTES:
        _make_room(_all, MAX_BYTES, task)


def begin(task: Task) -> None:
    """Gives a slot to a request whose body is there, and starts its time. HTTPException 503."""
    if task not in _all.waiting:
        return
    del _leave(task)["body_expected"]
    if len(deadlines) - len(_all.waiting) - len(_followers) > MAX_REQUESTS:
        raise HTTPException(503, FULL, RETRY)
    deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT


def end(task: Task) -> None:
    """Ends a request, at any time."""
    del deadlines[task]
    if _followers:
        _followers.discard(task)
    if _sizes and task in _sizes:
        if task in _all.waiting:
            _leave(task)
        _all.size -= _sizes.pop(task)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _make_room(room: Room, most: int, task: Task) -> None:
    while room.size > most:
        other = next((one for one in room.waiting if _sizes[one] and one is not task), None)
        if other is None:
            raise HTTPException(503, FULL, RETRY | {"Connection": "close"})
        _dismiss(other)


def _dismiss(task: Task) -> None:
    """Ends the wait of a body."""
    # The middleware answers with a 503 then, and not with a 408.
    _leave(task)["body_expected"] = False
    _all.size -= _sizes.pop(task)
    task.cancel()


def _leave(task: Task) -> Scope:
    scope = _all.waiting.pop(task)
    address = _address(scope)
    if address:
        room = _rooms[address]
        del room.waiting[task]
        room.size -= _sizes[task]
        if not room.waiting:
            del _rooms[address]
    return scope
