"""Measures the service against other frameworks and against its ceilings."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from benchmarks.answers import find_difference, set_constants
from benchmarks.chart import write_chart
from benchmarks.contenders import CONTENDERS, ROOT, Contender, Server, prepare_fastify, start, stop
from benchmarks.large import measure, warm_up
from benchmarks.load import MISSING_WRK, WORKLOADS, Shot, Workload, shoot
from benchmarks.report import print_report, write_json
from benchmarks.results import Cell, Results, rate, spoiled, versions
from benchmarks.tables import Connection, fill, kept_at, own_database, postgres, remove_after

# A quick run has the contenders that the targets name, and fewer runs on one connection.
QUICK_CONTENDERS = ["twin", "service", "fastify", "constant"]
QUICK_ON_ONE_CONNECTION = ["list100", "create"]
SETTLE_SECONDS = 0.5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options, with the defaults of a quick or a full run filled in."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    workloads = [workload.name for workload in WORKLOADS]
    add = parser.add_argument
    add("--quick", action="store_true", help="a rough answer within two minutes")
    add("--rounds", type=int, help="rounds of each workload (5; quick: 2)")
    add("--seconds", type=int, help="seconds that a contender is loaded in a round (3; quick: 1)")
    add("--only", nargs="+", choices=names, metavar="CONTENDER", help=", ".join(names))
    add("--workloads", nargs="*", choices=workloads, metavar="WORKLOAD", help=", ".join(workloads))
    add("--large", type=int, metavar="N", help="notes of the large listing (300000; quick: none)")
    add("--output", type=Path, help="folder for the results (benchmarks; else benchmarks/partial)")
    options = parser.parse_args(arguments)
    partial = options.quick or options.only or options.workloads is not None
    quick = options.quick
    options.output = options.output or ROOT / "benchmarks" / ("partial" if partial else "")
    options.only = options.only or (QUICK_CONTENDERS if quick else names)
    options.rounds = options.rounds or (2 if quick else 5)
    options.seconds = options.seconds or (1 if quick else 3)
    options.large = (0 if quick else 300_000) if options.large is None else options.large
    options.workloads = workloads if options.workloads is None else options.workloads
    return options


def plan(options: argparse.Namespace) -> list[tuple[Workload, int]]:
    """Returns the workloads with their numbers of connections."""
    chosen = [workload for workload in WORKLOADS if workload.name in options.workloads]
    on_one = QUICK_ON_ONE_CONNECTION if options.quick else options.workloads
    return [(workload, 32) for workload in chosen] + [
        (workload, 1) for workload in chosen if workload.name in on_one
    ]


def progress(text: str) -> None:
    """Shows what is going on, on a line that the next one overwrites."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def say(text: str) -> None:
    """Prints a line of progress for good."""
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


@asynccontextmanager
async def running(
    contenders: list[Contender], env: dict[str, str], folder: Path
) -> AsyncIterator[list[Server]]:
    """Starts every contender, and stops them all."""
    servers: list[Server] = []
    try:
        for contender in contenders:
            progress(f"Starting {contender.title}")
            servers.append(await start(contender, env, folder / f"{contender.name}.log"))
        yield servers
    finally:
        for server in servers:
            await stop(server)


async def reset(connection: Connection, servers: list[Server], count: int) -> None:
    """Fills the table, and the constant contender with what is in the table."""
    await fill(connection, count)
    for server in servers:
        if server.contender.name == "constant":
            set_constants(server.port, count)


async def check(
    connection: Connection, servers: list[Server], workload: Workload
) -> dict[str, str]:
    """Asks every contender the same of the same table; returns who answers something else."""
    await reset(connection, servers, workload.notes)
    wrong = {}
    for server in servers:
        if difference := find_difference(server.port, workload.notes, workload.kinds):
            wrong[server.contender.name] = difference
        await remove_after(connection, workload.notes)
    return wrong


async def turn(
    connection: Connection, server: Server, workload: Workload, connections: int, seconds: int
) -> Shot:
    """Loads one contender once, with as many notes in the table as every other one finds."""
    if workload.writes:
        await fill(connection, workload.notes)
    async with kept_at(connection, workload.notes) if workload.name == "mix" else nullcontext():
        shot = await shoot(workload, server.port, connections, seconds)
        await server.quiet()
    return shot


