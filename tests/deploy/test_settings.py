"""Settings: refused where they make no sense, documented where people look."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.settings.database_url import DatabaseURL, parse_database_url
from service.settings.rates import Rate, parse_rate
from service.settings.tls import TLS
from tests.support.databases import ROOT, alembic, run
from tests.support.flags import flags, web_command
from tests.support.operating import operate
from tests.support.servers import free_port, uvicorn

DERIVED = {"DATABASE_ARGUMENTS", "DATABASE_SERVER_SETTINGS", "DATABASE_SSL", "NEVER_EMPTY"}
OTHERS = {"HOST", "PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"}
NAMES = OTHERS | {name for name in vars(settings) if len(name) > 1 and name.isupper()} - DERIVED

POSTGRESQL = "postgresql://user:secret@host/notes"


def procfile(**variables: str) -> subprocess.CompletedProcess[str]:
    return run("sh", "-c", web_command(), **{"PORT": str(free_port())} | variables)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", " "),
        ("DATABASE_URL", "notes.db"),
        ("DATABASE_URL", "redis://user:secret@host/notes"),
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "sqlite:////nonexistent/notes.db"),
        ("DATABASE_URL", "sqlite:///" + "a" * 300),
        ("DATABASE_URL", f"{POSTGRESQL}?sslrootcert=/nonexistent"),
        ("DATABASE_URL", f"{POSTGRESQL}?sslcert=/nonexistent"),
        ("DATABASE_CA_FILE", "/nonexistent"),
        ("DATABASE_CA_FILE", "/"),
        ("DATABASE_CA_FILE", "/dev/null"),
        ("DATABASE_POOL_MAX", "0"),
        ("DATABASE_POOL_MAX", "many"),
        ("DATABASE_POOL_MAX", "99999999999"),
        pytest.param("DATABASE_POOL_MAX", "9" * 5000, id="5000 digits"),
        ("DATABASE_STATEMENT_TIMEOUT", "0"),
        ("DATABASE_CONNECT_TIMEOUT", "nan"),
        ("DATABASE_POOL_TIMEOUT", "inf"),
        ("DATABASE_POOL_TIMEOUT", "1e400"),
        ("DATABASE_STATEMENT_CACHE", "-1"),
        ("MAX_REQUESTS", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("RATE_LIMIT", "100"),
        ("REQUEST_TIMEOUT", "soon"),
        ("REQUEST_TIMEOUT", "20"),
        ("REQUEST_TIMEOUT", "5 s"),
        ("ACCESS", "closed"),
        ("ACCESS", ""),
        ("ACCESS_CACHE_SECONDS", "-1"),
        ("JWT_ISSUER", "auth.example.com"),
        ("JWT_ISSUER", "https://auth.example.com/?a"),
        ("JWT_ISSUER", "https://auth.example.com:99999/"),
        ("JWT_ISSUER", "https://auth.example.com/" + "a" * 255),
        ("JWT_ISSUER", "https://auth.example.com/"),
        ("JWT_AUDIENCE", "notes"),
        ("JWT_JWKS_URL", "file:///etc/keys.json"),
        ("JWT_JWKS_URL", "https://auth.example.com/keys"),
        ("JWT_PUBLIC_KEY", "/nonexistent"),
        ("JWT_PUBLIC_KEY", "/dev/null"),
        ("JWT_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\\nMAo=\\n-----END PUBLIC KEY-----"),
        ("JWT_CREATE_USERS", "perhaps"),
        ("ACCESS_LOG", "perhaps"),
        ("LOG_FORMAT", "JSON"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("METRICS", "2"),
        ("METRICS_TOKEN", "schlüssel"),
        ("METRICS_TOKEN", "two words"),
        ("SERVER_TIMING", "?"),
        ("DRAIN_SECONDS", "-1"),
        ("ALLOWED_HOSTS", "https://a.example"),
        ("ALLOWED_HOSTS", "b.example, a.example:8000"),
        ("ALLOWED_HOSTS", "a.example/path"),
        ("ALLOWED_HOSTS", "a.example b.example"),
        ("ALLOWED_HOSTS", "*example.com"),
        ("ALLOWED_HOSTS", "a..example"),
        ("ALLOWED_HOSTS", "bücher.example"),
        ("ALLOWED_HOSTS", "a.example\nb.example"),
        ("CORS_ORIGINS", "app.example.com"),
        ("CORS_ORIGINS", "https://app.example.com/"),
        ("CORS_ORIGINS", "https://app.example.com/path"),
        ("CORS_ORIGINS", "https://app.example.com?a"),
        ("CORS_ORIGINS", "https://user@app.example.com"),
        ("CORS_ORIGINS", "https://*.example.com"),
        ("CORS_ORIGINS", "https://a.example, https://"),
        ("CORS_ORIGINS", "https://a.example:99999"),
        ("CORS_ORIGINS", "null"),
        ("HOST", ".."),
        ("HOST", "http://localhost"),
        ("PORT", "x"),
        ("PORT", "80 00"),
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "x"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "9999999"),
        ("FORWARDED_ALLOW_IPS", "garbage"),
        ("FORWARDED_ALLOW_IPS", "*, 10.0.0.0/8"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/99"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8"),
    ],
)
def test_nonsense_stops_the_start(variable: str, value: str) -> None:
    """A value that can't be used ends the check with one line that names the variable."""
    check = run(sys.executable, "-m", "service.settings", **{variable: value})
    assert check.returncode != 0
    assert re.fullmatch(f"Configuration: .*{variable}.*\n", check.stderr)
    assert check.stdout == ""
    assert "secret" not in check.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "redis://user:secret@host/notes"),
        ("HOST", ".."),
        ("PORT", "x"),
        ("WEB_CONCURRENCY", "x"),
        ("FORWARDED_ALLOW_IPS", "garbage"),
    ],
)
def test_the_web_process_checks_first(variable: str, value: str) -> None:
    """The Procfile starts nothing if the check of the settings fails."""
    server = procfile(**{variable: value})
    assert server.returncode != 0
    assert re.fullmatch(f"Configuration: .*{variable}.*\n", server.stderr)
    assert server.stdout == ""


