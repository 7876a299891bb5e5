"""A stream goes on while the recording of changes begins again."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from service.live.feed import Window
from service.live.positions import Position, Snapshot, read_id
from service.live.store import Change
from service.notes.resource import NOTES
from service.resources.changes import Changes, Following, Wanted
from service.web import slots

OLD, NEW = "a" * 32, "b" * 32
BEFORE, AFTER, AGAIN = (Position(Snapshot(end), None, 0, 0) for end in (7, 8, 90))


def test_an_id_names_the_life_of_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read before a new life and told in it has an id of the old one, and then `reset`."""
    changes = Changes(NOTES, lambda request: None)
    feed = changes.feed
    row = {**dict.fromkeys(NOTES.table.c.keys()), "id": 1, "text": "a", "completed": False}
    window = Window(BEFORE, AFTER, [Change(1, 1, 1, None, row)], 1)

    async def join(follower: asyncio.Event) -> Position:
        feed.life, feed.era, feed.now = OLD, 1, BEFORE
        return BEFORE

    async def read(position: Position) -> Window | None:
        # The next life begins meanwhile.
        feed.life, feed.era, feed.now = NEW, 2, AGAIN
        return window

    monkeypatch.setattr(feed, "join", join)
    monkeypatch.setattr(feed, "leave", lambda follower: None)
    monkeypatch.setattr(feed, "next", read)
    parts: list[bytes] = []

    async def send(message: Message) -> None:
        if message.get("body"):
            parts.append(message["body"])
        feed.has_ended = len(parts) == 3

    async def follow() -> None:
        task: Any = asyncio.current_task()
        slots.deadlines[task] = 0.0
        scope = {"type": "http", "method": "GET", "service.task": task}
        wanted = Wanted((None,) * len(NOTES.filters), None)
        try:
            await Following(changes, wanted, None)(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        finally:
            slots.end(task)

    asyncio.run(follow())
    ids = [part.split(b"id: ")[1].split(b"\n")[0].decode() for part in parts]
    assert [read_id(name) for name in ids] == [(OLD, BEFORE), (OLD, AFTER), (NEW, AGAIN)]
