"""Where servers keep their data, and tests their files."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import psutil

MEMORY = Path("/dev/shm")
# Twice what a run of all tests writes, in bytes.
ENOUGH = 8 << 30


def new_folder(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder for the data of a server: in memory, if there is enough, as disks cost more.

    pytest's own folders are closed to other users, also to those of another run, and too deep for
    a socket.
    """
    return tempfile.TemporaryDirectory(prefix=prefix, dir=memory())


@cache
def memory() -> Path | None:
    """A folder in memory, or None where that is scarce, or another folder was asked for."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return None
    # Containers may have 64 MB there, and run no programs from it.
    free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    runs_programs = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    return MEMORY if free > ENOUGH and runs_programs else None
