"""A collector of OpenTelemetry's signals, which decodes OTLP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def values(owner: Any) -> dict[str, Any]:
    """The attributes of a span, a point or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in owner.attributes}


class Collector(ThreadingHTTPServer):
    """Decodes what it gets, at any path that ends with the name of a signal."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.paths: set[str] = set()
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []

    def spans(self) -> list[Any]:
        return [
            span
            for message in self.traces
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def instances(self) -> set[str]:
        """The `service.instance.id` of each process that has sent."""
        resources = [one.resource for message in self.traces for one in message.resource_spans]
        resources += [one.resource for message in self.metrics for one in message.resource_metrics]
        return {values(resource)["service.instance.id"] for resource in resources}


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.add(self.path)
        if self.path.endswith("/traces"):
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            assert self.path.endswith("/metrics")
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Runs a collector in a thread until the block ends."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
