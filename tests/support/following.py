"""Clients that follow changes by Server-Sent Events."""

import itertools
import json
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from socket import SHUT_RDWR
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from tests.support.databases import run

KINDS = ("sqlite", "postgresql")


class Event(NamedTuple):
    kind: str
    id: str
    data: Any


def live(database_url: str, word: str = "on") -> str:
    """Runs `python -m service live` on a database, and gives what it prints."""
    command = (sys.executable, "-m", "service", "live", word)
    result = run(*command, DATABASE_URL=database_url)
    assert result.returncode == 0, result.stderr
    return result.stdout


def parse(response: HTTPResponse) -> Iterator[Event]:
    """The events of a stream, and one named "" for each new id without an event."""
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}
        else:
            if "id" in fields:
                yield Event("", fields["id"], None)
            fields = {}


class Follower:
    """A client that follows until its block ends. `rows` is what its events make of a table."""

    def __init__(self, response: HTTPResponse, rows: dict[int, Any] | None = None) -> None:
        self.response = response
        self.rows = {} if rows is None else rows
        self.last_id = ""
        self._events: queue.Queue[Event | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in parse(self.response):
                self._events.put(event)
        except (OSError, HTTPException, ValueError, AttributeError):
            pass
        self._events.put(None)

    def next(self) -> Event | None:
        """The next event; None at the end of the stream."""
        event = self._events.get(timeout=60)
        if event is not None:
            self.last_id = event.id
            self._apply(event)
        return event

    def take(self, number: int) -> list[Event]:
        """This number of events. AssertionError if the stream ends before."""
        events = [self.next() for _ in range(number)]
        assert None not in events
        return [event for event in events if event]

    def until(self, kind: str, row_id: int) -> list[Event]:
        """All events until one of a kind about a row. AssertionError if the stream ends before."""
        events: list[Event] = []
        while True:
            event = self.next()
            assert event is not None, events
            events.append(event)
            if event.kind == kind and event.data.get("id") == row_id:
                return events

    def _apply(self, event: Event) -> None:
        if event.kind == "reset":
            self.rows.clear()
        elif event.kind == "deleted":
            self.rows.pop(event.data["id"], None)
        elif event.kind in ("created", "changed"):
            self.rows[event.data["id"]] = event.data


@contextmanager
def asking(url: str, headers: dict[str, str] | None = None, **query: Any) -> Iterator[HTTPResponse]:
    """The answer to a request to follow, at a URL such as that of a service's notes."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    try:
        path = f"{parts.path}/changes" + (f"?{urlencode(query)}" if query else "")
        connection.request("GET", path, headers=headers or {})
        yield connection.getresponse()
    finally:
        if connection.sock:
            # To close it would wait for the thread that reads.
            with suppress(OSError):
                connection.sock.shutdown(SHUT_RDWR)
        connection.close()


@contextmanager
def following(
    url: str,
    headers: dict[str, str] | None = None,
    rows: dict[int, Any] | None = None,
    **query: Any,
) -> Iterator[Follower]:
    """Follows the resource at a URL."""
    with asking(url, headers, **query) as response:
        assert response.status == 200, response.read()
        yield Follower(response, rows)


def replay(
    url_of: Callable[[int], str], last: str, most: int = sys.maxsize, **query: str
) -> dict[int, Any]:
    """What all events make of a table, until a note with the text `last` is created.

    The client comes back with its id whenever a stream ends, and after `most` events at most. It
    asks at `url_of` the number of streams before. AssertionError for an event that is told twice,
    and for `reset`.
    """
    rows: dict[int, Any] = {}
    told = {"0"}
    place = "0"
    chance = random.Random(7)
    for number in itertools.count():
        headers = {"Last-Event-ID": place}
        left = chance.randint(1, most)
        # Services and databases may be away.
        with (
            suppress(OSError, HTTPException),
            asking(url_of(number), headers, **query) as response,
        ):
            assert response.status in (200, 503)
            follower = Follower(response, rows)
            while response.status == 200 and left and (event := follower.next()):
                assert event.kind in ("", "created", "changed", "deleted")
                assert event.id not in told
                place = event.id
                told.add(place)
                left -= 1
                if event.kind == "created" and event.data["text"] == last:
                    return rows
        time.sleep(0.05)
    raise AssertionError
