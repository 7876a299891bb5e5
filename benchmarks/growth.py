"""How this service grows with its processes, which share one database but no queries."""

import argparse
import re
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.answers import ask
from benchmarks.contenders import SERVICE, Server, start, stop
from benchmarks.load import WORKLOADS, Shot, Workload
from benchmarks.report import about, table
from benchmarks.results import machine, today, versions
from benchmarks.tables import Postgresql
from benchmarks.turns import Bench, progress, reset, say, set_up, turn

CONNECTIONS_PER_PROCESS = 32


class Batches(NamedTuple):
    """How many queries callers have shared, and how many callers these were."""

    queries: float = 0
    callers: float = 0


@dataclass(frozen=True)
class Sample:
    """One run of wrk, the queries behind it, and the connections to PostgreSQL after it."""

    shot: Shot
    batches: Batches
    connections: int


@dataclass
class Growth:
    """The samples of each workload by the number of processes, in rounds."""

    versions: dict[str, str]
    samples: dict[str, dict[int, list[Sample]]] = field(default_factory=dict)

    def spoiled(self) -> list[str]:
        """Returns a line for every spoiled round."""
        return [
            f"{title}, {named(count)}, round {number}: {sample.shot.spoiled}"
            for title, by_count in self.samples.items()
            for count, samples in by_count.items()
            for number, sample in enumerate(samples, start=1)
            if sample.shot.spoiled
        ]


def named(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def parse_batches(metrics: str) -> Batches:
    """Adds the batches of all queries in Prometheus's text format."""
    line = r"^coalesced_batch_size_%s\{.*\} (\S+)$"
    found = [re.findall(line % part, metrics, re.MULTILINE) for part in ("count", "sum")]
    return Batches(*(sum(map(float, values)) for values in found))


def read_batches(server: Server) -> Batches:
    return parse_batches(ask(server.port, "GET", "/metrics")[1].decode())


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[list[Server]]:
    """Starts the service once for each number of processes."""
    servers: list[Server] = []
    database = bench.database_of(SERVICE)
    url = database.env["DATABASE_URL"]
    url += "&" if "?" in url else "?"
    try:
        for count in dict.fromkeys(bench.options.processes):
            progress(f"Starting {named(count)}")
            contender = replace(SERVICE, name=f"service-{count}", processes=count)
            env = database.env | {"DATABASE_URL": f"{url}application_name={contender.name}"}
            log = bench.folder / f"{contender.name}.log"
            servers.append(await start(contender, env, bench.token, log))
        yield servers
    finally:
        for server in servers:
            await stop(server)


async def take_sample(bench: Bench, server: Server, workload: Workload, seconds: int) -> Sample:
    """Loads a server once."""
    connections = CONNECTIONS_PER_PROCESS * server.contender.processes
    before = read_batches(server)
    shot = await turn(bench, server, workload, connections, seconds)
    after = read_batches(server)
    batches = Batches(after.queries - before.queries, after.callers - before.callers)
    database = bench.database_of(server.contender)
    assert isinstance(database, Postgresql)
    return Sample(shot, batches, await database.connections(server.contender.name))


async def measure(bench: Bench, servers: list[Server], workload: Workload, growth: Growth) -> None:
    """Loads the servers in turns, round by round; none always goes first."""
    await reset(bench, servers, workload.notes)
    progress(f"{workload.title}: warming up")
    for server in servers:
        await take_sample(bench, server, workload, 1)
    samples = growth.samples[workload.title] = {one.contender.processes: [] for one in servers}
    for number in range(bench.options.rounds):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            count = server.contender.processes
            progress(f"{workload.title}: round {number + 1}, {named(count)}")
            samples[count].append(await take_sample(bench, server, workload, bench.options.seconds))
    say(f"Measured {workload.title}")


async def run(options: argparse.Namespace) -> Growth:
    """Measures the workloads of the options with each number of processes."""
    async with set_up(options, [SERVICE]) as bench:
        database = bench.database_of(SERVICE)
        growth = Growth(versions({database.server: await database.version()}))
        await reset(bench, [], 5)
        async with running(bench) as servers:
            for workload in WORKLOADS:
                if workload.name in options.workloads:
                    await measure(bench, servers, workload, growth)
    return growth


def row(count: int, samples: list[Sample]) -> list[str]:
    """Returns a row of the table: the median rate and its range, then sums of all rounds."""
    good = [sample for sample in samples if not sample.shot.spoiled]
    if not good:
        return [named(count), *["spoiled"] * 4]
    rates = [sample.shot.rate for sample in good]
    queries = sum(sample.batches.queries for sample in good)
    callers = sum(sample.batches.callers for sample in good)
    service = sum(sample.shot.server_cpu for sample in good)
    postgres = [sample.shot.database_cpu for sample in good]
    known = [seconds for seconds in postgres if seconds is not None]
    return [
        named(count),
        f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})",
        f"{callers / queries:.1f}" if queries else "-",
        f"{sum(known) / (service + sum(known)):.0%}" if len(known) == len(good) else "?",
        str(max(sample.connections for sample in good)),
    ]


def markdown(growth: Growth) -> str:
    """Returns a table for each workload."""
    lines = [
        "This service with more and more processes on one database,"
        f" {CONNECTIONS_PER_PROCESS} clients for each process: the median of the rounds"
        " (lowest-highest), the callers that shared a query, PostgreSQL's share of the CPU time of"
        " both, and the connections to PostgreSQL."
    ]
    for title, by_count in growth.samples.items():
        head = [title, "requests a second", "callers a query", "PostgreSQL", "connections"]
        lines += ["", *table([head, *(row(count, by_count[count]) for count in by_count)])]
    results = {"machine": machine(), "date": today(), "versions": growth.versions}
    lines += ["", about(results)]
    return "\n".join(lines) + "\n"


def write(growth: Growth, folder: Path) -> list[str]:
    """Prints the report, and writes it as processes.md. Returns a line for each spoiled round."""
    text = markdown(growth)
    print(f"\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "processes.md").write_text(text)
    print(f"Wrote processes.md in {folder}")
    trouble = growth.spoiled()
    for line in trouble:
        print(f"\nSPOILED: {line}")
    return trouble
