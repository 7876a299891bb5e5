"""Histories of real concurrent clients against the live service obey the law of coalescing."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.notes import known

CLIENTS = 24
REQUESTS = 40


@dataclass
class History:
    """The times at which notes were acknowledged, and answers with the time of asking."""

    acknowledged: dict[int, tuple[float, dict[str, Any]]]
    listings: list[tuple[float, list[dict[str, Any]]]]
    singles: list[tuple[float, int, dict[str, Any] | None]]


async def act(client: httpx2.AsyncClient, number: int, history: History) -> None:
    """One client: creates, lists and reads notes in a random order."""
    choice = random.Random(number)
    for turn in range(REQUESTS):
        what = choice.random()
        asked = time.monotonic()
        if what < 0.4:
            note = {"text": f"client {number} turn {turn}", "completed": choice.random() < 0.5}
            answer = await client.post("/notes/", json=note)
            assert answer.status_code == 200
            created = answer.json()
            assert known(created) == {"id": created["id"], **note}
            history.acknowledged[created["id"]] = (time.monotonic(), created)
        elif what < 0.7:
            answer = await client.get("/notes/")
            history.listings.append((asked, answer.json()))
        elif history.acknowledged:
            note_id = choice.choice(list(history.acknowledged))
            answer = await client.get(f"/notes/{note_id}")
            history.singles.append((asked, note_id, answer.json()))


async def record(url: str) -> History:
    history = History({}, [], [])
    limits = httpx2.Limits(max_connections=CLIENTS)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        await asyncio.gather(*(act(client, number, history) for number in range(CLIENTS)))
    return history


def test_histories_of_concurrent_clients(service: httpx2.Client) -> None:
    """No answer misses a note that was acknowledged before the request."""
    history = asyncio.run(record(str(service.base_url)))
    assert len(history.acknowledged) > CLIENTS * REQUESTS / 4
    texts = [note["text"] for _, note in history.acknowledged.values()]
    assert len(set(texts)) == len(texts)
    for asked, listed in history.listings:
        assert [note["id"] for note in listed] == sorted({note["id"] for note in listed})
        notes = {note["id"]: note for note in listed}
        for note_id, (acknowledged, note) in history.acknowledged.items():
            if acknowledged < asked or note_id in notes:
                assert notes[note_id] == note
    for _, note_id, answer in history.singles:
        assert answer == history.acknowledged[note_id][1]
    listed = service.get("/notes/").json()
    assert {note["id"]: note for note in listed} == {
        note_id: note for note_id, (_, note) in history.acknowledged.items()
    }
