"""Several PostgreSQL servers with a PgBouncer beside each: a switchover and a failover.

PgBouncer keeps what its server said at the first login, and its clients when the server ends.
"""

import signal
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.database.test_failover import running_copy, several
from tests.support.clusters import running_pgbouncer, running_server
from tests.support.databases import execute
from tests.support.debian import Cluster
from tests.support.servers import serving
from tests.support.waiting import poll

NOTE = {"text": "new", "completed": True}
# A host that answers nothing is given up soon.
OPTIONS = {
    "DATABASE_STATEMENT_CACHE": "0",
    "DATABASE_POOL_MAX": "2",
    "DATABASE_CONNECT_TIMEOUT": "2",
    "DATABASE_STATEMENT_TIMEOUT": "2",
}


def test_pgbouncer_beside_each_of_two_servers(tmp_path: Path) -> None:
    """After a switchover and after a crash the new primary serves, and no request is a 500."""
    with running_server() as server, ExitStack() as stack:
        first = server.cluster
        assert isinstance(first, Cluster)
        first.end(signal.SIGINT)
        second = stack.enter_context(running_copy(first, "standby.signal"))
        first.start()
        ports = [
            stack.enter_context(running_pgbouncer(server, 2, cluster))
            for cluster in (first, second)
        ]
        client = stack.enter_context(serving(several(*ports), tmp_path / "log", **OPTIONS))
        statuses: set[int] = set()

        def is_served(method: str, path: str, text: str) -> bool:
            answer = client.request(method, path, json=NOTE if method == "POST" else None)
            statuses.add(answer.status_code)
            return answer.status_code == 200 and answer.json()["text"] == text

        assert is_served("POST", "/notes/", "new")
        # Nobody writes through the service after the switchover. Its reads have to notice.
        first.end(signal.SIGINT)
        (first.data / "standby.signal").touch()
        first.start()
        insert = "INSERT INTO notes (text, completed) VALUES ('there', true)"
        database = urlsplit(second.url)._replace(path="/template").geturl()
        execute(second.url, "SELECT pg_promote()")
        execute(database, insert)
        poll(lambda: is_served("GET", "/notes/1", "there"), lambda: statuses)
        assert is_served("POST", "/notes/", "new")

        # The primary dies, and the first server is promoted again.
        second.end(signal.SIGQUIT)
        assert not is_served("POST", "/notes/", "new")
        execute(first.url, "SELECT pg_promote()")
        poll(lambda: is_served("POST", "/notes/", "new"), lambda: statuses)
        assert is_served("GET", "/notes/1", "new")
        assert statuses == {200, 503}
