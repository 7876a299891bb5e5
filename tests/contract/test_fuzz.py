"""Schemathesis against the live service, from the OpenAPI document that it serves."""

import subprocess
import sys
from pathlib import Path

import httpx2

from tests.support.databases import ROOT, environment

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def fuzz(service: httpx2.Client, folder: Path, *options: str) -> None:
    """Fuzzes all operations. AssertionError with the failures, and how to repeat them."""
    result = subprocess.run(
        [
            SCHEMATHESIS,
            f"--config-file={ROOT}/tests/support/schemathesis.toml",
            "run",
            str(service.base_url.join("/openapi.json")),
            "--generation-deterministic",
            "--max-examples=27",
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


def test_any_requests(service: httpx2.Client, tmp_path: Path) -> None:
    """Requests that fit the document or don't are answered as the document says."""
    fuzz(service, tmp_path, "--mode=all", "--checks=all")

    assert service.get("/notes/").json()
