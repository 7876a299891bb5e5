"""Where servers keep their data."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

MEMORY = Path("/dev/shm")
# Twice what the servers of a run write, in bytes.
ENOUGH = 4 << 30


def new_folder(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder for the data of a server: in memory, if there is enough, as disks cost more.

    pytest's own folders are closed to other users, also to those of another run, and too deep for
    a socket.
    """
    return tempfile.TemporaryDirectory(prefix=prefix, dir=_parent())


@cache
def _parent() -> Path | None:
    # Containers may have a folder of 64 MB there.
    is_fit = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH
    return MEMORY if is_fit and "TMPDIR" not in os.environ else None
