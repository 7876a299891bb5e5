"""Fixtures: real databases, migrated by Alembic, and real servers."""

import gc
import importlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from httpx2 import _urlparse, _urls
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from httpx2._transports import default as transports
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.support import databases, shared_servers
from tests.support.databases import KINDS, SERVED, NewDatabase
from tests.support.folders import memory
from tests.support.laws import LAWS
from tests.support.servers import running, started
from tests.support.shared_servers import OWN_POSTGRESQL, Shared, SharedServers, running_server
from tests.support.template import ADDRESSES, Process, has_pidfd, start_template

# Without the compiled files each process that starts would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine may take longer than the five seconds that httpx2 waits.
for _part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _part, 60)
# Each client would read all certificates of the system. No test uses one of them.
transports.create_ssl_context = cache(transports.create_ssl_context)  # type: ignore[attr-defined]
# Each request would parse its URL twice, a sixth of what it costs. Tests send to few URLs.
_urls.urlparse = _urlparse.urlparse = lru_cache(1000)(_urlparse.urlparse)  # type: ignore[attr-defined]

settings.register_profile("tests", LAWS)
settings.load_profile("tests")


SERVERS = pytest.StashKey[SharedServers]()

# Its tests share more than servers, and that takes long to make.
WHOLE = "tests/contract/test_clients.py"


def group_of(nodeid: str) -> str:
    """Tests of a module on one kind of database stay together, as they share its servers."""
    module, _, name = nodeid.partition("::")
    kinds = () if module == WHOLE else (kind for kind in KINDS if kind in name)
    return " ".join([module, *kinds])


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # It has no types.
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def import_share(config: pytest.Config) -> None:
    """Imports this worker's share of the tests. Otherwise each worker would compile all of them."""
    worker: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    first, count = int(worker["workerid"][2:]), worker["workercount"]
    chosen = [Path(argument).resolve() for argument in config.args]
    files = sorted((config.rootpath / "tests").rglob("test_*.py"))
    files = [file for file in files if any(file.is_relative_to(one) for one in chosen)]
    for file in files[first % count :: count]:
        parts = file.relative_to(config.rootpath).with_suffix("").parts
        # Collecting tells what is wrong with it.
        with suppress(Exception):
            importlib.import_module(".".join(parts))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What is collected stays to the end: Python looks for no garbage among it."""
    gc.disable()
    try:
        if hasattr(session.config, "workerinput"):
            import_share(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The tests write to memory, if there is enough."""
    if folder := memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


def pytest_sessionstart(session: pytest.Session) -> None:
    """The workers of a run fork one template."""
    ADDRESSES.extend(getattr(session.config, "workerinput", {}).get("templates", []))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Small groups come first: their tests are slow, and none should begin at the end.

    Tests of all kinds of database together are slower than those of one kind.
    """
    if hasattr(config, "workerinput"):
        groups = {item: group_of(item.nodeid) for item in items}
        sizes = Counter(groups.values())
        items.sort(key=lambda item: sizes[groups[item]] * (3 if " " in groups[item] else 1))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Many tests wait, so there are more workers than cores. A test alone needs none."""
    is_alone = any("::" in argument for argument in config.args)
    return 0 if is_alone else max(4, 3 * (os.cpu_count() or 1))


def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    servers = SharedServers()
    config.stash[SERVERS] = servers
    config.add_cleanup(servers.end)
    if has_pidfd():
        ADDRESSES.append(start_template())


def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["servers"] = node.config.stash[SERVERS].files
    node.workerinput["templates"] = ADDRESSES


@pytest.fixture(scope="session")
def shared_of(request: pytest.FixtureRequest) -> Callable[[str], Shared | None]:
    """What the processes of this run share of a kind of database; None without xdist."""
    files: dict[str, str] = getattr(request.config, "workerinput", {}).get("servers", {})

    @cache
    def get(kind: str) -> Shared | None:
        return shared_servers.read(files[kind]) if kind in files else None

    return get


@pytest.fixture(scope="session")
def server_of(shared_of: Callable[[str], Shared | None]) -> Iterator[Callable[[str], str]]:
    """Gives the URL of a server of a kind. Without xdist it starts when it is needed first."""
    with ExitStack() as stack:

        @cache
        def get(kind: str) -> str:
            found = shared_of(kind)
            return found.server_url if found else stack.enter_context(running_server(kind))

        yield get


