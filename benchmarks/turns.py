"""A turn: one server under one load, on a table that is as every other server finds it."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
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
from benchmarks.followers import following
from benchmarks.load import Shot, Workload, shoot
from benchmarks.options import REPEATED, count_turns
from benchmarks.tables import OWN, Database, add_user


def progress(text: str) -> None:
    """Shows what is going on, on a line that the next one overwrites."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def say(text: str) -> None:
    """Prints a line of progress for good."""
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


@dataclass
class Bench:
    """What a run works with: the tables, and what the servers are told."""

    databases: dict[str, Database]
    folder: Path
    options: argparse.Namespace
    token: str
    repeats: int
    """How many turns may be done again."""

    def may_repeat(self) -> bool:
        """Counts a turn that is done again, if one may be."""
        self.repeats -= 1
        return self.repeats >= 0

    def database_of(self, contender: Contender) -> Database:
        return self.databases[contender.database]

    async def fill(self, count: int) -> None:
        for database in self.databases.values():
            await database.fill(count)


@asynccontextmanager
async def set_up(options: argparse.Namespace, contenders: list[Contender]) -> AsyncIterator[Bench]:
    """Starts the databases of the contenders where there are none. SIGTERM ends the task."""
    this = asyncio.current_task()
    assert this is not None
    # Servers and databases would stay behind otherwise, as they have sessions of their own.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    progress("Starting the databases")
    processes.pin(processes.SERVERS)
    with tempfile.TemporaryDirectory(prefix="notes-benchmark-") as temporary:
        async with AsyncExitStack() as stack:
            databases = {
                name: await stack.enter_async_context(OWN[name]())
                for name in dict.fromkeys(contender.database for contender in contenders)
            }
            token = ""
            if any(contender.access == "token" for contender in contenders):
                token = await add_user(databases["postgresql"].env)
            turns = count_turns(options, contenders)
            yield Bench(databases, Path(temporary), options, token, round(REPEATED * turns))


@asynccontextmanager
async def running(bench: Bench, contenders: list[Contender]) -> AsyncIterator[list[Server]]:
    """Starts every contender, and stops them all."""
    servers: list[Server] = []
    try:
        processes.pin(processes.SERVERS)
        for contender in contenders:
            progress(f"Starting {contender.title}")
            log = bench.folder / f"{contender.name}.log"
            env = bench.database_of(contender).env
            servers.append(await start(contender, env, bench.token, log))
        processes.pin(processes.LOAD)
        yield servers
    finally:
        for server in servers:
            await stop(server)


async def reset(bench: Bench, servers: list[Server], count: int, new: Note = NEW_NOTE) -> None:
    """Fills the tables, and the constant contender with what is in them and will be new."""
    await bench.fill(count)
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
        await bench.database_of(server.contender).remove_after(workload.notes)
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
    database = bench.database_of(server.contender)
    if workload.writes or workload.changes:
        await database.fill(count)
    meanwhile: AbstractAsyncContextManager[None] = nullcontext()
    if workload.changes:
        meanwhile = database.changing(count)
    elif workload.writes and "list" in workload.kinds:
        meanwhile = database.kept_at(count)
    async with meanwhile:
        yield
        await server.quiet()


async def turn(
    bench: Bench, server: Server, workload: Workload, connections: int, seconds: int
) -> Shot:
    """Loads one contender once."""
    notes = write_notes(bench, workload.notes)
    database = bench.database_of(server.contender)
    async with ready(bench, server, workload), following(server) as told:
        pids = [one.process for one in bench.databases.values() if one.process is not None]
        usage = processes.usage(*pids)
        database_before, before = database.cpu_seconds(), server.cpu_seconds()
        requests, found, spoiled = await shoot(workload, server, connections, seconds, notes)
        # Who follows has more to read, which belongs to the cost.
        trouble = await told(requests if workload.kinds == ("create",) else 0)
        server_cpu, database_after = server.cpu_seconds() - before, database.cpu_seconds()
        others = processes.usage(*pids).others_since(usage)
    database_cpu = None
    if database_before is not None and database_after is not None:
        database_cpu = database_after - database_before
    return Shot(requests, found, server_cpu, database_cpu, others, spoiled or trouble)
