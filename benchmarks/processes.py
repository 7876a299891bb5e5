"""What processes use: the CPU and the memory of one with all that it started."""

import psutil

# What the kernel may tell instead of an answer: the process is gone, or somebody else's.
GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except GONE:
        return []


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a process and of its children, those that have ended included."""
    seconds = 0.0
    for process in tree(pid):
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
