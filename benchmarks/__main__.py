"""Measures the service against other frameworks, side by side."""

import argparse
import asyncio
import shutil
from functools import partial

from benchmarks import growth
from benchmarks.chart import write_chart
from benchmarks.contenders import CONTENDERS, Server, prepare
from benchmarks.large import measure, warm_up
from benchmarks.load import MISSING_WRK, WORKLOADS, Shot, pace, quietly
from benchmarks.options import (
    LARGE_ROUNDS,
    PACED_SECONDS,
    PUBLISHED,
    estimate,
    is_paced,
    is_peer,
    listing,
    parse_arguments,
    plan,
    turn_of,
)
from benchmarks.pages import write_pages
from benchmarks.report import write_report
from benchmarks.results import Cell, Results, rate, spoiled, to_json, versions
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
    workload, connections = cell.workload, cell.connections
    turns = {
        server.contender.name: turn_of(bench.options, workload, connections, server.contender.name)
        for server in servers
    }
    for name, difference in (await check(bench, servers, workload)).items():
        cell.shots[name] = [Shot(spoiled=difference)] * turns[name][0]
    servers = [server for server in servers if not cell.shots[server.contender.name]]
    await reset(bench, servers, workload.notes)
    for number in range(max(rounds for rounds, _ in turns.values())):
        here = [server for server in servers if number < turns[server.contender.name][0]]
        first = number % len(here) if here else 0
        for server in here[first:] + here[:first]:
            name, title = server.contender.name, server.contender.title
            progress(f"{workload.title}: round {number + 1}, {title}")
            take = partial(turn, bench, server, workload, connections, turns[name][1])
            cell.shots[name].append(await quietly(take, bench.may_repeat))
    if is_paced(workload, connections):
        await measure_latencies(bench, servers, cell)


async def measure_latencies(bench: Bench, servers: list[Server], cell: Cell) -> None:
    """Sends all contenders as many requests a second: half of what the slowest can answer."""
    servers = [server for server in servers if is_peer(server.contender)]
    rates = [rate(cell, server.contender.name) or 0 for server in servers]
    slowest = min(filter(None, rates), default=0)
    for server in servers if slowest else []:
        progress(f"{cell.workload.title}: at the same rate, {server.contender.title}")
        async with ready(bench, server, cell.workload):
            cell.paced[server.contender.name] = await pace(
                cell.workload, server, cell.connections, slowest / 2, PACED_SECONDS
            )


async def measure_workloads(bench: Bench, servers: list[Server], results: Results) -> None:
    cells = plan(bench.options, results.contenders)
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
    for name in {server.contender.database for server in servers}:
        await bench.databases[name].fill(count)
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
            listed = await asyncio.to_thread(measure, server, count, resting[name])
            results.large[name].append(listed)
    say(f"Listed {count:,} notes")


async def run(options: argparse.Namespace) -> Results:
    """Measures everything that the options ask for."""
    results = Results(options)
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
        async with running(bench, contenders) as servers:
            note_starts(results, servers)
            await asyncio.sleep(SETTLE_SECONDS)
            results.memory_rest = {one.contender.name: one.rss() for one in servers}
            say(f"{len(servers)} contenders are up")
            await measure_workloads(bench, servers, results)
            results.memory_after = {one.contender.name: one.rss() for one in servers}
        if options.large and listing(contenders):
            async with running(bench, listing(contenders)) as servers:
                note_starts(results, servers)
                await measure_large(bench, servers, results)
    return results


def note_starts(results: Results, servers: list[Server]) -> None:
    for server in servers:
        results.start_seconds.setdefault(server.contender.name, []).append(server.start_seconds)


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
            trouble = spoiled(results)
            found = to_json(results)
            write_report(found, options.output)
            write_chart(found, options.output)
            if options.output == PUBLISHED and not trouble:
                write_pages()
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(130) from None
    if trouble:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
