"""Parses DATABASE_URL: a SQLite file, or a server with options.

PostgreSQL has libpq's options, translated for asyncpg:
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
MySQL and MariaDB have those of MySQL's clients, and for TLS also libpq's:
https://dev.mysql.com/doc/refman/8.0/en/connecting-using-uri-or-key-value-pairs.html
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

# The names of MySQL's clients, and libpq's names for the same.
MYSQL_NAMES = {
    "ssl_mode": "sslmode",
    "ssl_ca": "sslrootcert",
    "ssl_cert": "sslcert",
    "ssl_key": "sslkey",
    "socket": "unix_socket",
}
MYSQL_SSL_MODES = {
    "DISABLED": "disable",
    "PREFERRED": "prefer",
    "REQUIRED": "require",
    "VERIFY_CA": "verify-ca",
    "VERIFY_IDENTITY": "verify-full",
}
# `reconnect` is in the URLs of some providers. The service reconnects anyway.
MYSQL_WITHOUT_EFFECT: dict[str, tuple[str, ...] | None] = {
    "charset": ("utf8mb4",),
    "reconnect": None,
    "connection_limit": None,
    "pool_timeout": None,
}

WITHOUT_DRIVER = re.compile("oracle|mssql|sqlserver")
START = "must start with postgresql://, postgres://, mysql://, mariadb:// or sqlite:///"


class DatabaseURL(NamedTuple):
    """A URL for encode/databases and SQLAlchemy, and further options for the driver."""

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
    read = READERS.get(scheme.lower())
    if not separator or read is None:
        if WITHOUT_DRIVER.match(scheme.lower()):
            raise ValueError("names a database that encode/databases has no driver for")
        raise ValueError(START)
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
    return read(given)


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


def _postgresql(given: dict[str, str]) -> DatabaseURL:
    """Removes the known options one by one. The rest is not supported."""
    take = given.pop
    hosts, ports = _hosts(take("host"), take("port"))
    url = _url("postgresql", hosts[0], ports[0], given)
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
    timeout = _seconds(take("connect_timeout", ""))
    pgbouncer = one_of("pgbouncer", take("pgbouncer", "false"), ("true", "false")) == "true"
    _take_harmless(given, WITHOUT_EFFECT)
    return DatabaseURL(url, tls, settings, arguments, timeout, pgbouncer)


def _mysql(given: dict[str, str]) -> DatabaseURL:
    """Like `_postgresql`. The names of options may have hyphens, as MySQL's, or underscores."""
    names = {key: key.replace("-", "_") for key in given}
    given = {MYSQL_NAMES.get(names[key], names[key]): value for key, value in given.items()}
    if not given["dbname"]:
        raise ValueError("names no database")
    mode = given.get("sslmode", "")
    given["sslmode"] = MYSQL_SSL_MODES.get(mode.upper(), mode)
    arguments = {}
    if given["host"].startswith("/"):
        given["unix_socket"] = given.pop("host")
    if socket := given.pop("unix_socket", ""):
        arguments["unix_socket"] = socket
        given["host"] = "localhost"
    hosts, ports = _hosts(given.pop("host"), given.pop("port"))
    if len(hosts) > 1:
        raise ValueError("names several hosts; only PostgreSQL may have them")
    url = _url("mysql+asyncmy", hosts[0], ports[0], given)
    tls = take_tls(given)
    timeout = _seconds(given.pop("connect_timeout", ""))
    _take_harmless(given, MYSQL_WITHOUT_EFFECT)
    return DatabaseURL(url, tls, arguments=arguments, connect_timeout=timeout)


READERS = {
    "postgres": _postgresql,
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}


def _take_harmless(
    given: dict[str, str], without_effect: dict[str, tuple[str, ...] | None]
) -> None:
    """Removes ignored options. Raises ValueError for what is left."""
    for key, harmless in without_effect.items():
        if key in given and (harmless is None or given[key] in harmless):
            del given[key]
    if given:
        raise ValueError(f"has an option that is not supported: {', '.join(sorted(given))}")


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


def _url(scheme: str, host: str, port: str, given: dict[str, str]) -> str:
    user, password, database = map(given.pop, ("user", "password", "dbname"))
    folder = host.startswith("/")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    address = "" if folder else f"[{host}]" if ":" in host else host
    return "".join(
        (
            f"{scheme}://",
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