@pytest.mark.parametrize(
    ("variable", "value"), [("DATABASE_URL", "redis://u:secret@h"), ("REQUEST_TIMEOUT", "1")]
)
def test_nonsense_stops_everything(variable: str, value: str) -> None:
    """Several processes, uvicorn by hand, Alembic and the commands refuse the same values."""
    variables = {variable: value}
    url = variables.pop("DATABASE_URL", "sqlite:///notes.db")
    for ended in (
        procfile(WEB_CONCURRENCY="2", DATABASE_URL=url, **variables),
        run(*uvicorn(free_port()), DATABASE_URL=url, **variables),
        alembic(url, "upgrade", "head", **variables),
        operate(url, "users", "list", **variables),
    ):
        assert ended.returncode != 0
        assert re.fullmatch(f"Configuration: .*{variable}.*\n", ended.stderr)
        assert "secret" not in ended.stderr


def test_nonsense_ends_workers_for_good() -> None:
    """uvicorn by hand doesn't restart workers that can't be configured."""
    server = run(*uvicorn(free_port(), "--workers=2"), DATABASE_URL="redis://user:secret@host")
    assert "Stopping parent process" in server.stderr
    assert 1 <= server.stderr.count("Configuration: DATABASE_URL must start with") <= 2
    assert "Traceback" not in server.stderr


