"""All environment variables of the service, read once, at import.

Alembic imports this, so it must not import Starlette. An invalid value ends the process with one
line on stderr. docs/settings.md explains each variable.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from environs import Env, EnvError, validate

from service.settings import provider
from service.settings.database_url import parse_database_url
from service.settings.hosts import parse_address, parse_hosts, parse_networks, parse_origins
from service.settings.rates import parse_rate
from service.settings.tls import context

T = TypeVar("T")

# An empty value of these must not silently become the default.
NEVER_EMPTY = ("ACCESS", "DATABASE_URL")


class Environment(Env):
    """The environment. An empty variable counts as not set; space around a value is ignored."""

    def _get_value(self, env_key: str, default: Any) -> Any:
        value = os.environ.get(env_key, "").strip()
        if not value and env_key in NEVER_EMPTY and env_key in os.environ:
            raise EnvError(f"{env_key} is empty")
        return value or default

    def read(self, name: str, parse: Callable[[str], T], default: str = "") -> T:
        """Parses a value. A ValueError of `parse` completes a sentence after the name."""
        text = self.str(name, default)
        try:
            return parse(text)
        except ValueError as error:
            raise EnvError(f"{name} {error}") from None


def parse_token(text: str) -> str:
    if not re.fullmatch("[!-~]*", text):
        raise ValueError("has characters other than printable ASCII without spaces")
    return text


def parse_endpoint(text: str) -> str:
    if text and not re.fullmatch("https?://[^/?#\\s]+[!-~]*", text):
        raise ValueError("must be a URL such as http://localhost:4318")
    return text


_seconds = validate.Range(min=0.001, max=3600)
_positive = validate.Range(min=1)
_few = validate.Range(min=1, max=1000)
_exporters = validate.OneOf(("otlp", "none"))

_env = Environment()
try:
    _url = _env.read("DATABASE_URL", parse_database_url, "sqlite:///notes.db")
    DATABASE_URL = _url.url
    DATABASE_ARGUMENTS = _url.arguments
    DATABASE_SERVER_SETTINGS = _url.server_settings

    DATABASE_CA_FILE = _env.str("DATABASE_CA_FILE", "")
    try:
        DATABASE_SSL = context(_url.tls._replace(ca_file=DATABASE_CA_FILE or _url.tls.ca_file))
    except OSError as error:
        name = "DATABASE_CA_FILE" if DATABASE_CA_FILE else "DATABASE_URL"
        reason = error.strerror or error
        raise EnvError(f"{name} names a certificate file that can't be read: {reason}") from None

    # Two processes, twice as many during a deploy, use 16 of the 20 connections of a small plan.
    DATABASE_POOL_MAX = _env.int("DATABASE_POOL_MAX", 4, validate=_few)

    # Routers give up after 30 seconds.
    REQUEST_TIMEOUT = _env.float("REQUEST_TIMEOUT", 25, validate=_seconds)

    DATABASE_POOL_TIMEOUT = _env.float("DATABASE_POOL_TIMEOUT", 5, validate=_seconds)
    DATABASE_STATEMENT_TIMEOUT = _env.float("DATABASE_STATEMENT_TIMEOUT", 10, validate=_seconds)
    _others = DATABASE_POOL_TIMEOUT + DATABASE_STATEMENT_TIMEOUT
    DATABASE_CONNECT_TIMEOUT = _env.float(
        "DATABASE_CONNECT_TIMEOUT",
        # The URL's value, limited to the time that the other two leave.
        min(_url.connect_timeout or 5, max(5, REQUEST_TIMEOUT - _others - 1)),
        validate=_seconds,
    )
    if DATABASE_CONNECT_TIMEOUT + _others >= REQUEST_TIMEOUT:
        raise EnvError(
            f"REQUEST_TIMEOUT must be more than {DATABASE_CONNECT_TIMEOUT + _others:g} s, the sum"
            " of DATABASE_CONNECT_TIMEOUT, DATABASE_POOL_TIMEOUT and DATABASE_STATEMENT_TIMEOUT"
        )

    # 0 behind PgBouncer in transaction mode: there the next transaction may use another connection.
    DATABASE_STATEMENT_CACHE = _env.int(
        "DATABASE_STATEMENT_CACHE", 0 if _url.pgbouncer else 100, validate=validate.Range(min=0)
    )

    MAX_BODY_BYTES = _env.int("MAX_BODY_BYTES", 1_048_576, validate=_positive)
    # A process has some 140 MB more under the largest answers, of which this is a part.
    MAX_ANSWER_BYTES = _env.int("MAX_ANSWER_BYTES", 40 * 1024 * 1024, validate=_positive)
    MAX_REQUESTS = _env.int("MAX_REQUESTS", 5000, validate=_positive)
    # Clients may follow the changes of resources.
    LIVE = _env.bool("LIVE", False)
    if LIVE and DATABASE_URL.startswith("mysql"):
        raise EnvError("LIVE needs PostgreSQL or SQLite")
    MAX_FOLLOWERS = _env.int("MAX_FOLLOWERS", 1000, validate=_positive)
    RATE_LIMIT = _env.read("RATE_LIMIT", parse_rate)

    ALLOWED_HOSTS = _env.read("ALLOWED_HOSTS", parse_hosts)
    CORS_ORIGINS = _env.read("CORS_ORIGINS", parse_origins)

    # A revoked token still works for at most ACCESS_CACHE_SECONDS.
    ACCESS = _env.str("ACCESS", "open", validate=validate.OneOf(("open", "token", "private")))
    ACCESS_CACHE_SECONDS = _env.float(
        "ACCESS_CACHE_SECONDS", 5, validate=validate.Range(min=0, max=3600)
    )

    # The tokens of an identity provider count, too.
    JWT_ISSUER = _env.read("JWT_ISSUER", provider.parse_issuer)
    JWT_AUDIENCE = _env.read("JWT_AUDIENCE", provider.parse_audience)
    JWT_JWKS_URL = _env.read("JWT_JWKS_URL", provider.parse_url)
    JWT_PUBLIC_KEY = _env.read("JWT_PUBLIC_KEY", provider.parse_public_key)
    provider.check(JWT_ISSUER, JWT_AUDIENCE, JWT_JWKS_URL, JWT_PUBLIC_KEY, ACCESS)
    JWT_CREATE_USERS = _env.bool("JWT_CREATE_USERS", True)

    ACCESS_LOG = _env.bool("ACCESS_LOG", True)
    LOG_FORMAT = _env.str("LOG_FORMAT", "logfmt", validate=validate.OneOf(("logfmt", "json")))
    OTEL_EXPORTER_OTLP_ENDPOINT = _env.read("OTEL_EXPORTER_OTLP_ENDPOINT", parse_endpoint)
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = _env.read(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", parse_endpoint
    )
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT = _env.read(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", parse_endpoint
    )
    OTEL_TRACES_EXPORTER = _env.str("OTEL_TRACES_EXPORTER", "otlp", validate=_exporters)
    OTEL_METRICS_EXPORTER = _env.str("OTEL_METRICS_EXPORTER", "otlp", validate=_exporters)
    OTEL_SDK_DISABLED = _env.bool("OTEL_SDK_DISABLED", False)
    METRICS = _env.bool("METRICS", True)
    METRICS_TOKEN = _env.read("METRICS_TOKEN", parse_token)
    SERVER_TIMING = _env.bool("SERVER_TIMING", False)

    DRAIN_SECONDS = _env.float("DRAIN_SECONDS", 0, validate=validate.Range(min=0, max=3600))

    # uvicorn reads these itself, but its errors are unclear or missing.
    _env.read("HOST", parse_address)
    _env.int("PORT", 8000, validate=validate.Range(min=0, max=65535))
    _env.int("WEB_CONCURRENCY", 1, validate=_few)
    _env.read("FORWARDED_ALLOW_IPS", parse_networks)
except EnvError as error:
    sys.stderr.write(f"Configuration: {error}\n")
    # uvicorn's status for a failed start. It restarts workers with any other status.
    raise SystemExit(3) from None
