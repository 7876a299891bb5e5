"""The README's commands do what it says."""

import re
import subprocess

import httpx2

from tests.databases import ROOT, environment


def test_curl_examples(service: httpx2.Client) -> None:
    """Every `curl` of the README prints, in order, on a fresh database, what stands below it."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    examples = re.findall(
        r"^\$ (curl (?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.MULTILINE
    )
    assert len(examples) >= 3
    for command, output in examples:
        address = f"{service.base_url.host}:{service.base_url.port}"
        result = subprocess.run(
            command.replace("localhost:8000", address),
            shell=True,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert result.stdout.strip().splitlines() == output.strip().splitlines(), command
