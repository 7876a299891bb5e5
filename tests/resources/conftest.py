"""Services of resources that use what notes don't: a library and a shop."""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateTable

from tests.support import databases, shop
from tests.support.books import metadata
from tests.support.databases import KINDS, ROOT, NewDatabase, kind_of
from tests.support.servers import serving

DIALECTS: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mysql": mysql}


def create_tables(url: str) -> None:
    for table in metadata.sorted_tables:
        ddl = str(CreateTable(table).compile(dialect=DIALECTS[kind_of(url)].dialect()))
        databases.execute(url, ddl)


@pytest.fixture(scope="module", params=KINDS)
def database(request: pytest.FixtureRequest, new_database: NewDatabase) -> str:
    """A database of each kind with tables for authors and books."""
    url = new_database(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "alembic"))
        patch.setenv("DATABASE_URL", url)
        if request.param == "mysql":
            # It says how MySQL writes types.
            importlib.import_module("migrating_mysql")
        create_tables(url)
    return url


@pytest.fixture(scope="module")
def library(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A service of authors and books."""
    log = tmp_path_factory.mktemp("library") / "log"
    with serving(database, log, app="tests.support.books:app", DATABASE_POOL_MAX="10") as client:
        yield client


class Shop(NamedTuple):
    database_url: str
    client: httpx2.Client


@pytest.fixture(scope="module", params=KINDS)
def open_shop(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """The shop on a database of each kind in turn."""
    url = new_database(request.param)
    shop.create_tables(url)
    log = tmp_path_factory.mktemp("shop") / "service.log"
    with serving(url, log, app="tests.support.shop:app") as client:
        yield Shop(url, client)


@pytest.fixture
def repairs(open_shop: Shop) -> httpx2.Client:
    """A client of the shop, which holds no repair."""
    databases.execute(open_shop.database_url, "DELETE FROM repairs")
    return open_shop.client
