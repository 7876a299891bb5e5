"""Listing very many notes while another client creates some: time, memory, and who waits."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from benchmarks.answers import NEW_NOTE, Note, ask, make_notes
from benchmarks.contenders import Server

CREATES_PER_SECOND = 50
LEAD_SECONDS = 0.5
TIMEOUT = 120.0


@dataclass(frozen=True)
class Listing:
    """One listing; the creates are their latencies in milliseconds."""

    first_byte_ms: float
    total_ms: float
    memory_mb: float
    creates_ms: list[float]
    spoiled: str = ""


def warm_up(server: Server) -> None:
    """Makes a fresh server open its connections before its memory is looked at."""
    body = json.dumps(NEW_NOTE).encode()
    for _ in range(50):
        ask(server.port, "GET", "/notes/1")
        ask(server.port, "POST", "/notes/", body)


def measure(server: Server, count: int, resting: int) -> Listing:
    """Lists the whole table once; the memory is the peak's distance from the resting one."""
    done = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        memory = pool.submit(watch_memory, server, done)
        creates = pool.submit(create, server.port, done)
        time.sleep(LEAD_SECONDS)
        try:
            began, first, ended, body = read_list(server.port)
        except (OSError, HTTPException) as error:
            return Listing(0, 0, 0, [], f"the listing failed: {error!r}")
        finally:
            done.set()
        latencies, spoiled = creates.result()
        during = [1000 * late for due, late in latencies if began <= due <= ended]
        peak = memory.result()
    return Listing(
        first_byte_ms=1000 * (first - began),
        total_ms=1000 * (ended - began),
        memory_mb=(peak - resting) / 2**20,
        creates_ms=during,
        spoiled=spoiled or check(body, make_notes(count)),
    )


def read_list(port: int) -> tuple[float, float, float, bytes]:
    """Returns when the request went out, when the body's first byte and its last came, and it."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.connect()
        began = time.perf_counter()
        connection.request("GET", "/notes/")
        response = connection.getresponse()
        body = bytearray(response.read(1))
        first = time.perf_counter()
        while chunk := response.read1(1 << 18):
            body += chunk
        ended = time.perf_counter()
    finally:
        connection.close()
    if response.status != 200:
        raise HTTPException(f"status {response.status}")
    return began, first, ended, bytes(body)


def create(port: int, done: threading.Event) -> tuple[list[tuple[float, float]], str]:
    """Creates notes at a steady pace until done; returns when each was due and how long it took.

    A create is late from the moment it was due, also when the one before it held it up: else a
    server that stands still for seconds would show in one latency only.
    """
    body = json.dumps(NEW_NOTE).encode()
    headers = {"Content-Type": "application/json"}
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    latencies: list[tuple[float, float]] = []
    due = time.perf_counter()
    try:
        while not done.is_set() or due < time.perf_counter():
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.request("POST", "/notes/", body, headers)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                return latencies, f"a create got {response.status}"
            latencies.append((due, time.perf_counter() - due))
            due += 1 / CREATES_PER_SECOND
    except (OSError, HTTPException) as error:
        return latencies, f"a create failed: {error!r}"
    finally:
        connection.close()
    return latencies, ""


def watch_memory(server: Server, done: threading.Event) -> int:
    """Returns the largest resident memory seen until done."""
    peak = server.rss()
    while not done.wait(0.005):
        peak = max(peak, server.rss())
    return peak


def check(body: bytes, expected: list[Note]) -> str:
    """Returns what is wrong with the listing; it may hold notes that were created meanwhile."""
    try:
        listed = sorted(json.loads(body), key=lambda note: int(note["id"]))
    except ValueError as error:
        return f"the listing is no JSON: {error}"
    return "" if listed[: len(expected)] == expected else "the listing has other notes"
