"""A turn: one server under one load, on a table that is as every other server finds it."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.answers import (
    NEW_NOTE,
    SPECIAL_NOTE,
    Note,
    find_difference,
    make_notes,
    set_constants,
    to_json,
)
from benchmarks.contenders import Contender, Server, start, stop
from benchmarks.load import Shot, Workload, shoot
from benchmarks.processes import cpu_seconds, postmaster
from benchmarks.tables import (
    Connection,
    add_user,
    fill,
    kept_at,
    own_database,
    postgres,
    remove_after,
)


def progress(text: str) -> None:
    """Shows what is going on, on a line that the next one overwrites."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def say(text: str) -> None:
    """Prints a line of progress for good."""
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


@dataclass
class Bench:
    """What a run works with: the table, and what the servers are told."""

    connection: Connection
    env: dict[str, str]
    folder: Path
    options: argparse.Namespace
    token: str
    postmaster: int | None

    def postgres_cpu(self) -> float | None:
        return None if self.postmaster is None else cpu_seconds(self.postmaster)


@asynccontextmanager
async def set_up(options: argparse.Namespace) -> AsyncIterator[Bench]:
    """Starts PostgreSQL where there is none, and makes the database. SIGTERM ends the task."""
    this = asyncio.current_task()
    assert this is not None
    # Servers and PostgreSQL would stay behind otherwise, as they have sessions of their own.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    progress("Starting PostgreSQL")
    with postgres() as url, tempfile.TemporaryDirectory(prefix="notes-benchmark-") as temporary:
        async with own_database(url) as (connection, env):
            token = await add_user(env)
            backend = postmaster(connection.get_server_pid())
            yield Bench(connection, env, Path(temporary), options, token, backend)


@asynccontextmanager
async def running(bench: Bench, contenders: list[Contender]) -> AsyncIterator[list[Server]]:
    """Starts every contender, and stops them all."""
    servers: list[Server] = []
    try:
        for contender in contenders:
            progress(f"Starting {contender.title}")
            log = bench.folder / f"{contender.name}.log"
            servers.append(await start(contender, bench.env, bench.token, log))
        yield servers
    finally:
        for server in servers:
            await stop(server)


async def reset(bench: Bench, servers: list[Server], count: int, new: Note = NEW_NOTE) -> None:
    """Fills the table, and the constant contender with what is in the table and will be new."""
    await fill(bench.connection, count)
    for server in servers:
        if server.contender.name == "constant":
            set_constants(server.port, count, new)


async def check(bench: Bench, servers: list[Server], workload: Workload) -> dict[str, str]:
    """Asks every contender the same of the same table; returns who answers something else."""
    await reset(bench, servers, workload.notes, SPECIAL_NOTE)
    wrong = {}
    for server in servers:
        ids = server.ids(workload.notes)
        if difference := find_difference(
            server.port, server.headers, workload.notes, ids, workload.kinds
        ):
            wrong[server.contender.name] = difference
        await remove_after(bench.connection, workload.notes)
    return wrong


def write_notes(bench: Bench, count: int) -> Path:
    """Writes the table's notes to a file, each as JSON on a line, for wrk to compare with."""
    path = bench.folder / f"notes-{count}"
    if not path.exists():
        path.write_bytes(b"".join(to_json(note) + b"\n" for note in make_notes(count)))
    return path


@asynccontextmanager
async def ready(bench: Bench, server: Server, workload: Workload) -> AsyncIterator[None]:
    """Gives each contender as many notes in the table as every other one finds.

    Waits behind it until the server is done.
    """
    count = workload.notes
    if workload.writes:
        await fill(bench.connection, count)
    lists = "list" in workload.kinds
    async with kept_at(bench.connection, count) if workload.writes and lists else nullcontext():
        yield
        await server.quiet()


async def turn(
    bench: Bench, server: Server, workload: Workload, connections: int, seconds: int
) -> Shot:
    """Loads one contender once."""
    notes = write_notes(bench, workload.notes)
    async with ready(bench, server, workload):
        postgres_before, before = bench.postgres_cpu(), server.cpu_seconds()
        requests, found, spoiled = await shoot(workload, server, connections, seconds, notes)
        server_cpu, postgres_after = server.cpu_seconds() - before, bench.postgres_cpu()
    if postgres_before is None or postgres_after is None:
        return Shot(requests, found, server_cpu, None, spoiled)
    return Shot(requests, found, server_cpu, postgres_after - postgres_before, spoiled)
