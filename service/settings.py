"""Every environment variable of the service, read once, at import.

Free of Starlette, so that Alembic can import it. A value that can't be used ends the process
with one line on stderr.
"""

from environs import Env, EnvError, validate

from service.database_url import DatabaseURL, parse_database_url
from service.tls import context


def read_database_url(env: Env) -> DatabaseURL:
    try:
        return parse_database_url(env.str("DATABASE_URL", "sqlite:///notes.db"))
    except ValueError as error:
        raise EnvError(f"DATABASE_URL {error}") from None


_seconds = validate.Range(min=0.001, max=3600)
_positive = validate.Range(min=1)

_env = Env()
try:
    # Where the notes are: PostgreSQL, or a SQLite file as the embedded default; and what the URL
    # says to asyncpg beside that.
    _url = read_database_url(_env)
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
    DATABASE_POOL_MAX = _env.int("DATABASE_POOL_MAX", 4, validate=_positive)

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
