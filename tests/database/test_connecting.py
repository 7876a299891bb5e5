"""TLS to PostgreSQL, PgBouncer between, and a router in front."""

import itertools
import re
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest

from tests.support.clusters import (
    Authority,
    PostgresqlServer,
    Server,
    configure,
    running_pgbouncer,
    running_server,
    write_for,
)
from tests.support.daemons import PASSWORD, ROLE, needs
from tests.support.databases import NewDatabase, alembic, execute
from tests.support.debian import running_cluster
from tests.support.flags import arguments, web_command
from tests.support.notes import known
from tests.support.operating import operate
from tests.support.servers import free_port, process, serving
from tests.support.waiting import poll

NOTE = {"text": "a", "completed": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


class Encrypted(NamedTuple):
    """A server that takes the role over TLS only, as `localhost`, and files with CAs."""

    server: Server
    files: dict[str, str]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    needs("openssl")
    folder = tmp_path_factory.mktemp("ca")
    right, wrong = Authority(folder / "right"), Authority(folder / "wrong")
    certificate, key = right.sign("localhost")
    with running_cluster() as cluster:
        write_for(cluster, cluster.data / "server.crt", certificate)
        write_for(cluster, cluster.data / "server.key", key)
        write_for(cluster, cluster.data / "ca.crt", right.file.read_text())
        configure(cluster, ssl="on", ssl_ca_file="ca.crt")
        server = PostgresqlServer(cluster)
        server.execute(f"CREATE ROLE certified LOGIN IN ROLE {ROLE}")
        hba = "hostssl all certified 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 trust\n"
        write_for(cluster, cluster.data / "pg_hba.conf", hba)
        configure(cluster)
        files = {"right": str(right.file), "wrong": str(wrong.file), "": ""}
        files["without usage"] = str(right.file_without_usage)
        for name, text in zip(("certificate", "key"), right.sign("certified"), strict=True):
            (folder / name).write_text(text)
            files[name] = str(folder / name)
        yield Encrypted(server, files)


@pytest.mark.parametrize(
    ("host", "query", "ca", "status"),
    [
        ("127.0.0.1", "", "", 200),
        ("127.0.0.1", "?sslmode=require", "", 200),
        ("127.0.0.1", "?ssl=require", "", 200),
        ("localhost", "?ssl=true", "", 503),  # it is verified, by what the system trusts
        ("127.0.0.1", "?sslmode=disable", "", 503),
        ("localhost", "?sslmode=verify-full", "right", 200),
        ("localhost", "?sslmode=verify-full", "", 503),
        ("127.0.0.1", "?sslmode=verify-full", "right", 503),
        ("localhost", "?sslrootcert={right}", "", 200),
        ("127.0.0.1", "?sslrootcert={right}", "", 503),
        ("localhost", "?sslrootcert={wrong}", "right", 200),
        ("localhost", "?sslmode=require&sslrootcert=system", "", 503),
        ("127.0.0.1", "?sslmode=require&channel_binding=prefer", "", 200),
        ("localhost", "?sslmode=require&channel_binding=require", "", 503),
        ("localhost", "?sslmode=require&channel_binding=require", "right", 200),
        ("127.0.0.1", "?sslmode=require&channel_binding=require", "right", 503),
        ("127.0.0.1", "?user=certified&sslmode=require", "", 503),
        ("127.0.0.1", "?user=certified&sslcert={certificate}&sslkey={key}", "", 200),
        ("127.0.0.1", "?sslmode=require", "right", 503),
        ("127.0.0.1", "?sslmode=verify-ca", "right", 200),
        ("127.0.0.1", "?sslmode=verify-ca", "wrong", 503),
    ],
)
def test_tls(
    encrypted: Encrypted, tmp_path: Path, host: str, query: str, ca: str, status: int
) -> None:
    """The URL and DATABASE_CA_FILE decide on TLS and on verifying the server."""
    url = encrypted.server.url("template", host) + query.format(**encrypted.files)
    file = encrypted.files[ca]
    with serving(url, tmp_path / "log", DATABASE_CA_FILE=file) as client:
        assert client.get("/notes/").status_code == status
        ready = client.get("/health/ready")
        assert ready.status_code == status, ready.text
        used = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        encrypted_all = encrypted.server.execute(f"{used} WHERE usename IN ('{ROLE}', 'certified')")
        assert encrypted_all is (True if status == 200 else None)


@pytest.mark.parametrize(
    ("hosts", "status"),
    [(("127.0.0.1", "localhost"), 200), (("127.0.0.1", "127.0.0.2"), 503)],
)
def test_tls_of_several_hosts(
    encrypted: Encrypted, tmp_path: Path, hosts: tuple[str, ...], status: int
) -> None:
    """Each host's certificate has to be for its own name."""
    port = encrypted.server.cluster.port
    addresses = ",".join(f"{host}:{port}" for host in hosts)
    url = f"postgresql://{ROLE}@{addresses}/template?sslmode=verify-full"
    with serving(url, tmp_path / "log", DATABASE_CA_FILE=encrypted.files["right"]) as client:
        assert client.get("/notes/").status_code == status
    assert ("certificate verify failed" in (tmp_path / "log").read_text()) == (status == 503)


@pytest.mark.parametrize(
    ("host", "query", "ca", "works"),
    [
        ("localhost", "?sslmode=verify-full", "right", True),
        ("127.0.0.1", "?sslmode=verify-ca", "wrong", False),
        ("localhost", "?sslrootcert={right}&channel_binding=require", "", True),
        ("localhost", "?sslmode=require&channel_binding=require", "", False),
    ],
)
def test_tls_of_migrations(
    encrypted: Encrypted, host: str, query: str, ca: str, works: bool
) -> None:
    """Alembic connects by the same URL and CA file as the service."""
    database = f"empty_{int(works)}_{ca}"
    encrypted.server.execute(f"CREATE DATABASE {database} OWNER notes")
    url = encrypted.server.url(database, host) + query.format(**encrypted.files)
    assert migrate(url, DATABASE_CA_FILE=encrypted.files[ca]) is works
    tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'notes'"
    assert execute(encrypted.server.of_superuser(url), tables) == works


# uvicorn with what Python 3.13 and newer want of certificates, on any Python.
STRICT = """
import ssl

make = ssl.create_default_context

def make_strict(*arguments, **named):
    context = make(*arguments, **named)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context

ssl.create_default_context = make_strict

from uvicorn.main import main

main()
"""


@pytest.mark.parametrize(
    ("file", "trusted", "status"),
    [
        ("without usage", "", 200),
        ("system", "without usage", 503),
        ("system", "right", 200),
    ],
)
def test_tls_where_python_is_strict(
    encrypted: Encrypted, tmp_path: Path, file: str, trusted: str, status: int
) -> None:
    """On every Python a CA in a file may lack `keyUsage`. The system's CAs follow Python."""
    port = free_port()
    variables = {
        "DATABASE_URL": encrypted.server.url("template", "localhost") + "?sslmode=verify-full",
        "DATABASE_CA_FILE": encrypted.files.get(file, file),
        # OpenSSL's variable for the file with the CAs that the system trusts.
        "SSL_CERT_FILE": encrypted.files[trusted],
    }
    command = [sys.executable, "-c", STRICT, "service.app:app", "--port", str(port)]
    with process(command, port, tmp_path / "log", variables):
        assert httpx2.get(f"http://127.0.0.1:{port}/notes/", timeout=30).status_code == status
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1", 503)])
def test_the_systems_cas_sign_for_a_name(
    encrypted: Encrypted, tmp_path: Path, host: str, status: int
) -> None:
    """`verify-ca` checks the name too, unless a file has the CAs: the system's serve anybody."""
    url = encrypted.server.url("template", host) + "?sslmode=verify-ca"
    trusted = encrypted.files["right"]
    with serving(url, tmp_path / "log", SSL_CERT_FILE=trusted) as client:
        assert client.get("/notes/").status_code == status


def test_options_of_the_url(server: Server, tmp_path: Path) -> None:
    """The service and Alembic give the server a name and settings from the URL, as libpq does."""
    plain = server.new_database()
    server_url = server.of_superuser(plain)
    execute(server_url, f"CREATE SCHEMA other AUTHORIZATION {ROLE}")
    url = f"{plain}?application_name=my%20notes&options=-c%20search_path%3Dother%20-c%20geqo%3Doff"
    assert migrate(url)
    with serving(url, tmp_path / "log") as client:
        assert client.post("/notes/", json=NOTE).json()["id"] == 1
        names = "SELECT string_agg(DISTINCT application_name, ',') FROM pg_stat_activity"
        assert server.execute(f"{names} WHERE usename = '{ROLE}'") == "my notes"
    assert execute(server_url, "SELECT count(*) FROM other.notes") == 1
    assert execute(server_url, "SELECT count(*) FROM public.notes") == 0


@pytest.mark.parametrize("options", ["-c%20nope%3D1", "-c%20geqo%3Dperhaps", "nonsense"])
def test_options_that_the_server_refuses(server: Server, tmp_path: Path, options: str) -> None:
    """If the server refuses the URL's options, the service is unavailable."""
    url = f"{server.new_database()}?options={options}"
    with serving(url, tmp_path / "log") as client:
        assert client.get("/notes/").status_code == 503
        assert client.post("/notes/", json=NOTE).status_code == 503
        assert client.get("/health/ready").status_code == 503


@pytest.mark.parametrize(
    ("read_only", "session", "works"),
    [
        (False, "read-write", True),
        (False, "primary", True),
        (False, "standby", False),
        (True, "read-write", False),
        (True, "read-only", True),
        (True, "prefer-standby", True),
    ],
)
def test_target_session(
    server: Server, tmp_path: Path, read_only: bool, session: str, works: bool
) -> None:
    """The service and Alembic use a server only if it is of the kind that the URL asks for."""
    plain = server.new_database()
    if read_only:
        name = urlsplit(plain).path[1:]
        server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    url = f"{plain}?target_session_attrs={session}"
    with serving(url, tmp_path / "log") as client:
        for path in ("/notes/", "/health/ready"):
            assert client.get(path).status_code == (200 if works else 503)
    result = alembic(url, "upgrade", "head")
    assert (result.returncode == 0) is works
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "form",
    [
        "postgresql:///{name}?host={folder}&user={user}",
        "postgresql:///?dbname={name}&host={quoted}&user={user}",
        "postgresql://{user}@{quoted}/{name}",
        "postgres://{user}:@:5432/{name}?host={folder}",
    ],
)
def test_unix_sockets(new_database: NewDatabase, tmp_path: Path, form: str) -> None:
    """The service and Alembic find the folder of a Unix socket in any of libpq's forms."""
    given = urlsplit(new_database("postgresql"))
    (folder,) = parse_qs(given.query)["host"]
    parts = {"name": given.path[1:], "folder": folder, "user": given.username}
    url = form.format(**parts, quoted=quote(folder, safe=""))
    assert migrate(url)
    with serving(url, tmp_path / "log") as client:
        assert known(client.post("/notes/", json=NOTE).json()) == {"id": 1, **NOTE}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("my notes.db", "my notes.db"),
        ("my+%31%20notes.db", "my+1 notes.db"),
        ("100%.db", "100%.db"),
        ("a%3Fb%23c.db", "a?b#c.db"),
        ("nötes@host:1.db", "nötes@host:1.db"),
        ("my%20folder/notes.db", "my folder/notes.db"),
        ("my%2Fnotes.db", "my/notes.db"),
    ],
)
def test_names_of_files(tmp_path: Path, written: str, name: str) -> None:
    """The service, Alembic and the commands open the same file, with any name."""
    folder = tmp_path / "files"
    (folder / name).parent.mkdir(parents=True)
    url = f"sqlite:///{folder}/{written}"
    assert migrate(url)
    assert operate(url, "users", "add", "bob").returncode == 0
    with serving(url, tmp_path / "log") as client:
        assert known(client.post("/notes/", json=NOTE).json()) == {"id": 1, **NOTE}
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    assert {re.sub("-(wal|shm)$", "", file) for file in files} == {str(folder / name)}
    with closing(sqlite3.connect(folder / name)) as file:
        assert file.execute("SELECT count(*) FROM notes").fetchone() == (1,)
        assert file.execute("SELECT count(*) FROM users").fetchone() == (1,)


