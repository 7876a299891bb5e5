"""The address on which scripts/run serves, as HOST says it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.databases import ROOT


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (" 127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("\t[::1] ", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("notes.example.com", "notes.example.com"),
        ("  ", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
def test_uvicorn_gets_the_bare_address(tmp_path: Path, host: str, address: str) -> None:
    """Spaces and brackets around an address are left out, as uvicorn takes neither."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/run", tmp_path / "scripts/run")
    fakes = dict.fromkeys(("scripts/install", ".venv/bin/python", ".venv/bin/alembic"), "")
    fakes[".venv/bin/uvicorn"] = 'printf "<%s>" "$@"\n'
    for name, body in fakes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / name).chmod(0o755)
    found = subprocess.run(
        [tmp_path / "scripts/run"],
        env={"PATH": os.environ["PATH"], "HOST": host},
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"<--host><{address}><--port>" in found.stdout
