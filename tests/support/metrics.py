"""Values of /metrics."""

import math
import re

import httpx2
from prometheus_client.parser import text_string_to_metric_families


def metric(client: httpx2.Client, name: str, **labels: str) -> float:
    """A value of /metrics, or NaN if there is none."""
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    sample = re.escape(f"{name}{{{pairs}}}" if pairs else name)
    found = re.search(rf"^{sample} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else math.nan


def counts(client: httpx2.Client) -> dict[tuple[str, ...], float]:
    """The numbers of requests by route, method and status, except for those of /metrics."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        tuple(sample.labels[label] for label in ("route", "method", "status")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "http_request_duration_seconds_count"
        and sample.labels["route"] != "/metrics"
    }
