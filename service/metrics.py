"""Metrics for Prometheus, also for several processes.

Each of several processes has files of prometheus_client in one folder, and a slot: a number in the
names of its files. The next process takes the slot of one that died, and continues its counts.
"""

import hashlib
import itertools
import multiprocessing
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "notes-metrics-"
KEY_LENGTH = 16


def _find_folder() -> Path | None:
    """The folder with the values of all processes of one server; None for a single process.

    uvicorn starts its processes with multiprocessing. They share an authentication key, which
    differs from any other server's. prometheus_client reads the variable when it is imported.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        if multiprocessing.parent_process() is None:
            return None
        key = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:KEY_LENGTH]
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = f"{tempfile.gettempdir()}/{PREFIX}{key}"
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
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

# The gauges and the lock of a process, by its slot.
GAUGES = "gauge_livesum_{}.db"
LOCK = "{}.lock"


def _enter(folder: Path) -> int:
    """Makes the folder. Returns a descriptor whose lock keeps others from removing it."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Another process may remove the folder at the same time.
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
            os.close(descriptor)


def _take_slot(folder: Path) -> tuple[int, IO[str]]:
    """Returns a number that no other process has, and a file that is locked as long as it lives.

    Counts of a dead process with this number go on.
    """
    for slot in itertools.count():
        lock = (folder / LOCK.format(slot)).open("w")
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / GAUGES.format(slot)).unlink(missing_ok=True)
            break
        lock.close()
    return slot, lock


def _remove_abandoned(folder: Path) -> None:
    """Removes the folders beside this one that servers left when they were killed."""
    for other in folder.parent.glob(PREFIX + "[0-9a-f]" * KEY_LENGTH):
        # It may be in use, belong to another user, or be no folder.
        with suppress(OSError):
            descriptor = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have made it again meanwhile.
                if os.path.samestat(os.fstat(descriptor), other.stat()):
                    shutil.rmtree(other)
            finally:
                os.close(descriptor)


def _remove_dead(folder: Path) -> None:
    """Removes the gauges of dead processes."""
    for gauges in folder.glob(GAUGES.format("*")):
        slot = gauges.stem.rpartition("_")[2]
        with suppress(BlockingIOError), (folder / LOCK.format(slot)).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gauges.unlink(missing_ok=True)


if _folder is not None:
    import fcntl

    _entered = _enter(_folder)
    _slot, _lock = _take_slot(_folder)
    if not _is_folder_given:
        _remove_abandoned(_folder)
    values.ValueClass = values.MultiProcessValue(lambda: _slot)  # type: ignore[no-untyped-call]

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
followers = Gauge("live_followers", "Clients that follow changes", multiprocess_mode="livesum")
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
        # Another process may end at the same time, or have begun a file that is still empty.
        with suppress(FileNotFoundError, struct.error):
            return generate_latest(registry)


def end() -> None:
    """Removes this process's gauges. The last process of a server removes the folder."""
    if _folder is None:
        return
    (_folder / GAUGES.format(_slot)).unlink(missing_ok=True)
    with suppress(BlockingIOError):
        fcntl.flock(_entered, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_folder_given:
            shutil.rmtree(_folder)
    os.close(_entered)
