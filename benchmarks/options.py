"""The options of a run, what follows from them, and how long it takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import CONTENDERS, ROOT, Contender
from benchmarks.load import WORKLOADS, Workload

DESCRIPTION = "Measures the service against other frameworks, side by side, in about 15 minutes."

# With --processes: callers who share all, who write, who do both, and who share little.
GROWTH_WORKLOADS = ["list100", "create", "mix", "pages"]

# A quick run has fewer contenders, and fewer runs on one connection.
QUICK_CONTENDERS = ["service", "twin", "fastify", "constant"]
QUICK_ON_ONE_CONNECTION = ["list100", "create"]
STARTS = 3
LARGE_ROUNDS = 3
PACED_SECONDS = 2

# What a run of wrk and a large listing take besides the seconds that are measured, roughly.
SHOT_EXTRA_SECONDS = 0.25
LARGE_SECONDS = 3


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options, with the defaults of a quick or a full run filled in."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=DESCRIPTION)
    names = [contender.name for contender in CONTENDERS]
    workloads = [workload.name for workload in WORKLOADS]
    add = parser.add_argument
    add("--quick", action="store_true", help="a rough answer within two minutes")
    add("--rounds", type=int, help="rounds of each workload (3; quick: 2)")
    add(
        "--seconds",
        type=int,
        help="seconds that a contender is loaded in a round (1)",
    )
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
    options.output = options.output or ROOT / "benchmarks" / ("partial" if partial else "")
    options.only = options.only or (QUICK_CONTENDERS if quick else names)
    options.rounds = options.rounds or (2 if quick else 3)
    options.seconds = options.seconds or 1
    options.large = (0 if quick else 300_000) if options.large is None else options.large
    if options.workloads is None:
        options.workloads = GROWTH_WORKLOADS if options.processes else workloads
    return options


def plan(options: argparse.Namespace, contenders: list[Contender]) -> list[tuple[Workload, int]]:
    """Returns the workloads with their numbers of connections.

    One that only this service could take part in would compare nothing.
    """
    chosen = [
        workload
        for workload in WORKLOADS
        if workload.name in options.workloads
        and (len(takers(workload, contenders)) > 1 or len(contenders) == 1)
    ]
    on_one = QUICK_ON_ONE_CONNECTION if options.quick else options.workloads
    return [(workload, 32) for workload in chosen] + [
        (workload, 1) for workload in chosen if workload.alone and workload.name in on_one
    ]


def takers(workload: Workload, contenders: list[Contender]) -> list[Contender]:
    return [one for one in contenders if workload.name in one.workloads]


def estimate(options: argparse.Namespace, contenders: list[Contender]) -> int:
    """Returns about how many minutes a run will take."""
    seconds = float(len(contenders) * (2 if options.quick else STARTS + bool(options.large)))
    for workload, connections in plan(options, contenders):
        shot = seconds_of(connections, options) + SHOT_EXTRA_SECONDS
        extra = 0.0
        if connections > 1 and not options.quick:
            extra = 1 + PACED_SECONDS + 2 * SHOT_EXTRA_SECONDS
        seconds += len(takers(workload, contenders)) * (options.rounds * shot + extra)
    if options.large:
        seconds += len(contenders) * LARGE_ROUNDS * LARGE_SECONDS
    return max(1, round(seconds / 60))


def seconds_of(connections: int, options: argparse.Namespace) -> int:
    """Returns for how long a contender is loaded; with one connection half as long."""
    return int(options.seconds if connections > 1 else max(1, options.seconds // 2))
