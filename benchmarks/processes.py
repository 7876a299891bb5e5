"""The CPU and the memory of processes with all that they started, and the CPU that others take."""

import math
import os
import time
from typing import NamedTuple

import psutil

# What the kernel may tell instead of an answer: the process is gone, or somebody else's.
GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
CORES = os.cpu_count() or 1


def tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except GONE:
        return []


def cpu_seconds(*pids: int) -> float:
    """Returns the CPU seconds of processes and of their children, those that have ended included.

    A process that is among the children of another one counts once.
    """
    seconds = 0.0
    for process in {process for pid in pids for process in tree(pid)}:
        try:
            seconds += sum(process.cpu_times()[:4])
        except GONE:
            continue
    return seconds


def rss(pid: int) -> int:
    """Returns the resident memory of a process and of its children in bytes."""
    size = 0
    for process in tree(pid):
        try:
            size += process.memory_info().rss
        except GONE:
            continue
    return size


def postmaster(backend: int) -> int | None:
    """Returns the process that started a backend of PostgreSQL; None if it is not to be seen."""
    try:
        parent = psutil.Process(backend).parent()
        name = "" if parent is None else parent.name()
    except GONE:
        return None
    return parent.pid if parent and name in ("postgres", "postmaster") else None


_shortest = math.inf


def _loop() -> float:
    """Returns the CPU seconds of a loop, some 5 ms."""
    began = time.thread_time()
    for _ in range(100_000):
        pass
    return time.thread_time() - began


def slowness() -> float:
    """Returns how many times its shortest time in this run a loop takes now."""
    global _shortest
    # Whatever interrupts one of them is no slowness.
    seconds = min(_loop() for _ in range(5))
    _shortest = min(_shortest, seconds)
    return seconds / _shortest


class Usage(NamedTuple):
    """CPU seconds at a moment: those of the whole machine, and those of the benchmark.

    `slowness` is how many times slower than at its best a core is.
    """

    at: float
    machine: float
    own: float
    slowness: float = 1.0

    def others_since(self, before: "Usage", cores: int = CORES) -> float:
        """Returns how many cores others took on average. The host of a virtual machine is one.

        The machine's counts don't tell of all that a host takes: the cores are slower then.
        """
        others = (self.machine - before.machine) - (self.own - before.own)
        slowed = cores * (1 - 2 / (before.slowness + self.slowness))
        return max(0.0, others / (self.at - before.at)) + slowed


def usage(*databases: int) -> Usage:
    """Looks at /proc/stat, and at this process, all that it started, and the databases' servers."""
    slow = slowness()
    times = psutil.cpu_times()
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    machine = sum(getattr(times, name, 0.0) for name in busy)
    return Usage(time.perf_counter(), machine, cpu_seconds(os.getpid(), *databases), slow)


def divide(cores: set[int]) -> tuple[set[int], set[int]]:
    """Returns the cores for the servers and those for the load; fewer than four are shared."""
    ordered = sorted(cores)
    half = len(ordered) // 2
    return (set(ordered[half:]), set(ordered[:half])) if len(ordered) >= 4 else (cores, cores)


if hasattr(os, "sched_setaffinity"):
    SERVERS, LOAD = divide(os.sched_getaffinity(0))
else:
    SERVERS, LOAD = set(), set()


def pin(cores: set[int]) -> None:
    """Puts this thread on cores, and with it the processes that it starts from now on."""
    if SERVERS != LOAD:
        os.sched_setaffinity(0, cores)
