"""Parses DATABASE_URL: a SQLite file, or a server with libpq's options, translated for asyncpg.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from service.settings.tls import TLS, one_of, take_tls

PORT = 5432
SESSIONS = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")

# Ignored options, and the values for which ignoring them is safe (None: all values). asyncpg has no
# such setting, or always behaves like this. The last two configure Prisma's pool.
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
    """A URL for encode/databases and SQLAlchemy, and further options for asyncpg."""

    url: str
    tls: TLS = TLS()
    server_settings: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    connect_timeout: float | None = None
    # Prisma's option for PgBouncer in transaction mode.
    pgbouncer: bool = False


def parse_database_url(text: str) -> DatabaseURL:
    """Raises ValueError, without the password, for an invalid URL."""
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
        raise ValueError("has an @ after a / or ?: in names and passwords, write %40, %2F and %3F")
    login, _, address = authority.rpartition("@")
    user, _, password = login.partition(":")
    hosts, ports = zip(*map(_host_and_port, address.split(",")), strict=True)
    given = {
        "user": _decode(user),
        "password": _decode(password),
        "host": ",".join(hosts),
        "port": ",".join(ports),
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
        raise ValueError("has characters that are not UTF-8") from None
    if "\0" in decoded:
        raise ValueError("contains a NUL character")
    return decoded


def _host_and_port(address: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::(.*))?", address, re.DOTALL)
    if found is None:
        raise ValueError("has a host and port that can't be read")
    return _decode(found[1] or found[2] or ""), found[3] or ""


def _file(name: str) -> str:
    """The absolute path, because SQLite would read a name such as `file:a` as a URI."""
    if "?" in name or "#" in name:
        raise ValueError("must name a file without options, such as sqlite:///notes.db")
    name = _decode(name)
    file = Path(name)
    if file.name in ("", ":memory:") or name.endswith("/"):
        raise ValueError("must name a file, such as sqlite:///notes.db")
    try:
        if file.is_dir() or not file.parent.is_dir():
            raise ValueError(f"names {name!r}, which is a folder, or its folder does not exist")
    except OSError as error:
        raise ValueError(f"names {name!r}: {error.strerror}") from None
    return str(file.absolute())


def _server(given: dict[str, str]) -> DatabaseURL:
    """Removes the known options one by one. The rest is not supported."""
    take = given.pop
    hosts, ports = _hosts(take("host"), take("port"))
    url = _url(hosts[0], ports[0], take("user"), take("password"), take("dbname"))
    tls = take_tls(given)
    settings = {}
    if label := take("application_name", "") or take("fallback_application_name", ""):
        settings["application_name"] = label
    take("fallback_application_name", None)
    if command_line := take("options", ""):
        settings["options"] = command_line
    arguments: dict[str, Any] = {}
    if len(hosts) > 1:
        # encode/databases and SQLAlchemy know one host. These have priority over it.
        arguments |= {"host": hosts, "port": [int(port or PORT) for port in ports]}
    if session := take("target_session_attrs", "read-write" if len(hosts) > 1 else ""):
        arguments["target_session_attrs"] = one_of("target_session_attrs", session, SESSIONS)
        if len(hosts) > 1 and session == "prefer-standby":
            raise ValueError("has several hosts, and target_session_attrs=prefer-standby")
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


def _hosts(host: str, port: str) -> tuple[list[str], list[str]]:
    """The hosts, and the port of each; an empty one is the default."""
    hosts, ports = host.split(","), port.split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise ValueError(f"names {len(hosts)} hosts but {len(ports)} ports")
    if not all(hosts):
        raise ValueError("names no host" if len(hosts) == 1 else "names an empty host")
    for port in ports:
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise ValueError("has a port that is not a number from 1 to 65535")
    for host in hosts:
        if not host.startswith("/") and re.search(r"[\s/?#@\[\]\\]", host):
            raise ValueError("names an invalid host")
    return hosts, ports


def _url(host: str, port: str, user: str, password: str, database: str) -> str:
    folder = host.startswith("/")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    address = "" if folder else f"[{host}]" if ":" in host else host
    return "".join(
        (
            "postgresql://",
            f"{login}@" if login else "",
            address,
            f":{port}" if port else "",
            f"/{quote(database, safe='')}",
            # Both libraries expect the folder of a Unix socket here.
            f"?host={quote(host, safe='')}" if folder else "",
        )
    )


def _seconds(text: str) -> float | None:
    """As in libpq, 0 and less mean no limit."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError("has a connect_timeout that is not a number of seconds")
    return seconds if seconds > 0 else None
