"""Servers that tests break and encrypt, and PgBouncer in front of PostgreSQL."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.support.daemons import PASSWORD, PATH, ROLE, Daemon, as_user, give, needs, unprivileged
from tests.support.databases import (
    UNREACHABLE,
    Run,
    create,
    drop,
    execute,
    kind_of,
    migrate,
    name_of,
    session,
)
from tests.support.debian import SUPERUSER, Cluster, running_cluster
from tests.support.mariadb import running_mariadb
from tests.support.servers import end, free_port
from tests.support.waiting import poll


def is_gone(pid: int) -> bool:
    """Whether all threads of a process have ended, also if its parent hasn't noticed yet."""
    return all(state(task) == "Z" for task in Path(f"/proc/{pid}/task").glob("*"))


def state(task: Path) -> str:
    """The state of a process or thread, by its folder in /proc; Z also if it is not there."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more. After SIGSTOP this takes a moment."""
    return all(state(task) in "TZ" for task in Path(f"/proc/{pid}/task").glob("*"))


@contextmanager
def connections(url: str, most: int = 1) -> Iterator[list[Run]]:
    """Opens as many connections as the server allows, and keeps them.

    Yields a function for each of them, which runs a statement and gives its first value.
    """
    with ExitStack() as stack:
        opened: list[Run] = []
        while len(opened) < most:
            try:
                opened.append(stack.enter_context(session(url)))
            except UNREACHABLE as error:
                if not is_full(error):
                    raise
                break
        yield opened


def is_full(error: Exception) -> bool:
    """Whether the error says that a server has too many connections."""
    return isinstance(error, asyncpg.TooManyConnectionsError) or error.args[:1] == (1040,)


class Server:
    """A server with a role that is no superuser, and a migrated database `template`."""

    # Statements of its kind. They count the role's connections, to any database or to one, and
    # those that wait for a lock on a table; tell what they do; and end them.
    BACKENDS: str
    OF_DATABASE: str
    WAITING: str
    ACTIVITY: str
    DISCONNECT: str

    def __init__(self, cluster: Daemon) -> None:
        self.cluster = cluster
        self.kind = kind_of(cluster.url)
        self.prepare()
        migrate(self.url("template"))

    def prepare(self) -> None:
        """Makes the role and the empty template."""
        raise NotImplementedError

    def url(self, database: str, host: str = "127.0.0.1", port: int | None = None) -> str:
        """The URL of a database, for the role."""
        port = port or self.cluster.port
        return f"{self.kind}://{ROLE}:{PASSWORD}@{host}:{port}/{database}"

    def of_superuser(self, url: str) -> str:
        """The same database, for the superuser."""
        netloc = urlsplit(self.cluster.url).netloc
        return urlsplit(url)._replace(netloc=netloc, query="").geturl()

    def execute(self, *statements: str) -> Any:
        return execute(self.cluster.url, *statements)

    def new_database(self, name: str = "") -> str:
        """Creates a migrated, empty database and returns its URL."""
        return self.url(name_of(create(self.cluster.url, "template", name)))

    def backends(self, url: str = "") -> int:
        """The number of connections that the role has, to the database or to any."""
        of_database = self.OF_DATABASE.format(name_of(url)) if url else ""
        return int(self.execute(self.BACKENDS + of_database))

    def activity(self) -> str:
        """The activity of the role's connections, for people."""
        return str(self.execute(self.ACTIVITY))

    def drop(self, database: str) -> None:
        """Drops a database that is in use."""
        drop(self.cluster.url, self.url(database))

    def disconnect_all(self) -> None:
        """Ends all connections of the role, and returns when they are gone."""
        self.execute(self.DISCONNECT)
        poll(lambda: not self.backends(), self.activity)

    def pids(self) -> list[int]:
        """The server's processes, beginning with the main one."""
        assert self.cluster.process is not None
        pid = self.cluster.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def crash(self) -> None:
        """Kills all processes at once, as a failing machine does."""
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.end(signal.SIGKILL)
        poll(lambda: all(map(is_gone, pids)))

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stops all processes in their tracks until the block ends."""
        self.signal(signal.SIGSTOP)
        try:
            poll(lambda: all(map(is_stopped, self.pids())))
            yield
        finally:
            self.signal(signal.SIGCONT)
            self.execute("SELECT 1")


class PostgresqlServer(Server):
    OF_ROLE = f"FROM pg_stat_activity a WHERE usename = '{ROLE}'"
    BACKENDS = f"SELECT count(*) {OF_ROLE}"
    OF_DATABASE = " AND datname = '{}'"
    WAITING = f"{BACKENDS} AND wait_event_type = 'Lock'"
    ACTIVITY = f"SELECT string_agg(row_to_json(a)::text, E'\\n') {OF_ROLE}"
    DISCONNECT = f"SELECT count(pg_terminate_backend(pid)) {OF_ROLE}"

    def prepare(self) -> None:
        self.execute(
            f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
            f"CREATE DATABASE template OWNER {ROLE}",
        )


class MysqlServer(Server):
    OF_ROLE = f"FROM information_schema.processlist WHERE user = '{ROLE}'"
    BACKENDS = f"SELECT count(*) {OF_ROLE}"
    OF_DATABASE = " AND db = '{}'"
    WAITING = f"{BACKENDS} AND state = 'Waiting for table metadata lock'"
    ACTIVITY = (
        "SELECT group_concat(concat_ws(' ', id, db, command, time_ms, state, info)"
        f" SEPARATOR '\\n') {OF_ROLE}"
    )
    DISCONNECT = f"KILL USER {ROLE}"

    def prepare(self) -> None:
        owns = f"GRANT ALL ON template.* TO {ROLE}@'127.0.0.1'"
        self.execute("CREATE DATABASE template", owns)


def write_for(cluster: Daemon, path: Path, text: str) -> None:
    """Writes a file that the server's user owns and nobody else reads."""
    path.write_text(text)
    path.chmod(0o600)
    give(path, cluster.user)


