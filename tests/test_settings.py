"""Settings: refused where they make no sense, documented where people look."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service import settings
from service.settings import parse_database_url
from tests.databases import ROOT, SETTINGS, alembic, environment
from tests.servers import free_port

DERIVED = {"DATABASE_SSL", "SSL_MODES", "SSL_FLAGS"}
OTHERS = {"HOST", "PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"}
NAMES = OTHERS | {name for name in vars(settings) if name.isupper()} - DERIVED


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "notes.db"),
        ("DATABASE_URL", "mysql://user:secret@host/notes"),
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "postgresql:///notes"),
        ("DATABASE_URL", "postgres://user:secret@/notes"),
        ("DATABASE_URL", "postgresql://user:secret@host:port/notes"),
        ("DATABASE_URL", "postgresql://user:secret@[host/notes"),
        ("DATABASE_URL", "postgresql://user:secret@one,two/notes"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite:///notes.db?mode=ro"),
        ("DATABASE_URL", "sqlite:///notes.db#part"),
        ("DATABASE_URL", "sqlite:notes.db"),
        ("DATABASE_URL", "SQLITE:///notes.db"),
        ("DATABASE_URL", "sqlite:////"),
        ("DATABASE_URL", "sqlite:////nonexistent/notes.db"),
        ("DATABASE_URL", "postgresql://user:secret@host/notes?sslmode=maybe"),
        ("DATABASE_URL", "postgresql://user:secret@host/notes?min_size=9"),
        ("DATABASE_POOL_MAX", "0"),
        ("DATABASE_POOL_MAX", "many"),
        ("DATABASE_STATEMENT_TIMEOUT", "0"),
        ("DATABASE_CONNECT_TIMEOUT", "nan"),
        ("DATABASE_POOL_TIMEOUT", "inf"),
        ("DATABASE_CA_FILE", "/nonexistent"),
        ("DATABASE_STATEMENT_CACHE", "-1"),
        ("MAX_REQUESTS", "0"),
        ("REQUEST_TIMEOUT", "soon"),
        ("ACCESS_LOG", "perhaps"),
        ("ACCESS", "closed"),
        ("ACCESS_CACHE_SECONDS", "-1"),
        ("MAX_BODY_BYTES", "-1"),
    ],
)
def test_nonsense_stops_the_start(variable: str, value: str, processes: str) -> None:
    """A value that can't be used ends the start with one line that names the variable."""
    (command,) = re.findall("^web: (.*)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": path, "PORT": str(free_port()), "WEB_CONCURRENCY": processes}
    server = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env=environment(**variables, **{variable: value}),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert server.returncode == 1
    assert re.fullmatch(f"Configuration: .*{variable}.*\n", server.stderr)
    assert "secret" not in server.stderr


def test_nonsense_stops_migrations() -> None:
    """Alembic refuses the same URLs with the same line."""
    result = alembic("mysql://user:secret@host/notes", "upgrade", "head")
    assert result.returncode == 1
    assert result.stderr == (
        "Configuration: DATABASE_URL must start with postgresql://, postgres:// or sqlite:///\n"
    )


@pytest.mark.parametrize(
    ("text", "url", "ssl"),
    [
        ("sqlite:///notes.db", "sqlite:///notes.db", None),
        ("sqlite:////tmp/notes.db\n", "sqlite:////tmp/notes.db", None),
        ("postgres://u:p@h:5432/d", "postgresql://u:p@h:5432/d", None),
        ("POSTGRES://u:p%23@h/d", "postgresql://u:p%23@h/d", None),
        ("postgresql://u:p@h/d?ssl=true", "postgresql://u:p@h/d", True),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql://u:p@h/d", "require"),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=%2Frun%2Fpg", None),
    ],
)
def test_usable_database_urls(text: str, url: str, ssl: str | bool | None) -> None:
    """A URL that can be used keeps its parts, but for what asyncpg is told apart from it."""
    assert parse_database_url(text) == (url, ssl)


def test_every_setting_is_in_the_readme() -> None:
    """The README's table has a row for each setting, with its default."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(rows) >= NAMES


def test_every_setting_is_in_the_example() -> None:
    """`.env.example` has a line for each setting and for nothing else."""
    assert SETTINGS == NAMES