@pytest.fixture(scope="session")
def new_empty_database(
    server_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewDatabase]:
    """Makes databases without tables, or copies of others, and gives their URLs."""
    created: list[str] = []
    stack = ExitStack()

    @cache
    def fetch_of(kind: str) -> databases.Fetch:
        return stack.enter_context(databases.fetching(server_of(kind)))

    def new(kind: str, template: str = "") -> str:
        if kind == "sqlite":
            folder = tmp_path_factory.mktemp("database")
            if template:
                shutil.copy(template.removeprefix("sqlite:///"), folder / "notes.db")
            return f"sqlite:///{folder}/notes.db"
        name = databases.name_of(template)
        created.append(databases.create_by(fetch_of(kind), server_of(kind), name))
        return created[-1]

    with stack:
        yield new
    # The other servers are removed as a whole.
    for url in created if OWN_POSTGRESQL else ():
        databases.drop(server_of(databases.kind_of(url)), url)


@pytest.fixture(scope="session")
def new_database(
    new_empty_database: NewDatabase, shared_of: Callable[[str], Shared | None]
) -> NewDatabase:
    """Makes fresh databases, migrated and empty, and gives their URLs."""

    @cache
    def template_of(kind: str) -> str:
        if found := shared_of(kind):
            return found.template
        template = new_empty_database(kind)
        databases.migrate(template)
        return template

    def new(kind: str) -> str:
        return new_empty_database(kind, template_of(kind))

    return new


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, new_database: NewDatabase) -> str:
    """A fresh database of each kind in turn."""
    return new_database(request.param)


@pytest.fixture(params=SERVED)
def served_database_url(request: pytest.FixtureRequest, new_database: NewDatabase) -> str:
    """A fresh database of each kind of server in turn."""
    return new_database(request.param)


@pytest.fixture(params=KINDS)
def empty_database(request: pytest.FixtureRequest, new_empty_database: NewDatabase) -> str:
    """A database of each kind in turn, without any table."""
    return new_empty_database(request.param)


@pytest.fixture(scope="module", params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn, for all tests of a module."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared_database_url(database_kind: str, new_database: NewDatabase) -> str:
    """A database of each kind in turn, which the tests of a module share."""
    return new_database(database_kind)


class Server(NamedTuple):
    """The service on a database that all tests share, one after the other."""

    database_url: str
    client: httpx2.Client
    process: Process
    log: Path
    # Runs a statement on the database, beside the service.
    run: databases.Run


@pytest.fixture(scope="session")
def server_on(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    """The service on a database of a kind. It starts when it is wanted first, and then stays."""
    servers: list[Server] = []
    with ExitStack() as stack:

        @cache
        def get(kind: str) -> Server:
            database_url = new_database(kind)
            log = tmp_path_factory.mktemp("server") / "service.log"
            options = "--timeout-keep-alive=600"
            url, process = stack.enter_context(started(database_url, log, options))
            client = stack.enter_context(httpx2.Client(base_url=url, timeout=30))
            run = stack.enter_context(databases.session(database_url))
            servers.append(Server(database_url, client, process, log, run))
            return servers[-1]

        yield get
    for server in servers:
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def server(database_kind: str, server_on: Callable[[str], Server]) -> Iterator[Server]:
    """The service on an empty database of each kind in turn. A module may leave rows, no more."""
    server = server_on(database_kind)
    assert server.process.poll() is None, server.log.read_text()
    databases.clear_by(server.run, database_kind)
    before = server.log.stat().st_size
    yield server
    assert b"Traceback" not in server.log.read_bytes()[before:]


@pytest.fixture
def service(server: Server) -> httpx2.Client:
    """A client of the service, which holds nothing."""
    databases.clear_by(server.run, databases.kind_of(server.database_url))
    return server.client


@pytest.fixture(scope="module")
def processes(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The URLs of two processes on one database, of each kind in turn."""
    logs = tmp_path_factory.mktemp("processes")
    with (
        running(shared_database_url, logs / "1.log") as one,
        running(shared_database_url, logs / "2.log") as two,
    ):
        yield [one, two]
