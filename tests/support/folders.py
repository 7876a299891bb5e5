"""Where servers keep their data, and tests their files."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

MEMORY = Path("/dev/shm")
# Twice what a run of all tests writes, in bytes.
ENOUGH = 8 << 30


def new_folder(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder for data that a run removes: in memory, if there is enough, as disks cost more.

    pytest's own folders are closed to other users, also to those of another run, and too deep for
    a socket.
    """
    return tempfile.TemporaryDirectory(prefix=prefix, dir=_parent())


@cache
def _parent() -> Path | None:
    # Containers may have a folder of 64 MB there.
    is_fit = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH
    return MEMORY if is_fit and "TMPDIR" not in os.environ else None