def read(name: str, **variables: str) -> Any:
    """A setting's value in a process with these variables."""
    code = f"from service import settings; print(repr(settings.{name}))"
    ended = run(sys.executable, "-c", code, **variables)
    assert ended.returncode == 0, ended.stderr
    return eval(ended.stdout)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ALLOWED_HOSTS", "a.example, b.example ,", ["a.example", "b.example"]),
        ("ALLOWED_HOSTS", "A.Example., *.B.example, *", ["a.example", "*.b.example", "*"]),
        ("ALLOWED_HOSTS", "127.0.0.1,::1,[2001:DB8::0]", ["127.0.0.1", "::1", "2001:db8::"]),
        ("ALLOWED_HOSTS", "xn--bcher-kva.example,my_host", ["xn--bcher-kva.example", "my_host"]),
        ("ALLOWED_HOSTS", "", []),
        ("ALLOWED_HOSTS", " , ", []),
        ("CORS_ORIGINS", "https://a.example, *,", ["https://a.example", "*"]),
        ("CORS_ORIGINS", "HTTPS://A.example:443,http://a:80", ["https://a.example", "http://a"]),
        ("CORS_ORIGINS", "http://a:443,http://[::1]:3000", ["http://a:443", "http://[::1]:3000"]),
        ("CORS_ORIGINS", "chrome-extension://abc", ["chrome-extension://abc"]),
        ("CORS_ORIGINS", "", []),
        ("DATABASE_POOL_MAX", "", 4),
        ("DATABASE_POOL_MAX", " 7 ", 7),
        ("REQUEST_TIMEOUT", "20.5", 20.5),
        ("RATE_LIMIT", " 100/minute ", Rate(100, "minute")),
        ("ACCESS_LOG", "", True),
        ("ACCESS", " token", "token"),
        ("METRICS_TOKEN", "a+/~=", "a+/~="),
    ],
)
def test_usable_values(name: str, value: str, expected: object) -> None:
    """Space around values doesn't count. An empty value stands for the default."""
    assert read(name, **{name: value}) == expected


def test_usable_rates() -> None:
    """A rate is a number of requests in a unit of time."""
    assert parse_rate("") is None
    assert parse_rate("5/second") == (5, "second")
    assert parse_rate("999999/hour") == (999_999, "hour")


@pytest.mark.parametrize(
    "text",
    [
        *("100", "/minute", "100/", "0/minute", "-1/minute", "1.5/second", "1000000/hour"),
        *("100/day", "100/minutes", "100/Minute", "100 per minute", "100/minute, 5/second"),
        *("100 / minute", "100/minute\n", "\u0661/minute"),
    ],
)
def test_unusable_rates(text: str) -> None:
    """Any other rate is refused, with an example."""
    with pytest.raises(ValueError, match=r"^must be .* 100/minute$"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=3"}, 3),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=300"}, 9),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=0"}, 5),
        ({"DATABASE_URL": f"{POSTGRESQL}?connect_timeout=3", "DATABASE_CONNECT_TIMEOUT": "2"}, 2),
    ],
)
def test_the_time_for_connecting(variables: dict[str, str], expected: float) -> None:
    """The URL's timeout counts if no variable has one, as far as REQUEST_TIMEOUT allows."""
    assert read("DATABASE_CONNECT_TIMEOUT", **variables) == expected


