"""Every environment variable of the service, read once, at import.

Free of Starlette, so that Alembic can import it. A value that can't be used ends the process
with one line on stderr.
"""

from urllib.parse import parse_qs, urlsplit

from environs import Env, EnvError, validate


def parse_database_url(url: str) -> str:
    """Returns the URL with the scheme that every library here understands.

    Raises ValueError, without the URL's password in it, for a URL that can't be connected to.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme == "sqlite":
        if parts.netloc or parts.query or parts.path in ("", "/", "/:memory:"):
            raise ValueError("must name a file, as sqlite:///notes.db does, without options")
        return url
    if parts.scheme in ("postgres", "postgresql"):
        # asyncpg and SQLAlchemy take the folder of a Unix socket as ?host=.
        if not (parts.hostname or parse_qs(parts.query).get("host")):
            raise ValueError("names no host")
        if "," in parts.netloc.rpartition("@")[2]:
            raise ValueError("names several hosts, which is not supported")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("has a port that is no number from 0 to 65535") from None
        return "postgresql" + url[len(parts.scheme) :]
    raise ValueError("must start with postgresql://, postgres:// or sqlite:///")


def read_database_url(env: Env) -> str:
    try:
        return parse_database_url(env.str("DATABASE_URL", "sqlite:///notes.db"))
    except ValueError as error:
        raise EnvError(f"DATABASE_URL {error}") from None


_env = Env()
try:
    # Where the notes are: PostgreSQL, or a SQLite file as the embedded default.
    DATABASE_URL = read_database_url(_env)

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
