"""MariaDB servers that tests may configure, crash and start again."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemons import (
    PASSWORD,
    ROLE,
    Daemon,
    as_user,
    give,
    install,
    needs,
    unprivileged,
)
from tests.support.databases import KINDS, UNREACHABLE, execute
from tests.support.folders import new_folder

USER = "nobody"
# Neither Debian's settings nor the administrator's. The file that a transaction is written to at
# its commit is not synchronized with the disk.
COMMON = (
    "--no-defaults",
    "--skip-name-resolve",
    "--innodb-flush-method=nosync",
    "--innodb-log-file-size=16M",
)
INSTALLATION = (*COMMON, "--auth-root-authentication-method=normal", "--skip-test-db")


class Mariadb(Daemon):
    """A MariaDB server. The role owns all databases named `test_…`, and nothing else."""

    POLITE = signal.SIGTERM

    def __init__(self, data: Path, log: Path, user: str | None, *options: str) -> None:
        super().__init__(data, log, user)
        self.options = options
        self.url = f"mysql://root@127.0.0.1:{self.port}/"
        self.roles_url = f"mysql://{ROLE}:{PASSWORD}@127.0.0.1:{self.port}/"

    def command(self) -> Sequence[str | Path]:
        return [
            *("/usr/sbin/mariadbd", *COMMON, f"--datadir={self.data}"),
            # A server that starts removes all temporary tables that are there.
            f"--tmpdir={self.data.parent}",
            *("--bind-address=127.0.0.1", f"--port={self.port}", "--socket=socket"),
            *("--innodb-buffer-pool-size=64M", "--innodb-buffer-pool-dump-at-shutdown=off"),
            *self.options,
        ]

    def is_ready(self) -> bool:
        try:
            execute(self.url, "SELECT 1")
        except UNREACHABLE:
            return False
        return True


@contextmanager
def running_mariadb(*options: str) -> Iterator[Mariadb]:
    """Starts a server without databases, and removes it at the end."""
    if "mysql" not in KINDS:
        pytest.skip("MySQL is not among the databases")
    needs("mariadbd", "mariadb-install-db", "my_print_defaults")
    user = unprivileged(USER)
    with new_folder("notes-mariadb-") as name:
        folder = Path(name)
        give(folder, user)

        def initialize() -> None:
            installed = subprocess.run(
                ["mariadb-install-db", *INSTALLATION, f"--datadir={folder / 'data'}"],
                cwd="/",
                env=os.environ | {"TMPDIR": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                **as_user(user),
            )
            assert installed.returncode == 0, installed.stdout

        install(folder / "data", Path("/usr/sbin/mariadbd"), INSTALLATION, initialize)
        server = Mariadb(folder / "data", folder / "log", user, *options)
        try:
            server.start()
            execute(
                server.url,
                f"CREATE USER {ROLE}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
                rf"GRANT ALL ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
            )
            yield server
        finally:
            # Its data is removed, too.
            server.end(signal.SIGKILL)
