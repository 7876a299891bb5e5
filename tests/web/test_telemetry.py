"""Traces and metrics for a collector, which is a receiver of our own that decodes OTLP."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
from opentelemetry.trace import SpanContext

from service import telemetry
from service.database.coalescing import coalesce
from tests.support.collector import Collector, running_collector, values
from tests.support.databases import NewDatabase, kind_of, run
from tests.support.processes import new_process
from tests.support.servers import free_port, running, serving
from tests.support.waiting import poll
from tests.web.test_tracing import PARENT, SPAN_ID, TRACE_ID

NOTE = {"text": "a", "completed": True}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as server:
        yield server


def test_requests_and_their_statements(
    database_url: str, tmp_path: Path, collector: Collector
) -> None:
    """A request is a span below its client's, and its statement one below it, with a link.

    What isn't sampled has no spans. All requests are in the histogram.
    """
    log = tmp_path / "log"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
    with serving(database_url, log, "--no-access-log", **variables) as client:
        assert client.post("/notes/", json=NOTE).status_code == 200
        client.get("/notes/1", headers={"traceparent": PARENT})
        client.get("/notes/1", headers={"traceparent": f"{PARENT[:-1]}0"})
        client.request("PROPFIND", "/nowhere/1")
        assert client.put("/notes/1", json=NOTE).status_code == 200
        assert client.delete("/notes/1").status_code == 204
    spans = collector.spans()
    request, statement = sorted(
        (span for span in spans if span.trace_id.hex() == TRACE_ID), key=lambda span: span.kind
    )
    assert (request.name, request.kind) == ("GET /notes/{note_id}", request.SPAN_KIND_SERVER)
    assert request.parent_span_id.hex() == SPAN_ID
    assert values(request) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/notes/{note_id}",
        "url.path": "/notes/1",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
    }
    assert (statement.name, statement.kind) == ("SELECT notes", statement.SPAN_KIND_CLIENT)
    assert statement.parent_span_id == request.span_id
    assert [link.span_id for link in statement.links] == [request.span_id]
    found = values(statement)
    assert found["db.system.name"] == kind_of(database_url)
    assert found["db.query.text"].startswith("SELECT ")
    others = [span.name for span in spans if span.trace_id.hex() != TRACE_ID]
    assert sorted(others) == [
        *("DELETE /notes/{note_id}", "DELETE notes", "HTTP", "INSERT notes", "POST /notes/"),
        *("PUT /notes/{note_id}", "UPDATE notes"),
    ]
    # The log names the span of the request.
    (line,) = (
        line
        for line in log.read_text().splitlines()
        if f"trace_id={TRACE_ID}" in line and f"span_id={request.span_id.hex()}" in line
    )
    assert "path=/notes/1" in line
    last = collector.metrics[-1].resource_metrics[0]
    (metric,) = (one for scope in last.scope_metrics for one in scope.metrics)
    assert (metric.name, metric.unit) == ("http.server.request.duration", "s")
    counts = {
        (
            point["http.request.method"],
            point.get("http.route"),
            point["http.response.status_code"],
        ): count
        for point, count in ((values(one), one.count) for one in metric.histogram.data_points)
    }
    assert counts == {
        ("POST", "/notes/", 200): 1,
        ("GET", "/notes/{note_id}", 200): 2,
        ("_OTHER", None, 404): 1,
        ("PUT", "/notes/{note_id}", 200): 1,
        ("DELETE", "/notes/{note_id}", 204): 1,
    }
    assert len(collector.instances()) == 1
    assert values(last.resource)["service.name"] == "mine"


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "{}/base", "OTEL_TRACES_EXPORTER": "none"},
            {"/base/v1/metrics"},
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "{}/base",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "{}/own/traces",
                "OTEL_METRICS_EXPORTER": "none",
            },
            {"/own/traces"},
        ),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "{}/own/metrics"}, {"/own/metrics"}),
    ],
)
def test_one_of_the_signals(
    new_database: NewDatabase,
    tmp_path: Path,
    collector: Collector,
    given: dict[str, str],
    paths: set[str],
) -> None:
    """Traces or metrics alone are sent, to the endpoint of their own if there is one.

    Without traces the log has the ids of the client.
    """
    log = tmp_path / "log"
    variables = {name: value.format(collector.url) for name, value in given.items()}
    with serving(new_database("sqlite"), log, "--no-access-log", **variables) as client:
        assert client.get("/notes/", headers={"traceparent": PARENT}).status_code == 200
        assert client.get("/notes/").status_code == 200
    assert collector.paths == paths
    assert len(collector.spans()) == (4 if collector.traces else 0)
    lines = [line for line in log.read_text().splitlines() if "path=/notes/" in line]
    has_own = [f" trace_id={TRACE_ID} span_id={SPAN_ID}" not in line for line in lines]
    assert has_own == [bool(collector.traces), True]
    assert ("trace_id" in lines[1]) == bool(collector.traces)


def test_each_process_is_an_instance(
    new_database: NewDatabase, tmp_path: Path, collector: Collector
) -> None:
    """Each of several processes sends with an id of its own."""
    log = tmp_path / "log"
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "WEB_CONCURRENCY": "2",
    }
    with serving(new_database("sqlite"), log, **variables) as client:
        client.headers["connection"] = "close"

        def both_have_sent() -> bool:
            client.get("/health/live")
            return len(collector.instances()) == 2

        poll(both_have_sent, log.read_text)


def test_a_shared_query_is_for_all_of_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers who share a query are all known to it, and those of other queries are not."""
    monkeypatch.setattr(telemetry, "ON", True)
    seen: list[tuple[str, ...]] = []
    going = asyncio.Event()

    async def serve(arguments: list[str]) -> Sequence[str]:
        seen.append(telemetry.served.get())
        await going.wait()
        return arguments

    call = coalesce(serve, 10, patience=None, lone_after=1)

    async def ask(name: str) -> str:
        telemetry.served.set((name,))
        return await call(name)

    async def ask_all() -> None:
        first = asyncio.create_task(ask("a"))
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0)
        others = [asyncio.create_task(ask(name)) for name in "bcd"]
        await asyncio.sleep(0)
        others[1].cancel()
        going.set()
        await asyncio.wait([first, *others])
        await ask("e")
        await ask("f")

    asyncio.run(ask_all())
    assert seen == [("a",), ("b", "d"), ("e",), ("f",)]


