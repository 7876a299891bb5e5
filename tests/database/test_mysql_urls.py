"""DATABASE_URL for MySQL and MariaDB."""

from typing import Any

import pytest

from service.settings.database_url import DatabaseURL, parse_database_url
from service.settings.tls import TLS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mysql://u:p%2F@h/d", "mysql+asyncmy://u:p%2F@h/d"),
        ("MariaDB://u:p@ss@[::1]:3307/d", "mysql+asyncmy://u:p%40ss@[::1]:3307/d"),
    ],
)
def test_usable_urls(given: str, expected: str) -> None:
    """Characters that a URL doesn't allow are taken, as they are for PostgreSQL."""
    assert parse_database_url(given) == DatabaseURL(expected)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("ssl-mode=REQUIRED", {"tls": TLS("require")}),
        ("ssl_mode=preferred", {"tls": TLS("prefer")}),
        ("sslmode=require", {"tls": TLS("require")}),
        ("ssl=true", {"tls": TLS(True)}),
        (
            "ssl-mode=VERIFY_IDENTITY&ssl-ca=ca.pem&ssl-cert=c&ssl-key=k",
            {"tls": TLS("verify-full", "ca.pem", "c", "k")},
        ),
        ("ssl_ca=ca.pem&ssl-mode=VERIFY_CA", {"tls": TLS("verify-ca", "ca.pem")}),
        ("connect-timeout=10", {"connect_timeout": 10}),
        ("charset=utf8mb4&reconnect=true&connection_limit=1&pool_timeout=0", {}),
    ],
)
def test_usable_options_of_mysql(query: str, expected: dict[str, Any]) -> None:
    """The options of MySQL's clients are honoured, and libpq's for TLS."""
    plain = "mysql+asyncmy://u@h/d"
    assert parse_database_url(f"mysql://u@h/d?{query}") == DatabaseURL(plain, **expected)


@pytest.mark.parametrize(
    "address",
    ["/d?unix_socket=/run/s", "/d?socket=/run/s", "h/d?unix-socket=/run/s", "%2Frun%2Fs/d"],
)
def test_sockets_of_mysql(address: str) -> None:
    """A Unix socket is named as an option, or in the place of the host."""
    expected = DatabaseURL("mysql+asyncmy://u@localhost/d", arguments={"unix_socket": "/run/s"})
    assert parse_database_url(f"mysql://u@{address}") == expected


@pytest.mark.parametrize(
    "url",
    [
        "mysql:///notes",
        "mysql://user:secret@host",
        "mysql://user:secret@host/",
        "mysql://user:secret@host:port/notes",
        "mysql://user:secret@one,two/notes",
        *(
            f"mysql://user:secret@host/notes?{query}"
            for query in (
                "ssl-mode=maybe",
                "ssl=true&ssl-mode=REQUIRED",
                "charset=latin1",
                "ssl-crl=crl.pem",
                "target_session_attrs=primary",
                "init_command=SET sql_mode=ANSI",
                "pgbouncer=true",
            )
        ),
    ],
)
def test_unusable_urls(url: str) -> None:
    """An option that can't be honoured or ignored is refused, without the password."""
    with pytest.raises(ValueError, match=r"^\w") as refused:
        parse_database_url(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
