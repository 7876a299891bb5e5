"""Nobody's work holds up another's, however much of it there is."""

from pathlib import Path

import httpx2
import orjson

from tests import databases
from tests.clusters import poll
from tests.servers import running

JSON = {"content-type": "application/json"}


def store_worst(client: httpx2.Client, count: int) -> str:
    """Stores notes of 1 MB, and gives the text of 200 characters that takes longest to miss."""
    # Case-folded, each character becomes three, of which the first begins a match.
    note = orjson.dumps({"text": "\u0390" * 500_000, "completed": True})
    for _ in range(count):
        assert client.post("/notes/", content=note, headers=JSON).status_code == 200
    return "\u0390" * 199 + "b"


def searches_in_postgresql(database_url: str) -> int:
    """How many searches the server is busy with."""
    sql = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND state = 'active' AND query LIKE '%coalesce%' AND pid <> pg_backend_pid()
    """
    return int(databases.execute(database_url, sql))


def test_the_longest_search_can_be_ended(database_url: str, tmp_path: Path) -> None:
    """The longest text against the largest notes is given up in time, by the database too."""
    with (
        running(database_url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="1") as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        q = store_worst(client, 5)
        assert client.get("/notes/", params={"q": "b" + q}).status_code == 422
        assert client.get("/notes/", params={"q": "a" * 30_000}).status_code == 422
        answer = client.get("/notes/", params={"q": q})
        assert answer.status_code == 503 or answer.json() == []
        if database_url.startswith("postgresql"):
            assert answer.status_code == 503
            poll(lambda: not searches_in_postgresql(database_url))
