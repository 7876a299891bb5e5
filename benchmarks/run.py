"""Measures the service against other frameworks, side by side."""

import argparse
import asyncio
import shutil

from benchmarks import growth
from benchmarks.chart import write_chart
from benchmarks.contenders import CONTENDERS, Server, prepare
from benchmarks.large import measure, warm_up
from benchmarks.load import MISSING_WRK, WORKLOADS, Shot, pace
from benchmarks.options import (
    LARGE_ROUNDS,
    PACED_SECONDS,
    STARTS,
    estimate,
    parse_arguments,
    plan,
    seconds_of,
)
from benchmarks.pages import PUBLISHED, write_pages
from benchmarks.report import write_report
from benchmarks.results import Cell, Results, rate, spoiled, versions
from benchmarks.turns import (
    Bench,
    check,
    progress,
    ready,
    reset,
    running,
    say,
    set_up,
    turn,
)

SETTLE_SECONDS = 0.5


async def measure_cell(bench: Bench, servers: list[Server], cell: Cell) -> None:
    """Loads the contenders in turns, round by round; no contender always goes first."""
    workload, connections, options = cell.workload, cell.connections, bench.options
    for name, difference in (await check(bench, servers, workload)).items():
        cell.shots[name] = [Shot(spoiled=difference)] * options.rounds
    servers = [server for server in servers if not cell.shots[server.contender.name]]
    await reset(bench, servers, workload.notes)
    if connections > 1 and not options.quick:
        progress(f"{workload.title}: warming up")
        for server in servers:
            await turn(bench, server, workload, connections, 1)
    for number in range(options.rounds):
        first = number % len(servers) if servers else 0
        for server in servers[first:] + servers[:first]:
            name, title = server.contender.name, server.contender.title
            progress(f"{workload.title}: round {number + 1} of {options.rounds}, {title}")
            seconds = seconds_of(connections, options)
            cell.shots[name].append(await turn(bench, server, workload, connections, seconds))
    if connections > 1 and not options.quick:
        await measure_latencies(bench, servers, cell)


async def measure_latencies(bench: Bench, servers: list[Server], cell: Cell) -> None:
    """Sends every contender half of the requests a second that it has answered."""
    for server in servers:
        name = server.contender.name
        capacity = rate(cell, name)
        if capacity is None:
            continue
        progress(f"{cell.workload.title}: half the load, {server.contender.title}")
        async with ready(bench, server, cell.workload):
            cell.paced[name] = await pace(
                cell.workload, server, cell.connections, capacity / 2, PACED_SECONDS
            )


async def measure_workloads(bench: Bench, servers: list[Server], results: Results) -> None:
    cells = plan(bench.options, results.contenders)
    if bench.options.quick:
        mix = next(workload for workload in WORKLOADS if workload.name == "mix")
        await reset(bench, servers, mix.notes)
        for server in servers:
            progress(f"Warming up {server.contender.title}")
            await turn(bench, server, mix, 32, 1)
    for number, (workload, connections) in enumerate(cells, start=1):
        here = [server for server in servers if workload.name in server.contender.workloads]
        cell = Cell(workload, connections, {server.contender.name: [] for server in here})
        results.cells.append(cell)
        await measure_cell(bench, here, cell)
        rates = ", ".join(
            f"{server.contender.title} {rate(cell, server.contender.name) or 0:,.0f}/s"
            for server in here
        )
        clients = f"{connections} connection{'s' if connections > 1 else ''}"
        say(f"[{number}/{len(cells)}] {workload.title}, {clients}: {rates}")


async def measure_large(bench: Bench, servers: list[Server], results: Results) -> None:
    """Lists very many notes on fresh servers, in turns."""
    count = bench.options.large
    await bench.fill(count)
    for server in servers:
        await asyncio.to_thread(warm_up, server)
        results.large[server.contender.name] = []
    await asyncio.sleep(SETTLE_SECONDS)
    resting = {server.contender.name: server.rss() for server in servers}
    for number in range(LARGE_ROUNDS):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            name = server.contender.name
            progress(f"Listing {count:,} notes: round {number + 1}, {server.contender.title}")
            await bench.database_of(server.contender).remove_after(count)
            listing = await asyncio.to_thread(measure, server, count, resting[name])
            results.large[name].append(listing)
    say(f"Listed {count:,} notes {LARGE_ROUNDS} times")


async def run(options: argparse.Namespace) -> Results:
    """Measures everything that the options ask for."""
    results = Results(settings=settings(options))
    for contender in CONTENDERS:
        if contender.name not in options.only:
            continue
        if reason := await prepare(contender):
            results.left_out[contender.title] = reason
            say(f"{contender.title} is left out: {reason}")
        else:
            results.contenders.append(contender)
    contenders = results.contenders
    say(f"This takes about {estimate(options, contenders)} min")
    async with set_up(options, contenders) as bench:
        found = {one.server: await one.version() for one in bench.databases.values()}
        results.versions = versions(found)
        await bench.fill(5)
        # The first start may compile modules, so a full run takes the median of three.
        for _ in range(0 if options.quick else STARTS - 1):
            async with running(bench, contenders) as servers:
                note_starts(results, servers)
        async with running(bench, contenders) as servers:
            note_starts(results, servers)
            await asyncio.sleep(SETTLE_SECONDS)
            results.memory_rest = {one.contender.name: one.rss() for one in servers}
            say(f"{len(servers)} contenders are up")
            await measure_workloads(bench, servers, results)
            results.memory_after = {one.contender.name: one.rss() for one in servers}
        listing = [one for one in contenders if one.name not in ("constant", "token")]
        if options.large and listing:
            async with running(bench, listing) as servers:
                await measure_large(bench, servers, results)
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
        if options.processes:
            trouble = growth.write(asyncio.run(growth.run(options)), options.output)
        else:
            results = asyncio.run(run(options))
            write_report(results, options.output)
            write_chart(results, options.output)
            trouble = spoiled(results)
            if options.output == PUBLISHED and not trouble:
                write_pages()
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(130) from None
    if trouble:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