def test_pgbouncer_in_the_url() -> None:
    """`pgbouncer=true` keeps no prepared statements, unless the variable says otherwise."""
    variables = {"DATABASE_URL": f"{POSTGRESQL}?pgbouncer=true"}
    assert read("DATABASE_STATEMENT_CACHE", **variables) == 0
    assert read("DATABASE_STATEMENT_CACHE", DATABASE_STATEMENT_CACHE="9", **variables) == 9


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("sqlite:////tmp/notes.db\n", "sqlite:////tmp/notes.db"),
        ("sqlite:////tmp/my%20nötes.db", "sqlite:////tmp/my%20n%C3%B6tes.db"),
        ("sqlite:////tmp/100%.db", "sqlite:////tmp/100%25.db"),
        ("postgres://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("POSTGRES://u:p%23@h/d", "postgresql://u:p%23@h/d"),
        ("postgresql://u:p@ss@h/d", "postgresql://u:p%40ss@h/d"),
        ("postgresql://h", "postgresql://h/"),
        ("postgresql://[::1]:1/d", "postgresql://[::1]:1/d"),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=%2Frun%2Fpg"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=%2Frun%2Fpg"),
        ("postgresql://%2Frun%2FPG:1/d", "postgresql://:1/d?host=%2Frun%2FPG"),
        ("postgresql:///?dbname=d&host=h&port=1&user=u&password=a+b%26", "postgresql://u:a%2Bb%26@h:1/d"),
    ],
)  # fmt: skip
def test_usable_database_urls(text: str, url: str) -> None:
    """A usable URL keeps its parts, in a form that all its readers understand."""
    assert parse_database_url(text) == DatabaseURL(url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("ssl=true", {"tls": TLS(True)}),
        ("ssl=require", {"tls": TLS("require")}),
        ("sslmode=require", {"tls": TLS("require")}),
        (
            "sslmode=require&channel_binding=require",
            {"tls": TLS("require", channel_binding=True)},
        ),
        ("channel_binding=prefer&gssencmode=prefer", {}),
        (
            "sslmode=verify-full&sslrootcert=ca.pem&sslcert=c&sslkey=k&sslpassword=p",
            {"tls": TLS("verify-full", "ca.pem", "c", "k", "p")},
        ),
        (
            "application_name=a%20b&fallback_application_name=c",
            {"server_settings": {"application_name": "a b"}},
        ),
        ("fallback_application_name=c", {"server_settings": {"application_name": "c"}}),
        ("options=-c%20geqo%3Doff", {"server_settings": {"options": "-c geqo=off"}}),
        (
            "target_session_attrs=read-write&passfile=/x",
            {"arguments": {"target_session_attrs": "read-write", "passfile": "/x"}},
        ),
        ("connect_timeout=10", {"connect_timeout": 10}),
        ("connect_timeout=-1", {}),
        ("pgbouncer=true&connection_limit=1&pool_timeout=0", {"pgbouncer": True}),
        ("keepalives=1&keepalives_idle=30&tcp_user_timeout=9&client_encoding=utf8", {}),
        ("application_name=&sslmode=", {}),
    ],
)
def test_usable_options(query: str, expected: dict[str, Any]) -> None:
    """libpq's options are honoured, or left out if nothing depends on them."""
    plain = "postgresql://u@h/d"
    assert parse_database_url(f"{plain}?{query}") == DatabaseURL(plain, **expected)


@pytest.mark.parametrize(
    "url", ["oracle://user:secret@host/notes", "mssql+pyodbc://user:secret@host/notes"]
)
def test_databases_without_a_driver(url: str) -> None:
    """For Oracle and SQL Server, the error tells that encode/databases has no driver."""
    ended = procfile(DATABASE_URL=url)
    assert ended.stderr == (
        "Configuration: DATABASE_URL names a database that encode/databases has no driver for\n"
    )


@pytest.mark.parametrize(
    ("address", "url", "hosts", "ports"),
    [
        ("u:p@a,b/d", "postgresql://u:p@a/d", ["a", "b"], [5432, 5432]),
        ("u@a:1,b:2,c/d", "postgresql://u@a:1/d", ["a", "b", "c"], [1, 2, 5432]),
        ("[::1]:1,[fe80::2]/d", "postgresql://[::1]:1/d", ["::1", "fe80::2"], [1, 5432]),
        ("%2Frun,b:2/d", "postgresql:///d?host=%2Frun", ["/run", "b"], [5432, 2]),
        ("u@/d?host=a,b&port=7", "postgresql://u@a:7/d", ["a", "b"], [7, 7]),
        ("u@/d?host=a,::1&port=7,", "postgresql://u@a:7/d", ["a", "::1"], [7, 5432]),
        ("u@x:9/d?host=a,b&port=7,8", "postgresql://u@a:7/d", ["a", "b"], [7, 8]),
    ],
)
def test_several_hosts(address: str, url: str, hosts: list[str], ports: list[int]) -> None:
    """Several hosts are written as in libpq. The driver gets all of them, the libraries one."""
    arguments = {"host": hosts, "port": ports, "target_session_attrs": "read-write"}
    assert parse_database_url(f"postgresql://{address}") == DatabaseURL(url, arguments=arguments)


