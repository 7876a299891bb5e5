"""PostgreSQL servers that tests break and encrypt, and PgBouncer in front of them."""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.databases import execute, migrate
from tests.support.debian import SUPERUSER, Cluster, running_cluster, unprivileged
from tests.support.servers import end, free_port
from tests.support.waiting import poll

ROLE = "notes"
PASSWORD = "right"


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also if its parent hasn't noticed yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def connections(url: str, most: int = 1) -> Iterator[list[Callable[[str], Any]]]:
    """Opens as many connections as the server allows, and keeps them.

    Yields a function for each of them, which runs a statement and gives its first value.
    """
    loop = asyncio.new_event_loop()
    opened: list[asyncpg.Connection[asyncpg.Record]] = []

    def running(connection: "asyncpg.Connection[asyncpg.Record]") -> Callable[[str], Any]:
        return lambda sql: loop.run_until_complete(connection.fetchval(sql))

    with closing(loop):
        try:
            with suppress(asyncpg.TooManyConnectionsError):
                while len(opened) < most:
                    opened.append(loop.run_until_complete(asyncpg.connect(url)))
            yield [running(connection) for connection in opened]
        finally:
            for connection in opened:
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    loop.run_until_complete(connection.close(timeout=5))


class Server:
    """A PostgreSQL server with a role that is no superuser and has a password."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        self.execute(f"CREATE DATABASE template OWNER {ROLE}")
        migrate(self.url("template"))

    def url(self, database: str, host: str = "127.0.0.1", port: int | None = None) -> str:
        """The URL of a database, for the role."""
        port = port or self.cluster.port
        return f"postgresql://{ROLE}:{PASSWORD}@{host}:{port}/{database}"

    def of_superuser(self, url: str) -> str:
        """The same database, for the superuser."""
        netloc = f"{SUPERUSER}@127.0.0.1:{self.cluster.port}"
        return urlsplit(url)._replace(netloc=netloc, query="").geturl()

    def execute(self, *statements: str) -> Any:
        return execute(self.cluster.url, *statements)

    def new_database(self, name: str = "") -> str:
        """Creates a migrated, empty database and returns its URL."""
        name = name or f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template")
        return self.url(name)

    def backends(self, url: str = "") -> int:
        """The number of connections that the role has, to the database or to any."""
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'"
        database = urlsplit(url).path[1:]
        return int(self.execute(f"{sql} AND datname = '{database}'" if database else sql))

    def activity(self) -> str:
        """The activity of the role's connections, for people."""
        sql = "SELECT string_agg(row_to_json(a)::text, E'\\n') FROM pg_stat_activity a"
        return str(self.execute(f"{sql} WHERE usename = '{ROLE}'"))

    def disconnect_all(self) -> None:
        """Ends all connections of the role, and returns when they are gone."""
        self.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE usename = '{ROLE}'"
        )
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
            yield
        finally:
            self.signal(signal.SIGCONT)
            self.execute("SELECT 1")


def write_for(cluster: Cluster, path: Path, text: str) -> None:
    """Writes a file that the server's user owns and nobody else reads."""
    path.write_text(text)
    path.chmod(0o600)
    if cluster.user is not None:
        account = pwd.getpwnam(cluster.user)
        os.chown(path, account.pw_uid, account.pw_gid)


@contextmanager
def running_server() -> Iterator[Server]:
    """Starts a server of 20 connections. It asks only the role for a password."""
    with running_cluster() as cluster:
        write_for(
            cluster,
            cluster.data / "pg_hba.conf",
            f"host all {ROLE} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n",
        )
        configure(cluster, max_connections="20")
        yield Server(cluster)


def configure(cluster: Cluster, **options: str) -> None:
    """Changes the server's settings and starts it again."""
    with (cluster.data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
    cluster.end(signal.SIGINT)
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


def needs(*programs: str) -> None:
    """Skips the test if a program is missing. In CI that is a failure."""
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            assert "CI" not in os.environ, "nothing is skipped in CI"
            pytest.skip(f"Debian's {program} is needed")


@contextmanager
def running_pgbouncer(server: Server, connections: int) -> Iterator[int]:
    """Starts PgBouncer in transaction mode with so many connections, and yields its port."""
    needs("pgbouncer")
    port = free_port()
    user = unprivileged(SUPERUSER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="notes-pgbouncer-")))
        folder.chmod(0o755)
        write_for(server.cluster, folder / "users", f'"{ROLE}" "{PASSWORD}"\n')
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={server.cluster.port}",
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
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        process = subprocess.Popen(
            [str(program), str(folder / "ini")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            user=user,
            group=user and pwd.getpwnam(user).pw_gid,
            extra_groups=user and [],
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
    except (OSError, asyncpg.PostgresError):
        return False
