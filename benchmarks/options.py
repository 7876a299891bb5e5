"""The options of a run, what follows from them, and how long it takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import CONTENDERS, ROOT, Contender
from benchmarks.load import WORKLOADS, Workload

DESCRIPTION = "Measures the service against other frameworks, side by side, in about 17 minutes."

PUBLISHED = ROOT / "benchmarks"

# README quotes these contenders in these workloads, so they have more and longer rounds.
QUOTED_CONTENDERS = ("twin", "plain", "service", "fastify", "bun")
QUOTED = (("changing100", 32), ("one", 32), ("one", 1))
QUOTED_ROUNDS, QUOTED_SECONDS = 10, 2
ROUNDS, SECONDS = 3, 1

# Here latencies are compared too, with 32 connections.
PACED = ("changing100", "one")
PACED_SECONDS = 2

# With --processes: callers who share all, who write, who do both, and who share little.
GROWTH_WORKLOADS = ["list100", "create", "mix", "pages"]

QUICK_CONTENDERS = ["service", "without-sharing", "twin", "plain", "fastify"]
QUICK_WORKLOADS = ["changing100", "one", "create"]
LARGE_ROUNDS = 1

# Of a run's turns so many are done again at most, because others took a core.
REPEATED = 0.2

# What a run of wrk and a large listing take besides the seconds that are measured, roughly.
SHOT_EXTRA_SECONDS = 0.25
LARGE_SECONDS = 4


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options, with the defaults of a quick or a full run filled in."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=DESCRIPTION)
    names = [contender.name for contender in CONTENDERS]
    workloads = [workload.name for workload in WORKLOADS]
    add = parser.add_argument
    add("--quick", action="store_true", help="a rough answer in about two minutes")
    add("--rounds", type=int, help="rounds of each workload (10 for README, 3 for the rest)")
    add("--seconds", type=int, help="seconds of a turn in a round (2 for README, 1 for the rest)")
    add("--only", nargs="+", choices=names, metavar="CONTENDER", help=", ".join(names))
    add("--workloads", nargs="*", choices=workloads, metavar="WORKLOAD", help=", ".join(workloads))
    add("--large", type=int, metavar="N", help="notes of the large listing (300000; quick: none)")
    add(
        "--processes",
        nargs="+",
        type=int,
        metavar="N",
        help="this service alone, with so many processes on one database, side by side;"
        " takes --rounds, --seconds, --workloads and --output",
    )
    add("--output", type=Path, help="folder for the results (benchmarks; else benchmarks/partial)")
    options = parser.parse_args(arguments)
    partial = bool(options.quick or options.rounds or options.seconds or options.only)
    partial = partial or options.workloads is not None or options.large is not None
    partial = partial or options.processes is not None
    quick = options.quick
    options.output = options.output or (PUBLISHED / "partial" if partial else PUBLISHED)
    options.only = options.only or (QUICK_CONTENDERS if quick else names)
    if quick or options.processes:
        options.rounds = options.rounds or (2 if quick else ROUNDS)
        options.seconds = options.seconds or SECONDS
    options.large = (0 if quick else 300_000) if options.large is None else options.large
    if options.workloads is None:
        options.workloads = workloads
        if quick:
            options.workloads = QUICK_WORKLOADS
        if options.processes:
            options.workloads = GROWTH_WORKLOADS
    return options


def plan(options: argparse.Namespace, contenders: list[Contender]) -> list[tuple[Workload, int]]:
    """Returns the workloads with their numbers of connections.

    One that only one could take part in would compare nothing, unless it is the only one at all.
    """
    chosen = [
        workload
        for workload in WORKLOADS
        if workload.name in options.workloads
        and (len(takers(workload, contenders)) > 1 or len(contenders) == 1)
    ]
    return [
        (workload, connections)
        for connections in (32, 1)
        for workload in chosen
        if connections in workload.connections
    ]


def turn_of(
    options: argparse.Namespace, workload: Workload, connections: int, name: str
) -> tuple[int, int]:
    """Returns how many rounds a contender has in a workload, and the seconds of its turn."""
    quoted = (workload.name, connections) in QUOTED and name in QUOTED_CONTENDERS
    rounds, seconds = (QUOTED_ROUNDS, QUOTED_SECONDS) if quoted else (ROUNDS, SECONDS)
    return options.rounds or rounds, options.seconds or seconds


def takers(workload: Workload, contenders: list[Contender]) -> list[Contender]:
    return [one for one in contenders if workload.name in one.workloads]


def estimate(options: argparse.Namespace, contenders: list[Contender]) -> int:
    """Returns about how many minutes a run will take."""
    seconds = len(contenders) * (4.0 if options.large else 2.5)
    for workload, connections in plan(options, contenders):
        here = takers(workload, contenders)
        for contender in here:
            rounds, length = turn_of(options, workload, connections, contender.name)
            seconds += rounds * (length + SHOT_EXTRA_SECONDS)
        if is_paced(workload, connections):
            seconds += sum(map(is_peer, here)) * (PACED_SECONDS + SHOT_EXTRA_SECONDS)
    if options.large:
        seconds += len(listing(contenders)) * LARGE_ROUNDS * LARGE_SECONDS
    return max(1, round(seconds / 60))


def count_turns(options: argparse.Namespace, contenders: list[Contender]) -> int:
    return sum(
        turn_of(options, workload, connections, contender.name)[0]
        for workload, connections in plan(options, contenders)
        for contender in takers(workload, contenders)
    )


def is_peer(contender: Contender) -> bool:
    """Whether it is compared with the others, and not with this service alone."""
    return contender.kind != "variant" or contender.without == "sharing"


def is_paced(workload: Workload, connections: int) -> bool:
    return workload.name in PACED and connections == 32


def listing(contenders: list[Contender]) -> list[Contender]:
    """Returns those who list very many notes: variants do it as this service does."""
    return [one for one in contenders if one.kind != "variant" and one.name != "constant"]