@contextmanager
def running_server(number: int = 0) -> Iterator[Server]:
    """Starts a server of 20 connections. It asks only the role for a password.

    `number` is that of `running_cluster`.
    """
    with running_cluster(number) as cluster:
        write_for(
            cluster,
            cluster.data / "pg_hba.conf",
            f"host all {ROLE} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n",
        )
        configure(cluster, max_connections="20")
        yield PostgresqlServer(cluster)


@contextmanager
def running_mysql_server() -> Iterator[Server]:
    """Starts a server of 20 connections, and one for the superuser."""
    with running_mariadb("--max-connections=20", "--max-user-connections=99") as mariadb:
        yield MysqlServer(mariadb)


def configure(cluster: Cluster, **options: str) -> None:
    """Changes the server's settings and starts it again."""
    with (cluster.data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
    cluster.end()
    cluster.start()


class Authority:
    """A certificate authority, by the command `openssl`.

    Its certificate follows RFC 5280. Another one, of the same key, lacks `keyUsage`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = folder / "ca.pem"
        self.file_without_usage = folder / "without_usage.pem"
        own = ("-x509", "-subj", "/CN=Tests", "-days", "2")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key")
        self._openssl("req", *own, *usage, *key, "-out", self.file.name)
        self._openssl("req", *own, "-key", "ca.key", "-out", self.file_without_usage.name)

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def sign(self, host: str) -> tuple[str, str]:
        """A certificate for a host, and its key."""
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", "host.key", "-out", "host.csr")
        self._openssl("req", "-new", *key, "-subj", f"/CN={host}")
        extensions = ["subjectAltName=DNS:" + host, "authorityKeyIdentifier=keyid"]
        (self.folder / "extensions").write_text("\n".join(extensions))
        ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        request = ("-req", "-in", "host.csr", "-extfile", "extensions", "-out", "host.pem")
        self._openssl("x509", *request, *ca)
        return (self.folder / "host.pem").read_text(), (self.folder / "host.key").read_text()


@contextmanager
def running_pgbouncer(
    server: Server, connections: int, beside: Daemon | None = None
) -> Iterator[int]:
    """Starts PgBouncer in transaction mode with this number of connections, and yields its port.

    It connects to the server, or to its copy `beside`.
    """
    needs("pgbouncer")
    port = free_port()
    user = unprivileged(SUPERUSER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="notes-pgbouncer-")))
        folder.chmod(0o755)
        write_for(server.cluster, folder / "users", f'"{ROLE}" "{PASSWORD}"\n')
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={(beside or server.cluster).port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = plain",
            f"auth_file = {folder / 'users'}",
            "pool_mode = transaction",
            f"default_pool_size = {connections}",
        ]
        write_for(server.cluster, folder / "ini", "\n".join(lines) + "\n")
        log = stack.enter_context((folder / "log").open("wb"))
        program = shutil.which("pgbouncer", path=PATH)
        process = subprocess.Popen(
            [str(program), str(folder / "ini")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **as_user(user),
        )
        try:
            poll(lambda: is_serving(server.url("template", port=port)), (folder / "log").read_text)
            yield port
        finally:
            end(process, signal.SIGINT)


def is_serving(url: str) -> bool:
    try:
        with connections(url):
            return True
    except UNREACHABLE:
        return False