def migrate(url: str, **variables: str) -> bool:
    """Whether `alembic upgrade head` succeeds."""
    return alembic(url, "upgrade", "head", **variables).returncode == 0


def test_pgbouncer_in_transaction_mode(server: Server, tmp_path: Path) -> None:
    """Behind PgBouncer all kinds of requests work at once, and so do migrations."""
    server.execute("CREATE DATABASE behind OWNER notes")
    with running_pgbouncer(server, connections=3) as port:
        url = server.url("behind", port=port)
        # Two runs at once, and then one that has nothing to do.
        with ThreadPoolExecutor() as threads:
            runs = [threads.submit(migrate, url, DATABASE_STATEMENT_CACHE="0") for _ in range(2)]
        assert all(run.result() for run in runs)
        assert migrate(url, DATABASE_STATEMENT_CACHE="0")
        assert server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        options = {"DATABASE_STATEMENT_CACHE": "0", "DATABASE_POOL_MAX": "8"}
        several = url.replace(f":{port}/", f":{port},127.0.0.1:{free_port()}/")
        with (
            serving(url, tmp_path / "one", **options) as first,
            serving(several, tmp_path / "two", **options) as second,
            ThreadPoolExecutor(16) as threads,
        ):
            clients = itertools.cycle([first, second])
            answers = threads.map(ask, range(300), clients)
            assert {answer.status_code for answer in answers} == {200}
            texts = [note["text"] for note in second.get("/notes/").json()]
            assert first.get("/health/ready").status_code == 200
            assert server.backends(url) <= 3
        # Each round of six stores four notes.
        assert sorted(texts) == sorted(
            text
            for number in range(0, 300, 6)
            for text in (f"n{number}", f"K{number + 1}", f"b{number + 2}", f"c{number + 2}")
        )


