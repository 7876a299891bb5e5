"""Database servers of other projects, as children of the tests."""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import ROOT
from tests.support.servers import end, free_port
from tests.support.waiting import poll

# Who the service is at a server of its own.
ROLE = "notes"
PASSWORD = "right"
# Debian has servers there, which is not on everybody's PATH.
PATH = f"{os.environ['PATH']}:/usr/sbin"
# Data folders of servers that have never run.
INSTALLED = ROOT / ".cache/installed"


def needs(*programs: str) -> None:
    """Skips the test if a program is missing. In CI that is a failure."""
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            assert "CI" not in os.environ, "nothing is skipped in CI"
            pytest.skip(f"Debian's {program} is needed")


def unprivileged(user: str) -> str | None:
    """The user to run a server as, if this process is root. Servers refuse to be root."""
    return user if os.geteuid() == 0 else None


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that run a program as a user, or as this one."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def give(path: Path, user: str | None) -> None:
    """Makes the user the owner of a file or a folder."""
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(path, account.pw_uid, account.pw_gid)


def install(data: Path, program: Path, options: Sequence[str], make: Callable[[], None]) -> None:
    """Makes a server's data folder, or copies one that the program has made with these options.

    To make one takes a server longer than to start.
    """
    about = program.stat()
    made_by = (str(program), about.st_mtime_ns, about.st_size, *options, os.geteuid())
    kept = INSTALLED / hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]
    if kept.exists():
        copy_data(kept, data)
        return
    make()
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=INSTALLED) as making:
        copy = Path(making) / "data"
        copy_data(data, copy)
        # Another process may have been quicker.
        with suppress(OSError):
            copy.rename(kept)


def copy_data(data: Path, copy: Path) -> None:
    """Copies a data folder with owners, which `shutil.copytree` doesn't copy."""
    subprocess.run(["cp", "-a", data, copy], check=True)


class Daemon:
    """A database server on a data folder, which runs as a child of this process.

    It doesn't wait for the disk: the data of killed processes is not lost.
    """

    # For the superuser.
    url: str
    # The signal that asks for an orderly end.
    POLITE: signal.Signals

    def __init__(self, data: Path, log: Path, user: str | None) -> None:
        self.data = data
        self.log = log
        self.user = user
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        raise NotImplementedError

    def start(self) -> None:
        """Returns when the server takes connections, also after a crash."""

        def is_ready() -> bool:
            # It gives up while processes of a server that was killed are still there.
            if self.process is None or self.process.poll() is not None:
                self._spawn()
            return self.is_ready()

        poll(is_ready, self.log.read_text)

    def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **as_user(self.user),
            )

    def end(self, how: signal.Signals | None = None) -> None:
        """Ends the server in order, or with another signal."""
        if self.process is not None:
            end(self.process, how or self.POLITE)
            self.process = None
