"""Settings: refused where they make no sense, documented where people look."""

import re
import subprocess
import sys

import pytest

from service import settings
from service.settings import parse_database_url
from tests.databases import ROOT, alembic, environment
from tests.servers import free_port

NAMES = {"HOST", "PORT", *(name for name in vars(settings) if name.isupper())}


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
        ("DATABASE_POOL_MAX", "0"),
        ("DATABASE_POOL_MAX", "many"),
        ("DATABASE_TIMEOUT", "0"),
        ("DATABASE_TIMEOUT", "nan"),
        ("DATABASE_TIMEOUT", "inf"),
        ("MAX_BODY_BYTES", "-1"),
    ],
)
def test_nonsense_stops_the_start(variable: str, value: str) -> None:
    """A value that can't be used ends the start with one line that names the variable."""
    server = subprocess.run(
        [sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(**{variable: value}),
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
    ("url", "parsed"),
    [
        ("sqlite:///notes.db", "sqlite:///notes.db"),
        ("sqlite:////var/lib/notes.db", "sqlite:////var/lib/notes.db"),
        ("postgres://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgresql://u:p@h/d?ssl=true", "postgresql://u:p@h/d?ssl=true"),
        ("postgresql://u@/d?host=/run/postgresql", "postgresql://u@/d?host=/run/postgresql"),
    ],
)
def test_usable_database_urls(url: str, parsed: str) -> None:
    """A URL that can be used keeps its parts; only `postgres://` gets the long scheme."""
    assert parse_database_url(url) == parsed


def test_every_setting_is_in_the_readme() -> None:
    """The README's table has a row for each setting, with its default."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(rows) >= NAMES


def test_every_setting_is_in_the_example() -> None:
    """`.env.example` has a line for each setting and for nothing else."""
    lines = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(lines) == sorted(NAMES)
