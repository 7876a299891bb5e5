"""Names and passwords of any characters, on every kind of server."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.support.clusters import configure, write_for
from tests.support.databases import SERVED, alembic, execute, run
from tests.support.debian import SUPERUSER, running_cluster
from tests.support.servers import serving

# MySQL's names have characters of at most 3 bytes.
NAME, DATABASE = "имя@/:%", "données 中"
# PostgreSQL compares passwords after SASLprep (RFC 4013), which changes the last three characters.
PASSWORDS = {"mysql": "пароль🔑@/:?#%", "postgresql": "пароль@/:?#%ﬁ\u00a0e\u0301"}


def prepare_postgresql(stack: ExitStack) -> str:
    cluster = stack.enter_context(running_cluster())
    execute(
        cluster.url,
        f"""CREATE ROLE "{NAME}" LOGIN PASSWORD '{PASSWORDS["postgresql"]}'""",
        f'CREATE DATABASE "{DATABASE}" OWNER "{NAME}"',
    )
    hba = f"host all {SUPERUSER} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    write_for(cluster, cluster.data / "pg_hba.conf", hba)
    configure(cluster)
    return f"127.0.0.1:{cluster.port}"


def prepare_mysql(roles_url: str) -> str:
    _, _, place = urlsplit(roles_url).netloc.rpartition("@")
    execute(
        f"mysql://root@{place}/",
        f"CREATE USER '{NAME}'@'127.0.0.1' IDENTIFIED BY '{PASSWORDS['mysql']}'",
        f"CREATE DATABASE `{DATABASE}`",
        f"GRANT ALL ON `{DATABASE}`.* TO '{NAME}'@'127.0.0.1'",
    )
    return place


@pytest.fixture(scope="module", params=SERVED)
def login(
    request: pytest.FixtureRequest, server_of: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """The URL of an empty database, with a place for the password; and the right password."""
    with ExitStack() as stack:
        if request.param == "mysql":
            place = prepare_mysql(server_of("mysql"))
        else:
            place = prepare_postgresql(stack)
        name, database = quote(NAME, safe=""), quote(DATABASE, safe="")
        url = f"{request.param}://{name}:{{}}@{place}/{database}"
        yield url, quote(PASSWORDS[request.param], safe="")


def command(url: str) -> str:
    """The status of an operator's command, and what it says of errors."""
    ended = run(sys.executable, "-m", "service", "users", "list", DATABASE_URL=url)
    return f"{ended.returncode} {ended.stderr}"


def test_right_credentials(login: tuple[str, str], tmp_path: Path) -> None:
    """Migrations, commands and requests log in."""
    place, password = login
    url = place.format(password)
    migrated = alembic(url, "upgrade", "head")
    assert migrated.returncode == 0, migrated.stderr
    assert command(url) == "0 "
    with serving(url, tmp_path / "log") as client:
        assert client.post("/notes/", json={"text": "€", "completed": True}).status_code == 200
    assert password not in (tmp_path / "log").read_text()


def test_a_wrong_password(login: tuple[str, str], tmp_path: Path) -> None:
    """Each says so in a line, without the password."""
    url = login[0].format(quote("неверный", safe=""))
    ended = alembic(url, "upgrade", "head")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "неверный" not in ended.stderr
    assert re.fullmatch("1 Error: The database is unavailable: .*\n", command(url))
    with serving(url, tmp_path / "log") as client:
        assert client.get("/notes/").status_code == 503
        assert client.get("/health/ready").status_code == 503
