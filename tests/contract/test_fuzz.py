"""Schemathesis against the live service, from the OpenAPI document that it serves."""

import subprocess
import sys
from pathlib import Path

import httpx2

from tests.conftest import Server
from tests.support.databases import ROOT, environment, kind_of

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def fuzz(service: httpx2.Client, folder: Path, examples: int, *options: str) -> None:
    """Fuzzes all operations. AssertionError with the failures, and how to repeat them."""
    result = subprocess.run(
        [
            SCHEMATHESIS,
            f"--config-file={ROOT}/tests/support/schemathesis.toml",
            "run",
            str(service.base_url.join("/openapi.json")),
            "--generation-deterministic",
            f"--max-examples={examples}",
            "--continue-on-failure",
            "--no-color",
            *options,
        ],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout


def test_any_requests(server: Server, service: httpx2.Client, tmp_path: Path) -> None:
    """Requests that fit the document or don't are answered as the document says."""
    # What doesn't fit is refused before it reaches a database, and so by the same code on each.
    examples, mode = (27, "all") if kind_of(server.database_url) == "sqlite" else (3, "positive")
    fuzz(service, tmp_path, examples, f"--mode={mode}", "--checks=all")

    assert service.get("/notes/").json()
