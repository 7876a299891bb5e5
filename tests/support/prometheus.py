"""Debian's Prometheus, which scrapes a service and evaluates its alerts."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from tests.support.daemons import needs
from tests.support.servers import end, free_port
from tests.support.waiting import poll


class Prometheus(NamedTuple):
    """A running server, by a client of it."""

    client: httpx2.Client

    def values(self, query: str) -> list[float]:
        """The values of the samples that a query gives now. AssertionError if it is no query."""
        answer = self.client.get("/api/v1/query", params={"query": query})
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]
        assert found["resultType"] == "vector"
        return [float(sample["value"][1]) for sample in found["result"]]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


@contextmanager
def running_prometheus(folder: Path, configuration: dict[str, Any]) -> Iterator[Prometheus]:
    """Runs it in a folder, with what prometheus.yml says, until the block ends."""
    needs("prometheus")
    port = free_port()
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
                # It would begin to scrape after five seconds.
                "--scrape.discovery-reload-interval=100ms",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            poll(is_ready, log.read_text)
            yield Prometheus(client)
    finally:
        end(process)
