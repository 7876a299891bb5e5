"""A template process: it has imported the libraries, and forks whatever the tests start.

Imports are most of what a start costs. Of the service the template imports only what depends on
nothing of its process (settings, limits, random numbers). A fork in another folder imports its own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

# What the service, its commands, its migrations and uvicorn import.
LIBRARIES = (
    "aiosqlite",
    "alembic.autogenerate",
    "alembic.config",
    "alembic.ddl",
    "apispec.ext.marshmallow",
    "asyncmy",
    "asyncpg",
    "click",
    "ctypes",
    "databases.backends.sqlite",
    "databases.core",
    "encodings.idna",
    "environs",
    "httptools",
    "importlib.resources",
    "logging.config",
    "marshmallow",
    "multiprocessing",
    "orjson",
    "prometheus_client",
    "prometheus_client.multiprocess",
    "sqlalchemy.dialects.mysql.asyncmy",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.ext.asyncio",
    "starlette.applications",
    "starlette.middleware.cors",
    "uuid",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.loops.uvloop",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "uvloop",
)
SAME_EVERYWHERE = (
    "service.hosts",
    "service.live.positions",
    "service.log_lines",
    "service.one_write",
    "service.openapi.parts",
    "service.resources.definition",
    "service.resources.descriptions",
    "service.resources.fitting",
    "service.resources.orders",
    "service.revisions",
    "service.schemas.compiled",
    "service.schemas.fields",
    "service.schemas.slices",
    "service.schemas.validation",
    "service.tables",
    "service.web.conditions",
    "service.web.headers",
    "service.web.json_writer",
    "service.web.paths",
    "service.web.preferences",
    "service.web.responses",
)
MODULES = ("alembic", "service", "service.settings", "uvicorn")
MOST_BYTES = 1 << 17
ROOT = Path(__file__).parents[2]

# The address of the run's template, if it has one.
ADDRESSES: list[str] = []


class Fork:
    """A child of the template, with those methods of `subprocess.Popen` that the tests use."""

    def __init__(self, reports: int) -> None:
        # Unbuffered: `select` knows nothing of what a buffer holds.
        self._reports = os.fdopen(reports, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = self._next()

    def _next(self) -> int:
        line = self._reports.readline()
        assert line, "the template process has ended"
        return int(line)

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, after the end. subprocess.TimeoutExpired after some seconds."""
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._next()
            self._reports.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            # It may end now.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | Fork


def can_fork(command: Sequence[str]) -> bool:
    """Whether the template can run the command as Python itself would: a module, or code.

    uvicorn starts several workers by Python itself.
    """
    if command[0] != sys.executable or not has_pidfd():
        return False
    return command[1] == "-c" or (command[1] == "-m" and command[2] in MODULES)