def ask(number: int, client: httpx2.Client) -> httpx2.Response:
    """Sends a request of some kind. The first three kinds store notes."""
    kind = number % 6
    if kind == 0:
        return client.post("/notes/", json={"text": f"n{number}", "completed": False})
    if kind == 1:
        headers = {"idempotency-key": f"key-{number}"}
        body = {"text": f"K{number}", "completed": True}
        stored = client.post("/notes/", json=body, headers=headers)
        again = client.post("/notes/", json=body, headers=headers)
        assert again.json() == stored.json()
        return again
    if kind == 2:
        batch = [{"text": f"{letter}{number}", "completed": True} for letter in "bc"]
        return client.post("/notes/batch", json=batch)
    if kind == 3:
        return client.get("/notes/", params={"q": f"k{number % 10}", "limit": number % 7 + 1})
    if kind == 4:
        return client.get("/notes/", params={"completed": "true", "order": "desc"})
    return client.get("/health/ready")


@contextmanager
def routing(database_url: str, log: Path, **variables: str) -> Iterator[httpx2.Client]:
    """A client that speaks as a router does, to the service as the Procfile starts it."""
    port = free_port()
    variables |= {"PORT": str(port), "DATABASE_URL": database_url}
    given = arguments(web_command(), log.parent / "script", **variables)
    headers = {
        "host": "notes.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "6.6.6.6, 203.0.113.7",
    }
    with (
        process([sys.executable, "-m", "uvicorn", *given], port, log, variables),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as client,
    ):
        yield client


