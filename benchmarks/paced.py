"""Requests at a steady mean rate, and how long each of them took from the moment it was due.

A client that waits for an answer before it sends the next request doesn't see how long others would
have waited meanwhile ("coordinated omission"). Here requests are due at random moments, as those of
many clients who don't know of each other are, and a request that had to wait for a free connection
was late already when it was sent.
"""

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import cycle
from random import Random

from benchmarks.answers import Exchange, make_exchange, make_notes, to_json

GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """What to ask of which server."""

    port: int
    headers: dict[str, str]
    connections: int
    rate: float
    seconds: float
    notes: int
    ids: int
    kinds: tuple[str, ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Connection:
    """A connection, and the request that is under way on it."""

    socket: socket.socket
    exchange: Exchange
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)


def encode(exchange: Exchange, headers: dict[str, str]) -> bytes:
    lines = [f"{exchange.method} {exchange.path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if exchange.body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(exchange.body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + exchange.body


def take_answer(received: bytearray) -> tuple[int, bytes] | None:
    """Returns the status and the body of an answer, None if there is more of it to come."""
    head_ends = received.find(b"\r\n\r\n")
    if head_ends < 0:
        return None
    head = bytes(received[:head_ends]).lower()
    begin = head_ends + 4
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = begin + int(head[at + 17 :].split(b"\r\n", 1)[0])
        return (int(head[9:12]), bytes(received[begin:end])) if len(received) >= end else None
    if not received.endswith(b"0\r\n\r\n"):
        return None
    body, rest = b"", bytes(received[begin:])
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return int(head[9:12]), body


def plan(order: Order) -> list[tuple[float, bytes, Exchange]]:
    """Returns when each request is due, in seconds from the start, and the request."""
    notes = [to_json(note) for note in make_notes(order.notes)]
    random = Random(1)
    due, requests = 0.0, []
    # These are always the same, and may be large.
    fixed = {
        kind: make_exchange(kind, notes, order.ids, random)
        for kind in set(order.kinds) & {"list", "changing", "create"}
    }
    for kind in cycle(order.kinds):
        due += random.expovariate(order.rate)
        if due > order.seconds:
            break
        exchange = fixed.get(kind) or make_exchange(kind, notes, order.ids, random)
        requests.append((due, encode(exchange, order.headers), exchange))
    return requests


def connect(order: Order) -> Connection:
    connected = socket.create_connection(("127.0.0.1", order.port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected, Exchange("", "", b"", b""))


def drive(order: Order) -> tuple[list[float], str]:
    """Sends requests when they are due; returns their latencies in seconds, and what went wrong."""
    connections = [connect(order) for _ in range(order.connections)]
    try:
        return exchange_all(order, connections)
    finally:
        for connection in connections:
            connection.socket.close()


def exchange_all(order: Order, connections: list[Connection]) -> tuple[list[float], str]:
    requests = deque(plan(order))
    free = deque(connections)
    busy: dict[socket.socket, Connection] = {}
    latencies: list[float] = []
    wrong, first_wrong = 0, ""
    growing = "create" in order.kinds
    began = time.perf_counter()
    while requests or busy:
        now = time.perf_counter()
        while requests and free and began + requests[0][0] <= now:
            due, request, exchange = requests.popleft()
            connection = free.popleft()
            connection.due, connection.exchange = began + due, exchange
            connection.received.clear()
            connection.socket.sendall(request)
            busy[connection.socket] = connection
        if now > began + order.seconds + GRACE_SECONDS:
            return latencies, f"{len(requests) + len(busy)} requests have no answer"
        wait = GRACE_SECONDS
        if requests and free:
            wait = max(0.0, began + requests[0][0] - time.perf_counter())
        for readable in select.select(list(busy), [], [], wait)[0]:
            connection = busy[readable]
            chunk = readable.recv(1 << 18)
            connection.received += chunk
            answer = take_answer(connection.received)
            if answer is None:
                if not chunk:
                    return latencies, "the server closed a connection"
                continue
            latencies.append(time.perf_counter() - connection.due)
            status, body = answer
            exchange = connection.exchange
            if status != 200 or not exchange.is_answered_by(body, growing):
                wrong += 1
                first_wrong = first_wrong or f"{exchange.path} {status} {body[:100]!r}"
            free.append(busy.pop(readable))
    return latencies, f"Wrong answers: {wrong}, the first: {first_wrong}" if wrong else ""


def percentile(values: list[float], percent: float) -> float:
    """Returns the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)] if ordered else 0.0


def read(output: bytes) -> tuple[int, float, float, str]:
    """Returns the number of answers, p50 and p99 in seconds, and what went wrong."""
    count, p50, p99, spoiled = json.loads(output)
    return int(count), float(p50), float(p99), str(spoiled)


def main() -> None:
    gc.disable()
    latencies, spoiled = drive(Order(**json.load(sys.stdin)))
    p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
    print(json.dumps([len(latencies), p50, p99, spoiled]))


if __name__ == "__main__":
    main()