async def query_for_two() -> list[str]:
    """Runs a query for a request that isn't sampled and one that is. Gives their spans' ids."""
    telemetry.start()
    spans: list[SpanContext] = []
    for flags in ("00", "01"):
        telemetry.begin("GET", "http", "/notes/", None, (TRACE_ID, SPAN_ID, flags))
        spans += telemetry.served.get()
    telemetry.served.set(tuple(spans))
    await telemetry.traced("SELECT id FROM notes", asyncio.sleep(0))
    telemetry.end()
    return [f"{span.span_id:016x}" for span in spans]


def test_a_shared_query_is_in_a_trace_that_is_sampled(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    """The span of a query is below a request that is sampled, also if another one came first."""
    monkeypatch.setenv("DATABASE_URL", new_database("sqlite"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with new_process() as run:
        requests = run(query_for_two)
    (statement,) = collector.spans()
    assert statement.name == "SELECT notes"
    assert statement.parent_span_id.hex() == requests[1]
    assert [link.span_id.hex() for link in statement.links] == requests


@pytest.mark.parametrize("is_there", [False, True])
def test_a_bad_collector_harms_nobody(
    new_database: NewDatabase, tmp_path: Path, is_there: bool
) -> None:
    """Without a collector, or with one that never answers, requests are served, as usual."""
    port = free_port()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "OTEL_BSP_MAX_QUEUE_SIZE": "4",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
    }
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        if is_there:
            listener.listen()
        with running(new_database("sqlite"), tmp_path / "log", **variables) as url:
            for _ in range(50):
                assert httpx2.get(f"{url}/notes/").status_code == 200


def test_the_end_does_not_wait_for_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process ends while what is left is still being sent, after a limit of time."""
    goes_on, has_ended = threading.Event(), threading.Event()

    def send_slowly() -> None:
        goes_on.wait(60)
        has_ended.set()

    provider = Mock(shutdown=send_slowly)
    monkeypatch.setattr(telemetry, "LAST_SECONDS", 0.01)
    monkeypatch.setattr(telemetry, "_running", telemetry._Running(None, None, (provider,)))
    telemetry.end()
    assert not has_ended.is_set()
    goes_on.set()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
        },
    ],
)
def test_nothing_is_imported_if_nothing_is_sent(variables: dict[str, str]) -> None:
    """Without an endpoint, with OTEL_SDK_DISABLED or without signals the SDK isn't imported."""
    code = "import sys, service.app; print([one for one in sys.modules if 'opentel' in one])"
    assert run(sys.executable, "-c", code, **variables).stdout == "[]\n"
