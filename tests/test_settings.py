"""Settings: refused where they make no sense, documented where people look."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.database_url import DatabaseURL, parse_database_url
from service.tls import TLS
from tests.databases import ROOT, SETTINGS, alembic, environment
from tests.servers import free_port

DERIVED = {"DATABASE_ARGUMENTS", "DATABASE_SERVER_SETTINGS", "DATABASE_SSL"}
POSTGRESQL = "postgresql://user:secret@host/notes"
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


def read(name: str, **variables: str) -> Any:
    """A setting's value in a process with these variables."""
    code = f"from service import settings; print(repr(settings.{name}))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return eval(ended.stdout)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=3"}, 3),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=300"}, 9),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=0"}, 5),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=3", "DATABASE_CONNECT_TIMEOUT": "2"}, 2),
    ],
)
def test_the_time_for_connecting(variables: dict[str, str], expected: float) -> None:
    """The URL's counts where no variable says otherwise, as far as REQUEST_TIMEOUT allows."""
    assert read("DATABASE_CONNECT_TIMEOUT", **variables) == expected


def test_pgbouncer_in_the_url() -> None:
    """`pgbouncer=true` keeps no prepared statements, unless the variable says otherwise."""
    variables = {"DATABASE_URL": f"{POSTGRESQL}?pgbouncer=true"}
    assert read("DATABASE_STATEMENT_CACHE", **variables) == 0
    assert read("DATABASE_STATEMENT_CACHE", DATABASE_STATEMENT_CACHE="9", **variables) == 9


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("sqlite:////tmp/notes.db\n", "sqlite:////tmp/notes.db"),
        ("sqlite:////tmp/my%20nötes.db", "sqlite:////tmp/my%20n%C3%B6tes.db"),
        ("sqlite:////tmp/100%.db", "sqlite:////tmp/100%25.db"),
        ("postgres://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("POSTGRES://u:p%23@h/d", "postgresql://u:p%23@h/d"),
        ("postgresql://u:p@ss@h/d", "postgresql://u:p%40ss@h/d"),
        ("postgresql://h", "postgresql://h/"),
        ("postgresql://[::1]:1/d", "postgresql://[::1]:1/d"),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=%2Frun%2Fpg"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=%2Frun%2Fpg"),
        ("postgresql://%2Frun%2FPG:1/d", "postgresql://:1/d?host=%2Frun%2FPG"),
        ("postgresql:///?dbname=d&host=h&port=1&user=u&password=a+b%26", "postgresql://u:a%2Bb%26@h:1/d"),
    ],
)  # fmt: skip
def test_usable_database_urls(text: str, url: str) -> None:
    """A URL that can be used keeps its parts, in a form that all its readers take alike."""
    assert parse_database_url(text) == DatabaseURL(url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("ssl=true", {"tls": TLS(True)}),
        ("ssl=require", {"tls": TLS("require")}),
        ("sslmode=require", {"tls": TLS("require")}),
        (
            "sslmode=require&channel_binding=require",
            {"tls": TLS("require", channel_binding=True)},
        ),
        ("channel_binding=prefer&gssencmode=prefer", {}),
        (
            "sslmode=verify-full&sslrootcert=ca.pem&sslcert=c&sslkey=k&sslpassword=p",
            {"tls": TLS("verify-full", "ca.pem", "c", "k", "p")},
        ),
        (
            "application_name=a%20b&fallback_application_name=c",
            {"server_settings": {"application_name": "a b"}},
        ),
        ("fallback_application_name=c", {"server_settings": {"application_name": "c"}}),
        ("options=-c%20geqo%3Doff", {"server_settings": {"options": "-c geqo=off"}}),
        (
            "target_session_attrs=read-write&passfile=/x",
            {"arguments": {"target_session_attrs": "read-write", "passfile": "/x"}},
        ),
        ("connect_timeout=10", {"connect_timeout": 10}),
        ("connect_timeout=-1", {}),
        ("pgbouncer=true&connection_limit=1&pool_timeout=0", {"pgbouncer": True}),
        ("keepalives=1&keepalives_idle=30&tcp_user_timeout=9&client_encoding=utf8", {}),
        ("application_name=&sslmode=", {}),
    ],
)
def test_usable_options(query: str, expected: dict[str, Any]) -> None:
    """libpq's options are honoured, or left out where nothing depends on them."""
    plain = "postgresql://u@h/d"
    assert parse_database_url(f"{plain}?{query}") == DatabaseURL(plain, **expected)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///notes",
        "postgres://user:secret@/notes",
        "postgresql://user:secret@host:port/notes",
        "postgresql://user:secret@host:0/notes",
        "postgresql://user:secret@host:99999/notes",
        "postgresql://user:secret@[host/notes",
        "postgresql://user:secret@one,two/notes",
        "postgresql://user:secret@a b/notes",
        "postgresql://user:1#secret@host/notes",
        "postgresql://user:1/secret@host/notes",
        "postgresql://user:1?secret@host/notes",
        "postgresql://user:%ff@host/notes",
        "postgresql://user:%00@host/notes",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///%3Amemory%3A",
        "sqlite:///notes.db?mode=ro",
        "sqlite:///notes.db#part",
        "sqlite:///notes.db/",
        "sqlite:///a%00b",
        "sqlite:///%ff",
        "sqlite:///\udcff",
        "sqlite:notes.db",
        "SQLITE:///notes.db",
        "sqlite:////",
        "sqlite:////tmp",
        "sqlite:////%74mp",
        *(
            f"{POSTGRESQL}?{query}"
            for query in (
                "sslmode=maybe",
                "ssl=true&sslmode=require",
                "sslmode=disable&channel_binding=require",
                "channel_binding=maybe",
                "gssencmode=require",
                "sslcrl=crl.pem",
                "ssl_min_protocol_version=TLSv1.3",
                "require_auth=scram-sha-256",
                "service=notes",
                "hostaddr=127.0.0.1",
                "target_session_attrs=fast",
                "connect_timeout=soon",
                "connect_timeout=nan",
                "pgbouncer=maybe",
                "min_size=9",
                "schema=other",
            )
        ),
    ],
)
def test_unusable_database_urls(url: str) -> None:
    """What can't be opened, or isn't safe to leave out, is refused without the password."""
    with pytest.raises(ValueError, match=r"^\w") as refused:
        parse_database_url(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_setting_is_in_the_readme() -> None:
    """The README's table has a row for each setting, with its default."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(rows) >= NAMES


def test_every_setting_is_in_the_example() -> None:
    """`.env.example` has a line for each setting and for nothing else."""
    assert SETTINGS == NAMES