@cache
def has_pidfd() -> bool:
    """Whether a process can wait for a child and for messages at once: on Linux, if it may."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def fork(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    start_new_session: bool = False,
) -> Fork:
    """Runs a command that `can_fork`, with two files for its output, and nothing to read."""
    reports, reporting = os.pipe()
    request = json.dumps([command[1:], str(cwd), dict(env), start_new_session]).encode()
    assert len(request) < MOST_BYTES
    socket.send_fds(_template(), [request], [stdout, stderr, reporting])
    os.close(reporting)
    return Fork(reports)


@cache
def _template() -> socket.socket:
    """A connection to the template that another process has started, or to one of our own."""
    template = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    template.connect(ADDRESSES[0] if ADDRESSES else start_template())
    atexit.register(template.close)
    return template


def start_template() -> str:
    """Starts a template, which ends with this process, and gives its address."""
    # The path of a socket has at most 107 bytes.
    folder = tempfile.TemporaryDirectory(prefix="notes-template-", dir="/tmp")
    starts, starter = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mailbox:
        mailbox.bind(f"{folder.name}/mailbox")
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(mailbox.fileno()), str(starts)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[mailbox.fileno(), starts],
        )
    os.close(starts)

    def end() -> None:
        os.close(starter)
        process.wait(30)
        folder.cleanup()

    atexit.register(end)
    return f"{folder.name}/mailbox"


class Request(NamedTuple):
    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    start_new_session: bool


def serve(mailbox: socket.socket, starter: int) -> Request | None:
    """Forks for each request. Returns it in the child.

    Returns None when the starter has ended, and ends all that is still running.
    """
    children: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(mailbox, select.POLLIN)
    poll.register(starter)
    while True:
        for ready, _ in poll.poll():
            if ready == starter:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            if ready in children:
                poll.unregister(ready)
                pid, reporting = children.pop(ready)
                _, status = os.waitpid(pid, 0)
                report(reporting, os.waitstatus_to_exitcode(status))
                os.close(reporting)
                os.close(ready)
                continue
            message, files, _, _ = socket.recv_fds(mailbox, MOST_BYTES, 3)
            pid = os.fork()
            if pid == 0:
                os.dup2(files[0], 1)
                os.dup2(files[1], 2)
                mailbox.detach()
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                return Request(*json.loads(message))
            report(files[2], pid)
            for file in files[:2]:
                os.close(file)
            ending = os.pidfd_open(pid)
            children[ending] = (pid, files[2])
            poll.register(ending, select.POLLIN)


def report(reporting: int, number: int) -> None:
    # The tests may have forgotten the process.
    with suppress(BrokenPipeError):
        os.write(reporting, b"%d\n" % number)


def run(request: Request) -> None:
    """Does what `python -m` or `python -c` does, in a process that was forked."""
    if request.start_new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    tempfile.tempdir = None
    os.chdir(request.cwd)
    if request.cwd != str(ROOT):
        for name in [name for name in sys.modules if name.partition(".")[0] == "service"]:
            del sys.modules[name]
    how, what, *sys.argv[1:] = request.arguments
    if how == "-c":
        sys.path[0], sys.argv[0] = "", how
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(what, vars(main))
    else:
        sys.path[0] = request.cwd
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def end(statuses: list[int]) -> None:
    """Ends a fork with its last status as Python does, but leaves all objects to the system.

    To free each of them, Python would copy the memory that the forks share.
    """
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[-1])


def run_to_the_end(request: Request, statuses: list[int]) -> None:
    """Does what Python does, and notes the exit status unless it is that of a signal."""
    try:
        run(request)
    except SystemExit as exit_:
        is_number = exit_.code is None or isinstance(exit_.code, int)
        statuses.append(int(exit_.code or 0) & 255 if is_number else 1)
        raise
    except Exception:
        statuses.append(1)
        raise
    statuses.append(0)


def read_code() -> None:
    """Reads the code of the service and its migrations for all forks. A copy has other files."""
    codes = {}
    for file in (*ROOT.glob("service/**/*.py"), *ROOT.glob("alembic/**/*.py")):
        codes[str(file)] = SourceFileLoader("", str(file)).get_code("")
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        return codes.get(self.path) or original(self, name)

    setattr(SourceFileLoader, "get_code", get_code)  # noqa: B010 - mypy refuses an assignment


def main() -> None:
    statuses: list[int] = []
    # The first that is registered is called last.
    atexit.register(end, statuses)
    mailbox = socket.socket(fileno=int(sys.argv[1]))
    for name in LIBRARIES + SAME_EVERYWHERE:
        importlib.import_module(name)
    # Whatever else is loaded, all forks would share.
    loaded = {name for name in sys.modules if name.startswith("service.")}
    own = {name for name in loaded if not hasattr(sys.modules[name], "__path__")}
    assert own == set(SAME_EVERYWHERE), own ^ set(SAME_EVERYWHERE)
    read_code()
    # A collection would write to memory that the forks share.
    gc.freeze()
    # The tests still need it to end what they have started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = serve(mailbox, int(sys.argv[2]))
    if request is not None:
        run_to_the_end(request, statuses)


if __name__ == "__main__":
    main()
