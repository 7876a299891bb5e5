"""Traces and metrics for a collector by OTLP, each if it has an endpoint.

Without one nothing of OpenTelemetry is imported, and `ON` is false: callers ask it first.
The names are those of OpenTelemetry's semantic conventions. Threads send, so a collector that is
away or slow holds up no request; what finds no room is dropped.
"""

import asyncio
import re
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from service import __version__
from service.settings import (
    DATABASE_URL,
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_METRICS_EXPORTER,
    OTEL_SDK_DISABLED,
    OTEL_TRACES_EXPORTER,
)

Result = TypeVar("Result")


def _is_sent(exporter: str, endpoint: str) -> bool:
    """Whether a signal is sent, with the exporter and the endpoint that are set for it alone."""
    has_endpoint = bool(endpoint or OTEL_EXPORTER_OTLP_ENDPOINT)
    return has_endpoint and exporter != "none" and not OTEL_SDK_DISABLED


TRACES = _is_sent(OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)
METRICS = _is_sent(OTEL_METRICS_EXPORTER, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT)
ON = TRACES or METRICS
# How long the end of a process waits for the collector.
LAST_SECONDS = 2.0
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

if ON:
    try:
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import (
            INVALID_SPAN,
            Link,
            NonRecordingSpan,
            SpanContext,
            SpanKind,
            Status,
            StatusCode,
            TraceFlags,
            set_span_in_context,
        )
    except ImportError:
        sys.stderr.write(
            "Configuration: traces and metrics for a collector need requirements-otel.txt\n"
        )
        raise SystemExit(3) from None

    # No context of another library: the SDK would look for one at each call.
    _NOTHING = Context()

# The spans of the requests that the current work is for.
served: ContextVar[tuple[Any, ...]] = ContextVar("served", default=())


class _Running(NamedTuple):
    # None if these are not sent.
    tracer: Any
    durations: Any
    providers: tuple[Any, ...]


_running: _Running | None = None


def start() -> None:
    """Begins to send what this process does."""
    global _running
    if not ON:
        return
    given = Resource.create(
        {"service.instance.id": str(uuid.uuid4()), "service.version": __version__}
    )
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may name the service.
    if str(given.attributes.get("service.name", "")).startswith("unknown_service"):
        given = given.merge(Resource({"service.name": "notes"}))
    tracer: Any = None
    durations: Any = None
    providers: list[Any] = []
    if TRACES:
        traces = TracerProvider(resource=given, shutdown_on_exit=False)
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        tracer = traces.get_tracer("service", __version__)
        providers.append(traces)
    if METRICS:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider([reader], resource=given, shutdown_on_exit=False)
        durations = meters.get_meter("service", __version__).create_histogram(
            "http.server.request.duration",
            unit="s",
            description="Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        providers.append(meters)
    _running = _Running(tracer, durations, tuple(providers))


def end() -> None:
    """Sends the rest, within LAST_SECONDS."""
    global _running
    if _running is None:
        return
    providers = _running.providers
    _running = None
    threads = [threading.Thread(target=one.shutdown, daemon=True) for one in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LAST_SECONDS / len(threads))


@asynccontextmanager
async def sending() -> AsyncIterator[None]:
    """Sends what this process does, and the rest at its end."""
    start()
    try:
        yield
    finally:
        if ON:
            await asyncio.to_thread(end)


class Request(NamedTuple):
    """A request, and the ids of its span as W3C Trace Context writes them.

    Without traces they are those of its client's span, if there is one.
    """

    span: Any
    ids: tuple[str, str, str] | None
    attributes: dict[str, Any]


def begin(
    method: str, scheme: str, path: str, client: str | None, parent: tuple[str, str, str] | None
) -> Request | None:
    """Begins a request, whose span is below that of its client; None before `start`."""
    if _running is None:
        return None
    attributes: dict[str, Any] = {"http.request.method": method, "url.scheme": scheme}
    if _running.tracer is None:
        return Request(INVALID_SPAN, parent, attributes)
    context = _NOTHING
    if parent is not None:
        trace_id, span_id, flags = (int(part, 16) for part in parent)
        remote = SpanContext(trace_id, span_id, True, TraceFlags(flags & 1))
        context = set_span_in_context(NonRecordingSpan(remote), context)
    more = {**attributes, "url.path": path}
    if client:
        more["client.address"] = client
    name = "HTTP" if method == "_OTHER" else method
    span = _running.tracer.start_span(name, context, SpanKind.SERVER, more)
    own = span.get_span_context()
    served.set((own,))
    ids = (f"{own.trace_id:032x}", f"{own.span_id:016x}", f"{own.trace_flags:02x}")
    return Request(span, ids, attributes)


def finish(request: Request, route: str, status: int, seconds: float) -> None:
    """Ends the span of a request, and counts the request."""
    span, _, attributes = request
    if route:
        attributes["http.route"] = route
    if status:
        attributes["http.response.status_code"] = status
    if status >= 500 or not status:
        attributes["error.type"] = str(status or "aborted")
    if span.is_recording():
        if route:
            span.update_name(f"{span.name} {route}")
        span.set_attributes(attributes)
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR))
    span.end()
    if _running is not None and _running.durations is not None:
        _running.durations.record(seconds, attributes, context=_NOTHING)


# Without the driver, which mysql+asyncmy names.
_SYSTEM = DATABASE_URL.partition(":")[0].partition("+")[0]
_find_table = re.compile(r"\b(?:FROM|INTO|UPDATE) +[`\"]?(\w+)").search


async def traced(text: str, work: Awaitable[Result]) -> Result:
    """Runs a statement, and gives it a span if it is for a request of a sampled trace."""
    spans = served.get()
    sampled = [one for one in spans if one.trace_flags.sampled]
    if _running is None or not sampled:
        return await work
    with _span_of(text, _running.tracer, sampled[0], spans):
        return await work


@contextmanager
def _span_of(text: str, tracer: Any, parent: Any, spans: tuple[Any, ...]) -> Iterator[None]:
    """The span of a statement: below one of its requests, with links to all of them."""
    operation = text.split(None, 1)[0]
    table = _find_table(text)
    span = tracer.start_span(
        f"{operation} {table[1]}" if table else operation,
        set_span_in_context(NonRecordingSpan(parent), _NOTHING),
        SpanKind.CLIENT,
        {"db.system.name": _SYSTEM, "db.query.text": text},
        [Link(one) for one in spans],
    )
    try:
        yield
    except Exception as error:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()
