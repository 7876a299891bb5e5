"""What DATABASE_URL says: a file, or a server as libpq's URIs name it, in asyncpg's words.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from service.settings.tls import TLS, one_of, take_tls

SESSIONS = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")

# Options that may be left out, as nothing less is promised or protected without them, and with
# which values: asyncpg has no such setting or does so anyway; the last two are for Prisma's pool.
WITHOUT_EFFECT: dict[str, tuple[str, ...] | None] = {
    "client_encoding": None,
    "gssencmode": ("disable", "prefer"),
    "keepalives": None,
    "keepalives_count": None,
    "keepalives_idle": None,
    "keepalives_interval": None,
    "load_balance_hosts": None,
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2"),
    "sslcompression": ("0",),
    "sslnegotiation": None,
    "sslsni": None,
    "tcp_user_timeout": None,
    "connection_limit": None,
    "pool_timeout": None,
}


class DatabaseURL(NamedTuple):
    """A URL that encode/databases and SQLAlchemy read alike, and what asyncpg is told beside it."""

    url: str
    tls: TLS = TLS()
    server_settings: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    connect_timeout: float | None = None
    # Behind PgBouncer in transaction mode, by Prisma's name for that.
    pgbouncer: bool = False


def parse_database_url(text: str) -> DatabaseURL:
    """Raises ValueError, with no password in it, for a URL that can't be connected to."""
    text = text.strip()
    if text.startswith("sqlite:///"):
        return DatabaseURL("sqlite:///" + quote(_file(text.removeprefix("sqlite:///"))))
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("postgres", "postgresql"):
        raise ValueError("must start with postgresql://, postgres:// or sqlite:///")
    if "#" in rest:
        raise ValueError("has a # that must be written as %23")
    rest, _, query = rest.partition("?")
    authority, _, name = rest.partition("/")
    if "@" in name + query and "@" not in authority:
        raise ValueError("has an @ after a / or ?: within names, write %40, %2F and %3F instead")
    login, _, address = authority.rpartition("@")
    user, _, password = login.partition(":")
    found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::(.*))?", address, re.DOTALL)
    if found is None:
        raise ValueError("has a host and port that can't be read")
    given = {
        "user": _decode(user),
        "password": _decode(password),
        "host": _decode(found[1] or found[2] or ""),
        "port": found[3] or "",
        "dbname": _decode(name),
    }
    for option in query.split("&"):
        key, _, value = option.partition("=")
        if value:
            given[_decode(key)] = _decode(value)
    return _server(given)


def _decode(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeError:
        raise ValueError("has characters that are no UTF-8") from None
    if "\0" in decoded:
        raise ValueError("has a NUL")
    return decoded


def _file(name: str) -> str:
    """The absolute path, so that SQLite can't take a name such as `file:a` for a URI."""
    if "?" in name or "#" in name:
        raise ValueError("must name a file, as sqlite:///notes.db does, without options")
    name = _decode(name)
    file = Path(name)
    if file.name in ("", ":memory:") or name.endswith("/"):
        raise ValueError("must name a file, as sqlite:///notes.db does")
    try:
        if file.is_dir() or not file.parent.is_dir():
            raise ValueError(f"names {name!r}, which is a folder or in no folder")
    except OSError as error:
        raise ValueError(f"names {name!r}: {error.strerror}") from None
    return str(file.absolute())


def _server(given: dict[str, str]) -> DatabaseURL:
    """Takes the options one by one; those that are left then are not supported."""
    take = given.pop
    url = _url(take("host"), take("port"), take("user"), take("password"), take("dbname"))
    tls = take_tls(given)
    settings = {}
    if label := take("application_name", "") or take("fallback_application_name", ""):
        settings["application_name"] = label
    take("fallback_application_name", None)
    if command_line := take("options", ""):
        settings["options"] = command_line
    arguments: dict[str, Any] = {}
    if session := take("target_session_attrs", ""):
        arguments["target_session_attrs"] = one_of("target_session_attrs", session, SESSIONS)
    if passfile := take("passfile", ""):
        arguments["passfile"] = passfile
    timeout = take("connect_timeout", "")
    pgbouncer = one_of("pgbouncer", take("pgbouncer", "false"), ("true", "false")) == "true"
    for key, harmless in WITHOUT_EFFECT.items():
        if key in given and (harmless is None or given[key] in harmless):
            del given[key]
    if given:
        raise ValueError(f"has an option that is not supported: {', '.join(sorted(given))}")
    return DatabaseURL(url, tls, settings, arguments, _seconds(timeout), pgbouncer)


def _url(host: str, port: str, user: str, password: str, database: str) -> str:
    if "," in host or "," in port:
        raise ValueError("names several hosts, which is not supported")
    if not host:
        raise ValueError("names no host")
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError("has a port that is no number from 1 to 65535")
    folder = host.startswith("/")
    if not folder and re.search(r"[\s/?#@\[\]\\]", host):
        raise ValueError("names a host that can't be one")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    address = "" if folder else f"[{host}]" if ":" in host else host
    return "".join(
        (
            "postgresql://",
            f"{login}@" if login else "",
            address,
            f":{port}" if port else "",
            f"/{quote(database, safe='')}",
            # Both take the folder of a Unix socket so.
            f"?host={quote(host, safe='')}" if folder else "",
        )
    )


def _seconds(text: str) -> float | None:
    """As libpq has it: no limit for 0 and less."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError("has a connect_timeout that is no number of seconds")
    return seconds if seconds > 0 else None
