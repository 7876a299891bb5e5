"""PostgreSQL databases that can't store every text."""

import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.databases import alembic, execute
from tests.support.servers import serving


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding(encoding: str, server_of: Callable[[str], str], tmp_path: Path) -> None:
    """A database that isn't in UTF8 is refused in a line, by Alembic and by the service."""
    server_url, name = server_of("postgresql"), f"test_{secrets.token_hex(6)}"
    execute(
        server_url,
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
        " LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
    result = alembic(url, "upgrade", "head")
    assert result.returncode != 0
    assert f"the database is encoded in {encoding}, and the service needs UTF8" in result.stderr
    assert result.stderr.count("\n") == 1
    with serving(url, tmp_path / "log") as client:
        ready = client.get("/health/ready")
        note = client.post("/notes/", json={"text": "€", "completed": True})
    assert ready.status_code == note.status_code == 503
    assert ready.json() == {"detail": "The database can't store UTF-8: EncodingIsNotUTF8"}
    assert f"encoded in {encoding}" in (tmp_path / "log").read_text()
