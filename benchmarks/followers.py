"""Clients that follow the notes of a contender, in a process of their own."""

import asyncio
import math
import selectors
import socket
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from benchmarks.contenders import ROOT, Server

REQUEST = b"GET /notes/changes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
GRACE_SECONDS = 10.0
READ_BYTES = 131_072
START = b"\nevent: start\n"
CREATED = b"\nevent: created\n"
# An event is shorter, so the end of what was read has the last id.
END_BYTES = 1000

Told = Callable[[int], Awaitable[str]]


@asynccontextmanager
async def following(server: Server) -> AsyncIterator[Told]:
    """Lets a contender's followers read until the block ends.

    Gives a function that waits until all of them were told of so many new notes. It returns what
    went wrong, or nothing.
    """

    async def nobody(created: int) -> str:
        return ""

    if not server.contender.followers:
        yield nobody
        return
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "benchmarks.followers"],
        *[str(server.port), str(server.contender.followers)],
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def told(created: int) -> str:
        output, _ = await process.communicate(f"{created}\n".encode())
        return output.decode().strip() if process.returncode == 0 else "the followers failed"

    try:
        if await process.stdout.readline() != b"ready\n":
            raise SystemExit(f"{server.contender.title}: nobody can follow the notes")
        yield told
    finally:
        process.stdin.close()
        await process.wait()


class Followers:
    """Clients at a port, which have read the first event. ConnectionError if one loses it."""

    def __init__(self, port: int, count: int) -> None:
        self.clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self._ends = dict.fromkeys(self.clients, b"")
        # The new notes that the first client was told of. To count all would cost much CPU.
        self.created = 0
        for client in self.clients:
            client.sendall(REQUEST)
            while START not in self._ends[client]:
                self.read(client)

    def read(self, client: socket.socket) -> None:
        """Reads what is there, or waits for it."""
        received = client.recv(READ_BYTES)
        if not received:
            raise ConnectionError("a stream has ended")
        before = self._ends[client]
        if client is self.clients[0]:
            # What was before may have the first part of a mark.
            self.created += (before[1 - len(CREATED) :] + received).count(CREATED)
        self._ends[client] = received[-END_BYTES:]
        if len(received) < END_BYTES:
            self._ends[client] = (before + received)[-END_BYTES:]

    def are_together(self) -> bool:
        """Whether all were told the same last."""
        ids = {end.rpartition(b"\nid: ")[2].split(b"\n")[0] for end in self._ends.values()}
        return len(ids) == 1


def main() -> None:
    """Reads until a line tells how many new notes there are, and then until all were told."""
    port, count = map(int, sys.argv[1:])
    followers = Followers(port, count)
    print("ready", flush=True)
    created: int | None = None
    ends = math.inf
    with selectors.DefaultSelector() as waiting:
        waiting.register(sys.stdin, selectors.EVENT_READ)
        for client in followers.clients:
            waiting.register(client, selectors.EVENT_READ, client)
        while created is None or followers.created < created or not followers.are_together():
            for key, _ in waiting.select(min(1.0, max(0.0, ends - time.monotonic()))):
                if key.data is not None:
                    followers.read(key.data)
                    continue
                waiting.unregister(sys.stdin)
                line = sys.stdin.readline()
                if not line:
                    return
                created, ends = int(line), time.monotonic() + GRACE_SECONDS
            if time.monotonic() > ends:
                print(f"followers were told of {followers.created} new notes out of {created}")
                return


if __name__ == "__main__":
    main()
