"""Every environment variable of the service, read once, at import.

Free of Starlette, so that Alembic can import it. A value that can't be used ends the process
with one line on stderr.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from environs import Env, EnvError, validate

from service.settings.database_url import parse_database_url
from service.settings.hosts import parse_address, parse_hosts, parse_networks, parse_origins
from service.settings.tls import context

T = TypeVar("T")

# Nobody shall get the defaults of these by a variable that was emptied.
NEVER_EMPTY = ("ACCESS", "DATABASE_URL")


class Environment(Env):
    """The environment, where `NAME=` counts as no NAME, and space around a value doesn't count."""

    def _get_value(self, env_key: str, default: Any) -> Any:
        value = os.environ.get(env_key, "").strip()
        if not value and env_key in NEVER_EMPTY and env_key in os.environ:
            raise EnvError(f"{env_key} is empty")
        return value or default

    def read(self, name: str, parse: Callable[[str], T], default: str = "") -> T:
        """What `parse` makes of a value, whose ValueError says what is wrong with that."""
        text = self.str(name, default)
        try:
            return parse(text)
        except ValueError as error:
            raise EnvError(f"{name} {error}") from None


def parse_token(text: str) -> str:
    if not re.fullmatch("[!-~]*", text):
        raise ValueError("has characters that a header can't carry as they are")
    return text


_seconds = validate.Range(min=0.001, max=3600)
_positive = validate.Range(min=1)
_few = validate.Range(min=1, max=1000)

_env = Environment()
try:
    # Where the notes are: PostgreSQL, or a SQLite file as the embedded default; and what the URL
    # says to asyncpg beside that.
    _url = _env.read("DATABASE_URL", parse_database_url, "sqlite:///notes.db")
    DATABASE_URL = _url.url
    DATABASE_ARGUMENTS = _url.arguments
    DATABASE_SERVER_SETTINGS = _url.server_settings

    # A file with the certificates of the CA that the database server's has to be signed by.
    DATABASE_CA_FILE = _env.str("DATABASE_CA_FILE", "")
    try:
        DATABASE_SSL = context(_url.tls._replace(ca_file=DATABASE_CA_FILE or _url.tls.ca_file))
    except OSError as error:
        name = "DATABASE_CA_FILE" if DATABASE_CA_FILE else "DATABASE_URL"
        reason = error.strerror or error
        raise EnvError(f"{name} names a certificate that can't be read: {reason}") from None

    # Connections to PostgreSQL a process may hold. Two processes, twice during a deploy, fit a
    # plan of 20 connections with 4 for people at a prompt.
    DATABASE_POOL_MAX = _env.int("DATABASE_POOL_MAX", 4, validate=_few)

    # Seconds for an answer to begin and between its parts; routers give up at 30.
    REQUEST_TIMEOUT = _env.float("REQUEST_TIMEOUT", 25, validate=_seconds)

    # Seconds for opening a connection, for waiting for a free one, and for a statement (on SQLite,
    # for another writer to end); a request that would take longer gets a 503.
    DATABASE_POOL_TIMEOUT = _env.float("DATABASE_POOL_TIMEOUT", 5, validate=_seconds)
    DATABASE_STATEMENT_TIMEOUT = _env.float("DATABASE_STATEMENT_TIMEOUT", 10, validate=_seconds)
    _others = DATABASE_POOL_TIMEOUT + DATABASE_STATEMENT_TIMEOUT
    DATABASE_CONNECT_TIMEOUT = _env.float(
        "DATABASE_CONNECT_TIMEOUT",
        # The URL's, as far as the others leave it time.
        min(_url.connect_timeout or 5, max(5, REQUEST_TIMEOUT - _others - 1)),
        validate=_seconds,
    )
    if DATABASE_CONNECT_TIMEOUT + _others >= REQUEST_TIMEOUT:
        raise EnvError(
            f"REQUEST_TIMEOUT has to be longer than {DATABASE_CONNECT_TIMEOUT + _others:g} s, which"
            " DATABASE_CONNECT_TIMEOUT, DATABASE_POOL_TIMEOUT and DATABASE_STATEMENT_TIMEOUT are"
            " together"
        )

    # Prepared statements a connection keeps; 0 behind PgBouncer in transaction mode.
    DATABASE_STATEMENT_CACHE = _env.int(
        "DATABASE_STATEMENT_CACHE", 0 if _url.pgbouncer else 100, validate=validate.Range(min=0)
    )

    # The largest request body, in bytes.
    MAX_BODY_BYTES = _env.int("MAX_BODY_BYTES", 1_048_576, validate=_positive)

    # Requests that may be under way in a process; the surplus gets a 503 at once.
    MAX_REQUESTS = _env.int("MAX_REQUESTS", 5000, validate=_positive)

    # Hosts that requests may name (`*.example.com` for a domain's, `*` for any), and origins whose
    # pages may call the service (CORS); comma-separated, empty for any host and no origin.
    ALLOWED_HOSTS = _env.read("ALLOWED_HOSTS", parse_hosts)
    CORS_ORIGINS = _env.read("CORS_ORIGINS", parse_origins)

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
    METRICS_TOKEN = _env.read("METRICS_TOKEN", parse_token)
    SERVER_TIMING = _env.bool("SERVER_TIMING", False)

    # uvicorn's own settings; uvicorn says nothing of a wrong one, or less clearly.
    _env.read("HOST", parse_address)
    _env.int("PORT", 8000, validate=validate.Range(min=0, max=65535))
    _env.int("WEB_CONCURRENCY", 1, validate=_few)
    _env.read("FORWARDED_ALLOW_IPS", parse_networks)
except EnvError as error:
    sys.stderr.write(f"Configuration: {error}\n")
    # uvicorn's own status for that; workers that end with another one it starts again and again.
    raise SystemExit(3) from None
