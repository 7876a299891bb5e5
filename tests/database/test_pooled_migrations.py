"""Migrations through PgBouncer in transaction mode."""

from collections.abc import Iterator

import pytest

from tests.support.clusters import Server, running_pgbouncer, running_server
from tests.support.daemons import ROLE
from tests.support.databases import alembic

# Locks of runs of migrations.
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def test_an_address_that_does_not_tell_of_the_pooler(server: Server) -> None:
    """Without `pgbouncer=true` no lock stays at the pooler's connection to the server either."""
    server.execute(f"CREATE DATABASE untold OWNER {ROLE}")
    with running_pgbouncer(server, connections=2) as port:
        result = alembic(server.url("untold", port=port), "upgrade", "head")
        assert result.returncode == 0, result.stderr
        assert server.execute(LOCKS) == 0


def test_a_default_isolation(server: Server) -> None:
    """With another default isolation a run doesn't wait for its own transaction."""
    server.execute(
        f"CREATE DATABASE isolated OWNER {ROLE}",
        "ALTER DATABASE isolated SET default_transaction_isolation = 'serializable'",
    )
    with running_pgbouncer(server, connections=2) as port:
        url = server.url("isolated", port=port) + "?pgbouncer=true"
        result = alembic(url, "upgrade", "head")
        assert result.returncode == 0, result.stderr


def test_a_pool_of_one(server: Server) -> None:
    """A pooler that gives one connection is refused in a line."""
    server.execute(f"CREATE DATABASE alone OWNER {ROLE}")
    with running_pgbouncer(server, connections=1) as port:
        url = server.url("alone", port=port) + "?pgbouncer=true"
        result = alembic(url, "upgrade", "head", DATABASE_CONNECT_TIMEOUT="2")
    assert result.returncode != 0
    assert result.stderr.startswith("Migrations need two connections at the same time")
    assert result.stderr.count("\n") == 1
