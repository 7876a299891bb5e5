"""One connection to the server is silent: those who don't use it go on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import httpx2
import pytest

from tests.support.databases import SERVED, NewDatabase, fill
from tests.support.proxies import Proxy
from tests.support.servers import serving
from tests.support.waiting import poll

NOTE = {"text": "a", "completed": True}
# Each kind of request that shares queries.
REQUESTS: dict[str, Callable[[httpx2.Client], httpx2.Response]] = {
    "note": lambda client: client.get("/notes/1"),
    "page": lambda client: client.get("/notes/"),
    "long page": lambda client: client.get("/notes/?limit=1000"),
    "search": lambda client: client.get("/notes/?q=not"),
    "count": lambda client: client.get("/notes/", headers={"prefer": "count=exact"}),
    "create": lambda client: client.post("/notes/", json=NOTE),
    "ready": lambda client: client.get("/health/ready"),
}


class Service(NamedTuple):
    client: httpx2.Client
    proxy: Proxy


@pytest.fixture(scope="module", params=SERVED)
def service(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    url = new_database(request.param)
    fill(url, 2)
    log = tmp_path_factory.mktemp("service") / "log"
    # Nothing but the test ends a silent connection.
    patience = {f"DATABASE_{part}_TIMEOUT": "100" for part in ("CONNECT", "POOL", "STATEMENT")}
    with (
        closing(Proxy(url)) as proxy,
        serving(proxy.url, log, REQUEST_TIMEOUT="400", **patience) as client,
    ):
        yield Service(client, proxy)


@pytest.mark.parametrize("ask", REQUESTS.values(), ids=REQUESTS)
def test_a_silent_connection(
    service: Service, ask: Callable[[httpx2.Client], httpx2.Response]
) -> None:
    """While a request waits for a silent connection, others of its kind are answered."""
    client, proxy = service
    # Of the connections that are open, the request may take any.
    poll(lambda: ask(client).status_code == 200)
    with ThreadPoolExecutor() as threads:
        silent = [link for link in proxy.links if not link.held]
        proxy.hang()
        waiting = threads.submit(ask, client)
        poll(lambda: any(link.held for link in silent))
        try:
            for _ in range(3):
                assert ask(client).status_code == 200
            assert not waiting.done()
        finally:
            for link in proxy.links:
                link.cut()
        assert waiting.result().status_code in (200, 503)
