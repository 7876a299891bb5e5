"""Metrics for Prometheus, also for several processes."""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO


def _find_folder() -> Path | None:
    """The folder with the values of all processes of one server; None for a single process.

    uvicorn starts its processes with multiprocessing. They share an authentication key, which
    differs from any other server's. prometheus_client reads the variable when it is imported.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        if multiprocessing.parent_process() is None:
            return None
        key = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:16]
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = f"{tempfile.gettempdir()}/notes-metrics-{key}"
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


_is_folder_given = "PROMETHEUS_MULTIPROC_DIR" in os.environ
_folder = _find_folder()

from prometheus_client import (  # noqa: E402
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.mmap_dict import MmapedDict  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

# The files of a process: one for gauges, and one for each kind of counts.
GAUGES = "gauge_livesum_{}.db"
COUNTS = ("histogram_{}.db", "counter_{}.db")


def _remove_dead(folder: Path) -> None:
    """Removes the gauges of dead processes. A living process holds a lock on its file."""
    for gauges in folder.glob(GAUGES.format("*")):
        with suppress(BlockingIOError, FileNotFoundError), gauges.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gauges.unlink()


def _register(folder: Path) -> IO[str]:
    """Creates this process's files. It continues the counts of a dead process, if any.

    Returns the locked file. The system releases the lock when this process dies.
    """
    pid = os.getpid()
    # Other processes see each file only when it is complete, and the gauges only when locked.
    new = folder / f"{pid}.new"
    while not new.exists():
        if not _is_folder_given:
            folder.mkdir(mode=0o700, exist_ok=True)
        try:
            MmapedDict(str(new)).close()  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            # A process that ends has removed the folder at the same time.
            if _is_folder_given:
                raise
    lock = new.open()
    fcntl.flock(lock, fcntl.LOCK_EX)
    _remove_dead(folder)
    new.rename(folder / GAUGES.format(pid))
    for name in COUNTS:
        own = folder / name.format(pid)
        # A dead process may have had the same id.
        if not own.exists():
            _continue_counts(folder, name, new, own)
    return lock


def _continue_counts(folder: Path, name: str, new: Path, own: Path) -> None:
    abandoned = [
        file
        for file in folder.glob(name.format("*"))
        if not (folder / GAUGES.format(file.stem.rpartition("_")[2])).exists()
    ]
    for file in abandoned:
        # Another new process may take the file at the same time.
        with suppress(FileNotFoundError):
            file.rename(own)
            break
    else:
        MmapedDict(str(new)).close()  # type: ignore[no-untyped-call]
        new.rename(own)


if _folder is not None:
    import fcntl

    _lock = _register(_folder)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_durations = Histogram(
    "http_request_duration_seconds",
    "Time from a request's head to the end of its answer; its count is the number of requests",
    ("route", "method", "status"),
)
_batches = Histogram(
    "coalesced_batch_size",
    "Callers that a query served",
    ("query",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
in_use = Gauge("database_connections_in_use", "Connections at work", multiprocess_mode="livesum")
waiting = Gauge(
    "database_connections_waited_for",
    "Statements that wait for a connection",
    multiprocess_mode="livesum",
)
dropped_lines = Counter("log_lines_dropped", "Log lines that could not be written")

_observers: dict[tuple[str, str, int], Callable[[float], None]] = {}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def request(route: str, method: str, status: int, seconds: float) -> None:
    """Counts a request and its duration."""
    key = (route, method, status)
    observe = _observers.get(key)
    if observe is None:
        # Clients may invent methods. Each would be a new series.
        name = method if method in METHODS else "other"
        observe = _durations.labels(route, name, str(status)).observe
        if name == method:
            _observers[key] = observe
    observe(seconds)


def batch(query: str) -> Callable[[float], None]:
    """Returns the function that counts a query's batch sizes."""
    return _batches.labels(query).observe


def exposition() -> bytes:
    """The metrics of all processes, in Prometheus's text format."""
    if _folder is None:
        return generate_latest(REGISTRY)
    _remove_dead(_folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    while True:
        # A new process may rename a file at the same time.
        with suppress(FileNotFoundError):
            return generate_latest(registry)


def end() -> None:
    """Removes this process's gauges. The last process of a server removes the folder."""
    if _folder is None:
        return
    # Another process may remove the folder at the same time.
    with suppress(FileNotFoundError):
        (_folder / GAUGES.format(os.getpid())).unlink()
        _remove_dead(_folder)
        # Listed first: a process that begins meanwhile has its gauges before its counts.
        counts = [file for name in COUNTS for file in _folder.glob(name.format("*"))]
        if not _is_folder_given and not any(_folder.glob(GAUGES.format("*"))):
            for file in counts:
                file.unlink(missing_ok=True)
            # With files of such a process the folder stays.
            with suppress(OSError):
                _folder.rmdir()
