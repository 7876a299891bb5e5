"""Wheels of the package index, kept until others are pinned."""

import hashlib
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.databases import ROOT

CACHE = ROOT / ".cache/wheels"


def fetched(requirements: Path) -> Path:
    """The folder of the wheels that a file pins with their hashes, for this Python."""
    pinned = requirements.read_bytes() + sys.version.encode()
    folder = CACHE / hashlib.sha256(pinned).hexdigest()[:16]
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as making:
            pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            wheels = Path(making) / "wheels"
            subprocess.run([*pip, *options, "-r", requirements, "--dest", wheels], check=True)
            # Another run may have been quicker.
            with suppress(OSError):
                wheels.rename(folder)
    return folder
