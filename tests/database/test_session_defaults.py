"""Defaults of a PostgreSQL database that would change what the service relies on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx2
import pytest

from tests.support.databases import NewDatabase, execute, fetch, fill, name_of
from tests.support.servers import serving

NOTE = {"text": "a", "completed": True}
KEY = {"idempotency-key": "key"}
WRITES: dict[str, Callable[[httpx2.Client], httpx2.Response]] = {
    "create": lambda client: client.post("/notes/", json=NOTE),
    "batch": lambda client: client.post("/notes/batch", json=[NOTE, NOTE]),
    "keyed": lambda client: client.post("/notes/", json=NOTE, headers=KEY),
    "replace": lambda client: client.put("/notes/1", json=NOTE),
    "change": lambda client: client.patch("/notes/1", json=NOTE),
}
# A trigger for each write.
BEFORE = """
    CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
"""
TRIGGER = "CREATE TRIGGER b BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION before()"


class Service(NamedTuple):
    client: httpx2.Client
    database_url: str

    def before_writes(self, code: str) -> None:
        """Runs PL/pgSQL for each note that is written."""
        execute(
            self.database_url,
            "DROP FUNCTION IF EXISTS before CASCADE",
            "TRUNCATE notes, idempotency_keys RESTART IDENTITY",
        )
        fill(self.database_url, 1)
        execute(self.database_url, BEFORE.format(code), TRIGGER)


# Without a statement cache no session keeps a setting, as through PgBouncer.
@pytest.fixture(
    scope="module",
    params=[
        ("100", "serializable", "off"),
        ("0", "serializable", "off"),
        ("0", "read committed", "local"),
    ],
    ids=["kept", "pooled", "local"],
)
def service(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    cached, isolation, commit = request.param
    url = new_database("postgresql")
    execute(
        url,
        f"ALTER DATABASE {name_of(url)} SET default_transaction_isolation = '{isolation}'",
        f"ALTER DATABASE {name_of(url)} SET synchronous_commit = {commit}",
    )
    log = tmp_path_factory.mktemp("service") / "log"
    with serving(url, log, DATABASE_STATEMENT_CACHE=cached) as client:
        yield Service(client, url)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_defaults_of_the_database(
    service: Service, write: Callable[[httpx2.Client], httpx2.Response]
) -> None:
    """Each write is READ COMMITTED and waits for disk and standby, whatever the defaults say."""
    service.before_writes(
        "NEW.text := concat_ws(', ', current_setting('transaction_isolation'),"
        " current_setting('synchronous_commit'));"
    )
    assert write(service.client).status_code == 200
    texts = {text for (text,) in fetch(service.database_url, "SELECT text FROM notes")}
    assert texts - {"note"} == {"read committed, on"}


@pytest.mark.parametrize(("state", "status"), [("40001", 200), ("40P01", 200), ("40003", 503)])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_conflicts_of_transactions(
    service: Service,
    write: Callable[[httpx2.Client], httpx2.Response],
    state: str,
    status: int,
) -> None:
    """A write is repeated if the server has rolled it back; not if that isn't known."""
    execute(service.database_url, "DROP SEQUENCE IF EXISTS tries", "CREATE SEQUENCE tries")
    service.before_writes(f"IF nextval('tries') < 3 THEN RAISE SQLSTATE '{state}'; END IF;")
    assert write(service.client).status_code == status
    assert (execute(service.database_url, "SELECT last_value FROM tries") > 1) == (status == 200)


def test_a_refused_write_keeps_its_connection(service: Service) -> None:
    """What the server refuses is rolled back, so the next write has the same connection."""
    service.before_writes(
        "IF NEW.completed THEN RAISE SQLSTATE '40003'; END IF; NEW.text := pg_backend_pid();"
    )
    notes = [{**NOTE, "completed": refused} for refused in (False, True, False)]
    first, refused, last = (service.client.post("/notes/", json=note) for note in notes)
    assert refused.status_code == 503
    assert first.json()["text"] == last.json()["text"]
