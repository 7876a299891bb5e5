"""PostgreSQL nodes under Patroni and etcd: a primary, and standbys that follow it."""

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import asyncpg
import psutil

from tests.support.daemons import needs, unprivileged
from tests.support.databases import execute
from tests.support.debian import SUPERUSER, find
from tests.support.folders import new_folder
from tests.support.servers import end, free_port
from tests.support.waiting import poll

# The shortest lease that Patroni takes, in seconds.
LEASE = 20
ROLE = "notes"
# Seconds between two looks at nodes, which cost them more than the wait.
PAUSE = 0.5


class Node:
    """A PostgreSQL server, and the Patroni that starts, promotes and demotes it."""

    def __init__(self, name: str, folder: Path, etcd: int) -> None:
        self.name = name
        self.folder = folder
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self._api = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._configuration = folder / f"{name}.yml"
        # JSON is YAML.
        self._configuration.write_text(json.dumps(self._configured(etcd)))

    def _configured(self, etcd: int) -> dict[str, Any]:
        # Servers that are killed leave their data to the system, so nothing waits for the disk.
        parameters = {"fsync": "off", "max_connections": 40, "unix_socket_directories": ""}
        return {
            "scope": "notes",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self._api}"},
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": LEASE,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    # A primary that crashed is replaced at once, not started again.
                    "primary_start_timeout": 0,
                    "synchronous_mode": "on",
                    "synchronous_mode_strict": "on",
                    "postgresql": {"use_pg_rewind": True, "parameters": parameters},
                },
                "initdb": [
                    {"encoding": "UTF8"},
                    {"locale": "C.UTF-8"},
                    {"auth": "trust"},
                    "no-sync",
                ],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": str(find()),
                "basebackup": ["no-sync", {"checkpoint": "fast"}],
                "authentication": {
                    "superuser": {"username": SUPERUSER},
                    "replication": {"username": SUPERUSER},
                },
                "pg_hba": [
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
            },
        }

    def start(self) -> None:
        """Starts Patroni, which starts PostgreSQL."""
        command = [sys.executable, "-m", "patroni", str(self._configuration)]
        if user := unprivileged(SUPERUSER):
            account = pwd.getpwnam(user)
            ids = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
            # Python's own files may be closed to others than root.
            reads = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
            command = ["setpriv", *ids, *reads, *command]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )

    def url(self, database: str, user: str = ROLE) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Patroni's answer; empty if there is none."""
        url = f"http://127.0.0.1:{self._api}{path}"
        data = json.dumps(body).encode() if body else None
        try:
            with urlopen(Request(url, data), timeout=30) as answer:
                text = answer.read().decode()
        except (URLError, TimeoutError, ConnectionError):
            return {}
        try:
            return dict(json.loads(text))
        except ValueError:
            return {"text": text}

    def is_primary(self) -> bool:
        """Whether the server takes writes. False if it doesn't answer."""
        try:
            return execute(self.url("postgres", SUPERUSER), "SELECT pg_is_in_recovery()") is False
        except (OSError, asyncpg.PostgresError):
            return False

    def pids(self) -> list[int]:
        """PostgreSQL's processes, beginning with the main one."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all of PostgreSQL's processes."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self) -> None:
        """Stops Patroni and PostgreSQL in their tracks."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self.signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kills Patroni, PostgreSQL and their helpers. Their data are not needed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

        def is_over() -> bool:
            found = [
                process
                for process in psutil.process_iter(["cmdline"])
                if str(self.data) in " ".join(process.info["cmdline"] or ())
            ]
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    for one in (*process.children(), process):
                        one.kill()
            return not found

        poll(is_over, pause=0.2)


class Nodes:
    """The nodes, in no order."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def url(self, database: str) -> str:
        """The URL with all hosts, as the service takes it."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{ROLE}@{hosts}/{database}"

    def primary(self) -> Node:
        """The node that takes writes, as soon as there is one."""
        found: list[Node] = []

        def look() -> bool:
            found[:] = [node for node in self.nodes if node.is_primary()]
            return len(found) == 1

        poll(look, self.logs, PAUSE)
        return found[0]

    def wait_for_another(self, primary: Node) -> None:
        """Returns when another node than the former primary takes writes."""
        others = [node for node in self.nodes if node is not primary]
        poll(lambda: any(node.is_primary() for node in others), self.logs, PAUSE)

    def roles(self) -> dict[str, str]:
        """What Patroni says of each node that runs: leader, replica or sync_standby."""
        for node in self.nodes:
            members = node.ask("/cluster").get("members", [])
            if members:
                return {
                    member["name"]: member["role"]
                    for member in members
                    if member["state"] in ("running", "streaming")
                }
        return {}

    def wait_until_whole(self) -> None:
        """Returns when all nodes are there, one of them a synchronous standby."""
        expected = ["leader", *["replica"] * (len(self.nodes) - 2), "sync_standby"]
        poll(lambda: sorted(self.roles().values()) == expected, self.logs, PAUSE)

    def logs(self) -> str:
        return "\n".join(f"{node.name}:\n{node.log.read_text()[-5000:]}" for node in self.nodes)


@contextmanager
def running_etcd(folder: Path) -> Iterator[int]:
    """Starts etcd, and yields its port."""
    needs("etcd")
    port, peers = free_port(), free_port()
    with (folder / "etcd.log").open("wb") as output:
        process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(folder / "etcd")),
                *("--listen-client-urls", f"http://127.0.0.1:{port}"),
                *("--advertise-client-urls", f"http://127.0.0.1:{port}"),
                *("--listen-peer-urls", f"http://127.0.0.1:{peers}"),
                *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peers}"),
                *("--initial-cluster", f"default=http://127.0.0.1:{peers}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield port
    finally:
        end(process)


@contextmanager
def running_nodes(count: int = 3) -> Iterator[Nodes]:
    """Starts nodes with one synchronous standby, and removes them at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(new_folder("notes-nodes-")))
        etcd = stack.enter_context(running_etcd(folder))
        if user := unprivileged(SUPERUSER):
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        nodes = Nodes([Node(f"node{number}", folder, etcd) for number in range(count)])
        for node in nodes.nodes:
            stack.callback(node.end)
            node.start()
        nodes.wait_until_whole()
        yield nodes
