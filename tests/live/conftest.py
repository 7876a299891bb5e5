"""Services whose notes are followed."""

from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import pytest

from tests.support import databases
from tests.support.databases import NewDatabase
from tests.support.following import KINDS, live
from tests.support.servers import running


class Followed(NamedTuple):
    """A database whose changes are recorded, and the URL of the notes of each of two services."""

    database_url: str
    notes: str
    others: str
    client: httpx2.Client
    # Runs a statement on the database, beside the services.
    run: databases.Run


@pytest.fixture(scope="module", params=KINDS)
def followed_url(request: pytest.FixtureRequest, new_database: NewDatabase) -> str:
    """A database of each kind that records changes."""
    return new_database(request.param)


@pytest.fixture(scope="module")
def followed(followed_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """Two services on one database."""
    url = followed_url
    assert "notes: on" in live(url).splitlines()
    logs = tmp_path_factory.mktemp("followed")
    with (
        running(url, logs / "1.log", LIVE="1") as one,
        running(url, logs / "2.log", LIVE="1") as other,
        httpx2.Client(base_url=one, timeout=60) as client,
        databases.session(url) as run,
    ):
        yield Followed(url, f"{one}/notes", f"{other}/notes", client, run)
    for log in logs.iterdir():
        assert "Traceback" not in log.read_text()
