"""Every environment variable of the service, read once, at import.

Free of Starlette, so that Alembic can import it. A value that can't be used ends the process
with one line on stderr.
"""

from pathlib import Path
from ssl import SSLContext, create_default_context
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


def trust(ca_file: str, ssl: str | bool | None) -> SSLContext | str | bool | None:
    """asyncpg's `ssl`: with a CA's file, a context that verifies the server by it, and its name."""
    if not ca_file or ssl in ("disable", False):
        return ssl
    try:
        context = create_default_context(cafile=ca_file)
    except OSError as error:
        raise EnvError(f"DATABASE_CA_FILE can't be read: {error.strerror or error}") from None
    context.check_hostname = ssl != "verify-ca"
    return context


_seconds = validate.Range(min=0.001, max=3600)
_positive = validate.Range(min=1)

_env = Env()
try:
    # Where the notes are: PostgreSQL, or a SQLite file as the embedded default.
    DATABASE_URL, _ssl = read_database_url(_env)

    # A file with the certificates of the CA that the database server's has to be signed by.
    DATABASE_CA_FILE = _env.str("DATABASE_CA_FILE", "")
    DATABASE_SSL = trust(DATABASE_CA_FILE, _ssl)

    # Connections to PostgreSQL a process may hold. Two processes, twice during a deploy, fit a
    # plan of 20 connections with 4 for people at a prompt.
    DATABASE_POOL_MAX = _env.int("DATABASE_POOL_MAX", 4, validate=_positive)

    # Seconds for opening a connection, for waiting for a free one, and for a statement (on SQLite,
    # for another writer to end); a request that would take longer gets a 503.
    DATABASE_CONNECT_TIMEOUT = _env.float("DATABASE_CONNECT_TIMEOUT", 5, validate=_seconds)
    DATABASE_POOL_TIMEOUT = _env.float("DATABASE_POOL_TIMEOUT", 5, validate=_seconds)
    DATABASE_STATEMENT_TIMEOUT = _env.float("DATABASE_STATEMENT_TIMEOUT", 10, validate=_seconds)

    # Prepared statements a connection keeps; 0 behind PgBouncer in transaction mode.
    DATABASE_STATEMENT_CACHE = _env.int(
        "DATABASE_STATEMENT_CACHE", 100, validate=validate.Range(min=0)
    )

    # The largest request body, in bytes.
    MAX_BODY_BYTES = _env.int("MAX_BODY_BYTES", 1_048_576, validate=_positive)

    # Requests that may be under way in a process; the surplus gets a 503 at once.
    MAX_REQUESTS = _env.int("MAX_REQUESTS", 5000, validate=_positive)

    # Seconds for an answer to begin and between its parts; routers give up at 30.
    REQUEST_TIMEOUT = _env.float("REQUEST_TIMEOUT", 25, validate=_seconds)

    # Hosts that requests may name (`*.example.com` for a domain's, `*` for any), and origins whose
    # pages may call the service (CORS); comma-separated, empty for any host and no origin.
    ALLOWED_HOSTS = _env.list("ALLOWED_HOSTS", [], subcast=str)
    CORS_ORIGINS = _env.list("CORS_ORIGINS", [], subcast=str)

    # Who may use the notes: everybody, or users by their tokens; and for how many seconds at most a
    # token is remembered, so long does one still work after it was taken back.
    ACCESS = _env.str("ACCESS", "open", validate=validate.OneOf(("open", "token")))
    ACCESS_CACHE_SECONDS = _env.float(
        "ACCESS_CACHE_SECONDS", 5, validate=validate.Range(min=0, max=3600)
    )

    # A line on stdout for each request; metrics for Prometheus on /metrics, for everybody or for
    # those with the token; a Server-Timing header.
    ACCESS_LOG = _env.bool("ACCESS_LOG", True)
    METRICS = _env.bool("METRICS", True)
    METRICS_TOKEN = _env.str("METRICS_TOKEN", "")
    SERVER_TIMING = _env.bool("SERVER_TIMING", False)
except EnvError as error:
    raise SystemExit(f"Configuration: {error}") from None
