"""PostgreSQL servers that tests may configure, crash and start again.

Debian's PostgreSQL has pg_trgm, auto_explain and ICU, which the wheel's lacks.
"""

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.servers import end, free_port
from tests.support.waiting import poll

SUPERUSER = "postgres"


class Cluster:
    """A PostgreSQL server on a data folder, which runs as a child of this process.

    It doesn't wait for the disk: the data of killed processes is not lost.
    """

    def __init__(self, binaries: Path, data: Path, log: Path, user: str | None) -> None:
        self.binaries = binaries
        self.data = data
        self.log = log
        self.user = user
        self.port = free_port()
        self.url = f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server takes connections, also after a crash."""

        def is_ready() -> bool:
            # It gives up while processes of a server that was killed are still there.
            if self.process is None or self.process.poll() is not None:
                self._spawn()
            return self._is_ready()

        poll(is_ready, self.log.read_text)

    def _spawn(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.data if len(str(self.data)) < 80 else "",
            "fsync": "off",
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(self.binaries / "postgres", "-D", self.data, "-p", str(self.port)),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=self.user and pwd.getpwnam(self.user).pw_gid,
                extra_groups=self.user and [],
            )

    def _is_ready(self) -> bool:
        command = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-U", SUPERUSER]
        return subprocess.run([*command, "-p", str(self.port)]).returncode == 0

    def end(self, how: signal.Signals) -> None:
        """Ends the server: SIGINT politely, SIGQUIT immediately, SIGKILL as a crash does."""
        if self.process is not None:
            end(self.process, how)
            self.process = None


def unprivileged(user: str) -> str | None:
    """The user to run PostgreSQL as, if this process is root. PostgreSQL refuses to be root."""
    return user if os.geteuid() == 0 else None


def find(root: Path = Path("/")) -> Path:
    """The folder of Debian's newest PostgreSQL programs that have pg_trgm.

    Skips the test if there are none. In CI that is a failure.
    """
    versions = [
        int(control.parent.parent.name)
        for control in root.glob("usr/share/postgresql/*/extension/pg_trgm.control")
        if (root / f"usr/lib/postgresql/{control.parent.parent.name}/bin/initdb").exists()
    ]
    if not versions:
        assert "CI" not in os.environ, "nothing is skipped in CI"
        pytest.skip("Debian's postgresql is needed")
    return root / f"usr/lib/postgresql/{max(versions)}/bin"


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Starts Debian's PostgreSQL on an empty cluster, and removes it at the end."""
    binaries = find()
    user = unprivileged(SUPERUSER)
    # pytest's own folders are closed to other users, and too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="notes-debian-") as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data = Path(folder) / "data"
        subprocess.run(
            [
                *(binaries / "initdb", "-D", data, "--no-sync", "--auth=trust"),
                *(f"--username={SUPERUSER}", "--encoding=UTF8", "--locale=C.UTF-8"),
            ],
            cwd="/",
            stdout=subprocess.DEVNULL,
            check=True,
            user=user,
            group=user and pwd.getpwnam(user).pw_gid,
            extra_groups=user and [],
        )
        cluster = Cluster(binaries, data, Path(folder) / "log", user)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end(signal.SIGINT)
