"""The usual operations of each resource of the service, and of the shop, on each database."""

import sys
from collections.abc import Iterator

import httpx2
import pytest

from service.app import document
from tests.conftest import Server
from tests.resources.conftest import Shop
from tests.support import shop
from tests.support.databases import run
from tests.support.servers import serving
from tests.support.usual import LAWS, Law, Usual, empty, find


def test_notes_have_all_usual_operations() -> None:
    """The laws find the resources that they are about, among them notes."""
    assert "/notes/" in [usual.path for usual in find(document)]


@pytest.fixture(scope="module")
def of_user(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client with a token, for resources whose items have owners. It has the same database."""
    command = (sys.executable, "-m", "service", "users", "add", "ann")
    added = run(*command, DATABASE_URL=server.database_url)
    assert added.returncode == 0, added.stderr
    log = tmp_path_factory.mktemp("user") / "service.log"
    with serving(server.database_url, log, ACCESS="token") as client:
        client.headers["authorization"] = f"Bearer {added.stdout.strip()}"
        yield client


@pytest.mark.parametrize("usual", find(document), ids=lambda usual: usual.path)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_usual_operations(
    law: Law, usual: Usual, server: Server, request: pytest.FixtureRequest
) -> None:
    """What holds for each resource; the law says what."""
    client = server.client
    if client.get(usual.path).status_code == 401:
        client = request.getfixturevalue("of_user")
    empty(server.database_url, usual)
    law(client, usual)


@pytest.mark.parametrize("usual", find(shop.document), ids=lambda usual: usual.path)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_usual_operations_of_the_shop(law: Law, usual: Usual, open_shop: Shop) -> None:
    """What holds for each resource holds for those that use what notes don't."""
    empty(open_shop.database_url, usual)
    law(open_shop.client, usual)