async def measure_cell(
    connection: Connection,
    servers: list[Server],
    cell: Cell,
    options: argparse.Namespace,
) -> None:
    """Loads the contenders in turns, round by round; no contender always goes first."""
    workload, connections = cell.workload, cell.connections
    for name, difference in (await check(connection, servers, workload)).items():
        cell.shots[name] = [Shot(0.0, 0.0, difference)] * options.rounds
    servers = [server for server in servers if not cell.shots[server.contender.name]]
    if not servers:
        return
    await reset(connection, servers, workload.notes)
    if not options.quick:
        progress(f"{workload.title}: warming up")
        for server in servers:
            await turn(connection, server, workload, connections, 1)
    for number in range(options.rounds):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            title = server.contender.title
            progress(f"{workload.title}: round {number + 1} of {options.rounds}, {title}")
            shot = await turn(connection, server, workload, connections, options.seconds)
            cell.shots[server.contender.name].append(shot)


async def measure_workloads(
    connection: Connection, servers: list[Server], results: Results, options: argparse.Namespace
) -> None:
    cells = plan(options)
    if options.quick:
        mix = WORKLOADS[-1]
        await reset(connection, servers, mix.notes)
        for server in servers:
            progress(f"Warming up {server.contender.title}")
            await turn(connection, server, mix, 32, 1)
    for number, (workload, connections) in enumerate(cells, start=1):
        cell = Cell(workload, connections, {server.contender.name: [] for server in servers})
        results.cells.append(cell)
        await measure_cell(connection, servers, cell, options)
        rates = ", ".join(
            f"{server.contender.title} {rate(cell, server.contender.name) or 0:,.0f}/s"
            for server in servers
        )
        clients = f"{connections} connection{'s' if connections > 1 else ''}"
        say(f"[{number}/{len(cells)}] {workload.title}, {clients}: {rates}")


async def measure_large(
    connection: Connection, servers: list[Server], results: Results, options: argparse.Namespace
) -> None:
    """Lists very many notes on fresh servers, in turns."""
    count = options.large
    servers = [server for server in servers if server.contender.name != "constant"]
    await fill(connection, count)
    for server in servers:
        await asyncio.to_thread(warm_up, server)
        results.large[server.contender.name] = []
    await asyncio.sleep(SETTLE_SECONDS)
    resting = {server.contender.name: server.rss() for server in servers}
    for number in range(options.rounds):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            name = server.contender.name
            progress(f"Listing {count:,} notes: round {number + 1}, {server.contender.title}")
            await remove_after(connection, count)
            listing = await asyncio.to_thread(measure, server, count, resting[name])
            results.large[name].append(listing)
    say(f"Listed {count:,} notes {options.rounds} times")


async def run(options: argparse.Namespace) -> Results:
    """Measures everything that the options ask for."""
    contenders = [contender for contender in CONTENDERS if contender.name in options.only]
    results = Results(settings=settings(options))
    if "fastify" in options.only and (reason := await prepare_fastify()):
        contenders = [contender for contender in contenders if contender.name != "fastify"]
        results.left_out["Fastify"] = reason
    results.contenders = contenders
    progress("Starting PostgreSQL")
    with postgres() as url, tempfile.TemporaryDirectory(prefix="notes-benchmark-") as temporary:
        folder = Path(temporary)
        async with own_database(url) as (connection, env):
            results.versions = versions(str(await connection.fetchval("SHOW server_version")))
            await fill(connection, 5)
            # The first start may compile modules, so a full run takes the median of three.
            for _ in range(0 if options.quick else 2):
                async with running(contenders, env, folder) as servers:
                    note_starts(results, servers)
            async with running(contenders, env, folder) as servers:
                note_starts(results, servers)
                await asyncio.sleep(SETTLE_SECONDS)
                results.memory_rest = {one.contender.name: one.rss() for one in servers}
                say(f"{len(servers)} contenders are up")
                await measure_workloads(connection, servers, results, options)
                results.memory_after = {one.contender.name: one.rss() for one in servers}
            if options.large:
                async with running(contenders, env, folder) as servers:
                    await measure_large(connection, servers, results, options)
    return results


def note_starts(results: Results, servers: list[Server]) -> None:
    for server in servers:
        results.start_seconds.setdefault(server.contender.name, []).append(server.start_seconds)


def settings(options: argparse.Namespace) -> dict[str, int]:
    names = ("rounds", "seconds", "large")
    return {name: getattr(options, name) for name in names}


def main() -> None:
    """Runs the benchmark; the exit status is 1 where a round was spoiled."""
    options = parse_arguments()
    if shutil.which("wrk") is None:
        raise SystemExit(MISSING_WRK)
    try:
        results = asyncio.run(run(options))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    print_report(results)
    write_json(results, options.output)
    write_chart(results, options.output)
    if spoiled(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
