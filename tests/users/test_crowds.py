"""Many users follow at the same time."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support import databases
from tests.support.crowds import crowd, read
from tests.support.databases import NewDatabase
from tests.support.following import live
from tests.support.metrics import metric
from tests.support.operating import add_user
from tests.support.proxies import Proxy
from tests.support.servers import nowhere, running
from tests.support.watched import watching


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_streams_stay_while_the_database_is_away(
    new_database: NewDatabase, tmp_path: Path, how: str
) -> None:
    """Followers get heartbeats meanwhile, and all that happened when it is back."""
    url = new_database("postgresql")
    live(url)
    token = add_user(url, "bob")
    # A look at the database has time enough to fail.
    waits = [f"DATABASE_{wait}_TIMEOUT" for wait in ("CONNECT", "POOL", "STATEMENT")]
    users = {"ACCESS": "token", "ACCESS_CACHE_SECONDS": "1"}
    variables = {"REQUEST_TIMEOUT": "6", **users, **dict.fromkeys(waits, "0.5")}
    with (
        closing(Proxy(url)) as proxy,
        databases.session(url) as run,
        running(proxy.url, tmp_path / "log", LIVE="1", **variables) as service,
        crowd(service, 5, f"Authorization: Bearer {token}") as clients,
    ):
        run("INSERT INTO notes (text, completed) VALUES ('before', false)")
        read(clients, b'"text":"before"', 1)
        with proxy.hanging() if how == "hangs" else refusing(proxy):
            run("INSERT INTO notes (text, completed) VALUES ('meanwhile', false)")
            # This number takes longer than REQUEST_TIMEOUT.
            read(clients, b": \n\n", 3)
        read(clients, b'"text":"meanwhile"', 1)
        run("INSERT INTO notes (text, completed) VALUES ('after', false)")
        read(clients, b'"text":"after"', 1)
    text = (tmp_path / "log").read_text()
    assert text.count("followers wait: ") == 1
    assert "Traceback" not in text


@contextmanager
def refusing(proxy: Proxy) -> Iterator[None]:
    """Cuts the connections to the database, and lets none begin."""
    target, proxy.target = proxy.target, nowhere()
    for link in proxy.links:
        link.cut()
    yield
    proxy.target = target


def test_followers_ask_together(new_database: NewDatabase, tmp_path: Path) -> None:
    """A hundred followers cost the database what one does, also with users of their own."""
    url = new_database("postgresql")
    live(url)
    tokens = [add_user(url, name) for name in ("bob", "carol")]
    owner = "(SELECT id FROM users WHERE username = '{}')"
    with (
        closing(Proxy(url)) as proxy,
        databases.session(url) as run,
        watching(proxy.url, tmp_path / "log", LIVE="1", ACCESS="private") as service,
        crowd(service.url, 50, f"Authorization: Bearer {tokens[0]}") as bobs,
        crowd(service.url, 50, f"Authorization: Bearer {tokens[1]}") as carols,
    ):
        before = proxy.asked - 4 * queries(service.url)
        for number in range(20):
            name = ("bob", "carol")[number % 2]
            run(
                "INSERT INTO notes (text, completed, owner_id)"
                f" VALUES ('{name} {number}', false, {owner.format(name)})"
            )
            read((bobs, carols)[number % 2], f'"{name} {number}"'.encode(), 1)
        # A query may be a transaction of four statements.
        assert proxy.asked - 4 * queries(service.url) < before + 100
        for clients in (bobs, carols):
            for client in clients:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)


def queries(url: str) -> int:
    """The number of queries that followers have shared."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        shared = ("follow_notes", "get_active")
        counts = [metric(client, "coalesced_batch_size_count", query=one) for one in shared]
    return int(sum(counts))
