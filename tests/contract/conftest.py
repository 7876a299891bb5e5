"""The service beside the FastAPI example."""

from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import NamedTuple

import pytest

from tests.support.databases import KINDS, NewDatabase
from tests.support.raw import connect
from tests.support.servers import running


class Pair(NamedTuple):
    """Connections to the service and to the FastAPI example, on databases of the same kind."""

    service: HTTPConnection
    twin: HTTPConnection


@pytest.fixture(scope="session", params=KINDS)
def pair(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
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
