"""Metrics for Prometheus, right with several processes too."""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def _share_between_processes() -> str | None:
    """Names the folder where the processes of one server keep their values, and makes it.

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
    return os.environ["PROMETHEUS_MULTIPROC_DIR"]


_folder = _share_between_processes()

from prometheus_client import (  # noqa: E402
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

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
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def end() -> None:
    """Takes this process out of the gauges."""
    if _folder is not None:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
