"""PostgreSQL servers that tests may configure, crash and start again.

Debian's PostgreSQL has pg_trgm, auto_explain and ICU, which the wheel's lacks.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemons import Daemon, as_user, give, install, unprivileged
from tests.support.folders import new_folder

SUPERUSER = "postgres"
OPTIONS = (
    *("--no-sync", "--auth=trust", f"--username={SUPERUSER}"),
    *("--encoding=UTF8", "--locale=C.UTF-8"),
)


class Cluster(Daemon):
    """A PostgreSQL server. SIGQUIT ends it immediately."""

    POLITE = signal.SIGINT

    def __init__(self, binaries: Path, data: Path, log: Path, user: str | None) -> None:
        super().__init__(data, log, user)
        self.binaries = binaries
        self.url = f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str | Path]:
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.data if len(str(self.data)) < 80 else "",
            "fsync": "off",
        }
        return [
            *(self.binaries / "postgres", "-D", self.data, "-p", str(self.port)),
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def is_ready(self) -> bool:
        command = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-U", SUPERUSER]
        return subprocess.run([*command, "-p", str(self.port)]).returncode == 0


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
def running_cluster(number: int = 0) -> Iterator[Cluster]:
    """Starts Debian's PostgreSQL on an empty cluster, and removes it at the end.

    Clusters of different numbers differ in their system identifier, as those of strangers do.
    """
    binaries = find()
    user = unprivileged(SUPERUSER)
    with new_folder("notes-debian-") as folder:
        give(Path(folder), user)
        data = Path(folder) / "data"

        def initialize() -> None:
            subprocess.run(
                [binaries / "initdb", "-D", data, *OPTIONS],
                cwd="/",
                stdout=subprocess.DEVNULL,
                check=True,
                **as_user(user),
            )

        install(data, binaries / "postgres", (*OPTIONS, str(number)), initialize)
        cluster = Cluster(binaries, data, Path(folder) / "log", user)
        try:
            cluster.start()
            yield cluster
        finally:
            # Its data is removed, too.
            cluster.end(signal.SIGQUIT)
