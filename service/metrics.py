"""Metrics for Prometheus, right with several processes too."""

import hashlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO


def _find_folder() -> Path | None:
    """The folder where the processes of one server keep their values; None for a single process.

    uvicorn starts its processes with multiprocessing, whose key is the same in all of them and
    different in any other server's. prometheus_client reads the variable when it is imported.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        if multiprocessing.parent_process() is None:
            return None
        key = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"notes-metrics-{key}"
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


_is_given = "PROMETHEUS_MULTIPROC_DIR" in os.environ
_folder = _find_folder()

from prometheus_client import (  # noqa: E402
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.mmap_dict import MmapedDict  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

# A process keeps its gauges in one file, and all that only rises in another.
GAUGES = "gauge_livesum_{}.db"
HISTOGRAMS = "histogram_{}.db"


def _bury(folder: Path) -> None:
    """Takes the processes that have died out of the gauges: nobody holds the locks on theirs."""
    for gauges in folder.glob(GAUGES.format("*")):
        with suppress(BlockingIOError, FileNotFoundError), gauges.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gauges.unlink()


def _enter(folder: Path) -> IO[str]:
    """Adds this process, which goes on counting where one that has died came to.

    Gives the file whose lock tells the others that this process lives; the system frees it.
    """
    pid = os.getpid()
    # The others see a file when it is whole, and this one when it is locked.
    new = folder / f"{pid}.new"
    MmapedDict(str(new)).close()  # type: ignore[no-untyped-call]
    lock = new.open()
    fcntl.flock(lock, fcntl.LOCK_EX)
    _bury(folder)
    new.rename(folder / GAUGES.format(pid))
    mine = folder / HISTOGRAMS.format(pid)
    if mine.exists():
        # One that has died had the same id.
        return lock
    left = [
        file
        for file in folder.glob(HISTOGRAMS.format("*"))
        if not (folder / file.name.replace("histogram", "gauge_livesum")).exists()
    ]
    for file in left:
        # Another new process may take it at the same time.
        with suppress(FileNotFoundError):
            file.rename(mine)
            break
    else:
        MmapedDict(str(new)).close()  # type: ignore[no-untyped-call]
        new.rename(mine)
    return lock


if _folder is not None:
    import fcntl

    _lock = _enter(_folder)

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

_observers: dict[tuple[str, str, int], Callable[[float], None]] = {}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def request(route: str, method: str, status: int, seconds: float) -> None:
    """Counts a request and its duration."""
    key = (route, method, status)
    observe = _observers.get(key)
    if observe is None:
        # Clients may make up methods; each would be a series for ever.
        name = method if method in METHODS else "other"
        observe = _durations.labels(route, name, str(status)).observe
        if name == method:
            _observers[key] = observe
    observe(seconds)


def batch(query: str) -> Callable[[float], None]:
    """The observer of a query's batch sizes."""
    return _batches.labels(query).observe


def exposition() -> bytes:
    """All processes' metrics in Prometheus's text format."""
    if _folder is None:
        return generate_latest(REGISTRY)
    _bury(_folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    while True:
        # A process that starts may have renamed a file just now.
        with suppress(FileNotFoundError):
            return generate_latest(registry)


def end() -> None:
    """Takes this process out of the gauges; the last one of a server removes their folder."""
    if _folder is None:
        return
    # Another one may remove it at the same time.
    with suppress(FileNotFoundError):
        (_folder / GAUGES.format(os.getpid())).unlink()
        _bury(_folder)
        if not _is_given and not any(_folder.glob(GAUGES.format("*"))):
            shutil.rmtree(_folder, ignore_errors=True)