def test_the_kind_of_several_hosts() -> None:
    """Of several hosts one that takes writes is wanted, unless the URL says otherwise."""
    url = "postgresql://a,b/d?target_session_attrs=primary"
    assert parse_database_url(url).arguments["target_session_attrs"] == "primary"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///notes",
        "postgres://user:secret@/notes",
        "postgresql://user:secret@host:port/notes",
        "postgresql://user:secret@host:0/notes",
        "postgresql://user:secret@host:99999/notes",
        "postgresql://user:secret@[host/notes",
        "postgresql://user:secret@one,/notes",
        "postgresql://user:secret@one,two:port/notes",
        "postgresql://user:secret@one,t wo/notes",
        "postgresql://user:secret@one,[::1/notes",
        "postgresql://user:secret@/notes?host=one,two,three&port=1,2",
        "postgresql://user:secret@one,two/notes?port=1,2,3",
        "postgresql://user:secret@one,two/notes?target_session_attrs=prefer-standby",
        "postgresql://user:secret@a b/notes",
        "postgresql://user:1#secret@host/notes",
        "postgresql://user:1/secret@host/notes",
        "postgresql://user:1?secret@host/notes",
        "postgresql://user:%ff@host/notes",
        "postgresql://user:%00@host/notes",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///%3Amemory%3A",
        "sqlite:///notes.db?mode=ro",
        "sqlite:///notes.db#part",
        "sqlite:///notes.db/",
        "sqlite:///a%00b",
        "sqlite:///%ff",
        "sqlite:///\udcff",
        "sqlite:notes.db",
        "SQLITE:///notes.db",
        "sqlite:////",
        "sqlite:////tmp",
        "sqlite:////%74mp",
        *(
            f"{POSTGRESQL}?{query}"
            for query in (
                "sslmode=maybe",
                "ssl=true&sslmode=require",
                "sslmode=disable&channel_binding=require",
                "channel_binding=maybe",
                "gssencmode=require",
                "sslcrl=crl.pem",
                "ssl_min_protocol_version=TLSv1.3",
                "require_auth=scram-sha-256",
                "service=notes",
                "hostaddr=127.0.0.1",
                "target_session_attrs=fast",
                "connect_timeout=soon",
                "connect_timeout=nan",
                "pgbouncer=maybe",
                "min_size=9",
                "schema=other",
            )
        ),
    ],
)
def test_unusable_database_urls(url: str) -> None:
    """An option that can't be honoured or ignored is refused, without the password."""
    with pytest.raises(ValueError, match=r"^\w") as refused:
        parse_database_url(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def documented() -> dict[str, str]:
    """The default of each variable in the table of docs/settings.md. None and any are empty."""
    row = r"^\| `([A-Z_]+)` \| (?:`([^`]+)`|none|any) \|"
    return dict(re.findall(row, (ROOT / "docs/settings.md").read_text(), re.MULTILINE))


def settings_with(variables: dict[str, str]) -> dict[str, Any]:
    """All settings in a process with these variables."""
    values = ", ".join(f"{name!r}: settings.{name}" for name in sorted(NAMES - OTHERS))
    code = f"from service import settings; print({{{values}}})"
    ended = run(sys.executable, "-c", code, **variables)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = eval(ended.stdout)
    return found


def test_every_setting_is_in_the_table(tmp_path: Path) -> None:
    """The table has each setting and its default. To set a default changes nothing."""
    defaults = documented()
    assert set(defaults) == NAMES
    given = {name: default for name, default in defaults.items() if default}
    values = settings_with({})
    assert values == settings_with(given)
    assert not any(values[name] for name in NAMES - set(given))
    assert flags("scripts/run", tmp_path) == flags("scripts/run", tmp_path, **given)
    # Under the Procfile it has another default, as the table says.
    del given["FORWARDED_ALLOW_IPS"]
    assert flags(web_command(), tmp_path) == flags(web_command(), tmp_path, **given)


def test_the_readme_names_every_setting() -> None:
    """README's overview has each setting once, and nothing else."""
    section = re.search(r"^## Settings\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None
    named = re.findall(r"`([A-Z_]+)`", "".join(re.findall(r"^\|.*\n", section[1], re.MULTILINE)))
    assert sorted(named) == sorted(NAMES)


def test_every_setting_is_in_the_example() -> None:
    """`.env.example` has a line for each setting and for nothing else, with the table's default.

    Where there is none, the line is an example in a comment.
    """
    text = (ROOT / ".env.example").read_text()
    lines = re.findall(r"^(#?)([A-Z_]+)=(.*)$", text, re.MULTILINE)
    assert sorted(name for _, name, _ in lines) == sorted(NAMES)
    defaults = documented()
    for comment, name, value in lines:
        if defaults[name]:
            assert value == defaults[name], name
        else:
            assert comment, name
