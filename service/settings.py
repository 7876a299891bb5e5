"""Every environment variable of the service, read once, at import.

Free of Starlette, so that Alembic can import it. A value that can't be used ends the process
with one line on stderr.
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from environs import Env, EnvError, validate

# What `sslmode=` means to asyncpg, by libpq's names; and what `ssl=` means to encode/databases.
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SSL_FLAGS = {"true": True, "false": False}


class DatabaseURL(NamedTuple):
    """A URL that encode/databases and SQLAlchemy both take, and asyncpg's `ssl` argument."""

    url: str
    ssl: str | bool | None


def parse_database_url(text: str) -> DatabaseURL:
    """Raises ValueError, with no password in it, for a URL that can't be connected to."""
    text = text.strip()
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("is no URL, or its port is no number from 0 to 65535") from None
    if text.startswith("sqlite:///"):
        file = Path(text.removeprefix("sqlite:///"))
        if parts.query or parts.fragment or file.name in ("", ":memory:"):
            raise ValueError("must name a file, as sqlite:///notes.db does, without options")
        if file.is_dir() or not file.parent.is_dir():
            raise ValueError(f"names {file}, which is a folder or in no folder")
        return DatabaseURL(text, None)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("must start with postgresql://, postgres:// or sqlite:///")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    ssl_flag = options.pop("ssl", None)
    ssl = SSL_FLAGS.get(ssl_flag, ssl_flag) if ssl_flag else options.pop("sslmode", None)
    if isinstance(ssl, str) and ssl not in SSL_MODES:
        raise ValueError(f"has an unknown sslmode; known are {', '.join(SSL_MODES)}")
    # asyncpg and SQLAlchemy take the folder of a Unix socket as ?host=.
    if not (parts.hostname or options.get("host")):
        raise ValueError("names no host")
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("names several hosts, which is not supported")
    if unknown := sorted(set(options) - {"host"}):
        raise ValueError(f"has an option that is not supported: {', '.join(unknown)}")
    url = parts._replace(scheme="postgresql", query=urlencode(options), fragment="")
    return DatabaseURL(url.geturl(), ssl)


def read_database_url(env: Env) -> DatabaseURL:
    try:
        return parse_database_url(env.str("DATABASE_URL", "sqlite:///notes.db"))
    except ValueError as error:
        raise EnvError(f"DATABASE_URL {error}") from None


_env = Env()
try:
    # Where the notes are: PostgreSQL, or a SQLite file as the embedded default.
    DATABASE_URL, DATABASE_SSL = read_database_url(_env)

    # Connections to PostgreSQL a process may hold. Two processes, twice during a deploy, fit a
    # plan of 20 connections with 5 for people at a prompt.
    DATABASE_POOL_MAX = _env.int("DATABASE_POOL_MAX", 4, validate=validate.Range(min=1))

    # Seconds that a request may wait for the database before it gets a 503.
    DATABASE_TIMEOUT = _env.float(
        "DATABASE_TIMEOUT", 10, validate=validate.Range(min=0.001, max=3600)
    )

    # The largest request body, in bytes.
    MAX_BODY_BYTES = _env.int("MAX_BODY_BYTES", 1_048_576, validate=validate.Range(min=1))
except EnvError as error:
    raise SystemExit(f"Configuration: {error}") from None