# The first and the last addresses of the private networks, and their neighbours.
ROUTERS = [
    *("::1", "10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0"),
    *("192.168.255.255", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
]
STRANGERS = [
    *("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255"),
    *("192.169.0.0", "100.64.0.1", "169.254.0.1", "fbff::1", "fe00::", "fe80::1", "::2"),
]


@pytest.fixture
def routed(new_database: NewDatabase, tmp_path: Path) -> Iterator[tuple[httpx2.Client, Path]]:
    """A client behind a router, and the log."""
    log = tmp_path / "log"
    with routing(new_database("postgresql"), log) as client:
        yield client, log


def test_links_behind_a_router(routed: tuple[httpx2.Client, Path]) -> None:
    """Redirects and links lead to https where the client has spoken https to the router."""
    client, _ = routed
    for _ in range(2):
        posted = client.post("/notes/", json=NOTE, headers={"prefer": "return=minimal"})
        assert posted.headers["location"].startswith("https://notes.example/notes/")
    redirect = client.get("/notes")
    assert redirect.headers["location"] == "https://notes.example/notes/"
    listing = client.get("/notes/?limit=1")
    assert listing.headers["link"].startswith("<https://notes.example/notes/?limit=1&after=")
    plain = client.get("/notes", headers={"x-forwarded-proto": "http"})
    assert plain.headers["location"] == "http://notes.example/notes/"


def test_the_address_in_the_log(routed: tuple[httpx2.Client, Path]) -> None:
    """The log has the rightmost address that is no router's. Clients can't forge it."""
    client, log = routed
    addresses = {
        "6.6.6.6, 203.0.113.7": "203.0.113.7",
        "203.0.113.8": "203.0.113.8",
        "6.6.6.6, 203.0.113.9, 10.1.2.3": "203.0.113.9",
        "127.0.0.1, 203.0.113.10": "203.0.113.10",
        "10.1.2.3, 2001:db8::7": "2001:db8::7",
    } | {f"203.0.113.11, {address}": "203.0.113.11" for address in ROUTERS}
    addresses |= {f"203.0.113.12, {address}": address for address in STRANGERS}
    for forwarded in addresses:
        answer = client.get("/openapi.json", headers={"x-forwarded-for": forwarded})
        assert answer.status_code == 200
    poll(lambda: log.read_text().count("path=/openapi.json") == len(addresses), log.read_text)
    logged = re.findall(r"path=/openapi.json .* fwd=(\S+)", log.read_text())
    assert logged == list(addresses.values())


@pytest.mark.parametrize(
    ("value", "scheme", "address"),
    [
        ("", "https", "203.0.113.7"),
        ("*", "https", "203.0.113.7"),  # Heroku's buildpack sets it
        ("127.0.0.1, ::1", "https", "10.1.2.3"),
        ("10.0.0.0/8", "http", "127.0.0.1"),
        ("0.0.0.0/0,::/0", "https", "6.6.6.6"),
    ],
)
def test_routers_of_the_environment(
    new_database: NewDatabase, tmp_path: Path, value: str, scheme: str, address: str
) -> None:
    """Under the Procfile FORWARDED_ALLOW_IPS names the trusted routers, unless it is `*`."""
    log = tmp_path / "log"
    with routing(new_database("sqlite"), log, FORWARDED_ALLOW_IPS=value) as client:
        forwarded = {"x-forwarded-for": "6.6.6.6, 203.0.113.7, 10.1.2.3"}
        redirect = client.get("/notes", headers=forwarded)
        assert redirect.headers["location"] == f"{scheme}://notes.example/notes/"
        poll(lambda: "path=/notes " in log.read_text(), log.read_text)
    assert re.findall(r"path=/notes .* fwd=(\S+)", log.read_text()) == [address]


def test_a_password_file(server: Server, tmp_path: Path) -> None:
    """As in libpq, backslashes escape, and a file that others may read counts for nothing."""
    server.execute(
        f"CREATE ROLE \"colon:back\\\" LOGIN PASSWORD 'a:b\\c' IN ROLE {ROLE}",
        "ALTER ROLE \"colon:back\\\" SET role = 'notes'",
    )
    with (server.cluster.data / "pg_hba.conf").open("r+") as rules:
        rest = rules.read()
        rules.seek(0)
        rules.write('host all "colon:back\\" 127.0.0.1/32 scram-sha-256\n' + rest)
    server.execute("SELECT pg_reload_conf()")
    file = tmp_path / "pass file"
    file.write_text("# nobody\nother:*:*:*:wrong\n127.0.0.1:*:*:colon\\:back\\\\:a\\:b\\\\c\n")
    file.chmod(0o600)
    url = server.url("template").replace(f"{ROLE}:{PASSWORD}@", "colon%3Aback%5C@")
    url += f"?passfile={quote(str(file))}"
    assert migrate(url)
    with serving(url, tmp_path / "log") as client:
        assert client.get("/health/ready").status_code == 200
    file.chmod(0o640)
    assert not migrate(url)
