"""The Procfile, carried out by honcho as by a platform such as Heroku."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from honcho.environ import parse_procfile
from uvicorn.main import main

from tests.support.databases import ROOT, NewDatabase, run
from tests.support.flags import flags, web_command
from tests.support.notes import known
from tests.support.raw import connect, send
from tests.support.servers import free_port, process
from tests.support.template import Process
from tests.support.waiting import poll

NOTE = {"text": "Deployed", "completed": False}


@pytest.fixture
def database_url(new_empty_database: NewDatabase) -> str:
    """An empty database that no migration has seen, under the scheme that Heroku gives."""
    return "postgres" + new_empty_database("postgresql").removeprefix("postgresql")


def honcho(name: str, env_file: str = "/dev/null") -> list[str]:
    """The command for a process of the Procfile, which reads no developer's .env."""
    return [sys.executable, "-m", "honcho", "start", "-e", env_file, name]


def release(database_url: str) -> subprocess.CompletedProcess[str]:
    return run(*honcho("release"), DATABASE_URL=database_url)


@contextmanager
def web(database_url: str, log: Path, **variables: str) -> Iterator[tuple[Process, str]]:
    """Serves by the Procfile and yields honcho's process and the service's URL."""
    port = free_port()
    variables |= {"DATABASE_URL": database_url, "PORT": str(port)}
    with process(honcho("web"), port, log, variables) as running:
        yield running, f"http://127.0.0.1:{port}"


def wait_for_servers(log: Path, count: int) -> None:
    """Returns when so many server processes have started. AssertionError if they don't."""
    started = "Application startup complete"
    poll(lambda: log.read_text().count(started) == count, log.read_text)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(group: int, log: Path) -> None:
    """An orphan is there until the system's first process takes note of its end."""
    poll(lambda: not group_exists(group), log.read_text)


def test_release_then_web(database_url: str, tmp_path: Path) -> None:
    """The Procfile migrates an empty database, and serves from WEB_CONCURRENCY processes.

    SIGTERM, by which a platform stops a process, leaves nothing running.
    """
    released = release(database_url)
    assert released.returncode == 0, released.stdout + released.stderr

    for count in (1, 2):
        log = tmp_path / f"{count}.log"
        with web(database_url, log, WEB_CONCURRENCY=str(count)) as (running, url):
            wait_for_servers(log, count)
            posted = httpx2.post(f"{url}/notes/", json=NOTE, timeout=30)
            listed = httpx2.get(f"{url}/notes/", timeout=30)
            found = re.search(r"web\.1 started \(pid=(\d+)\)", log.read_text())
            assert found is not None
            group = int(found[1])
            assert group_exists(group)

        assert known(posted.json()) == {"id": count, **NOTE}
        assert known(listed.json()) == [{"id": each + 1, **NOTE} for each in range(count)]
        assert running.returncode == 143
        assert log.read_text().count("Application shutdown complete") == count
        wait_until_gone(group, log)


def test_env_file_wins_with_honcho(tmp_path: Path) -> None:
    """honcho puts .env above the environment, as .env.example says."""
    env_file = tmp_path / ".env"
    env_file.write_text(f"DATABASE_URL=sqlite:///{tmp_path}/right.db\n")
    command = honcho("release", str(env_file))
    result = run(*command, DATABASE_URL=f"sqlite:///{tmp_path}/wrong.db")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "right.db").exists()
    assert not (tmp_path / "wrong.db").exists()


def test_failed_release_is_seen(database_url: str) -> None:
    """A release that can't migrate fails, so that the platform keeps the old version."""
    missing = urlsplit(database_url)._replace(path="/nowhere").geturl()
    assert release(missing).returncode != 0


@pytest.mark.parametrize("command", [web_command(), "scripts/run"], ids=["web", "run"])
def test_the_flags_are_documented(tmp_path: Path, command: str) -> None:
    """uvicorn gets the times that docs/deploying.md explains, and no flags but these."""
    page = " ".join((ROOT / "docs/deploying.md").read_text().split())
    times = re.search(
        r"keep-alive of (\d+) s outlasts the (\d+) s for which a router keeps idle connections; "
        r"the (\d+) s of grace at shutdown end before the platform's SIGKILL at (\d+) s",
        page,
    )
    assert times is not None
    keep_alive, idle, grace, kill = map(int, times.groups())
    assert keep_alive > idle
    assert grace < kill
    given = flags(command, tmp_path)
    plain = main.make_context("uvicorn", ["service.app:app"]).params
    changed = {name: given[name] for name in given if given[name] != plain[name]}
    del changed["forwarded_allow_ips"]
    address = {} if command == "scripts/run" else {"host": "0.0.0.0"}
    assert changed == address | {
        "workers": 1,
        "loop": "uvloop",
        "http": "service.protocol:Protocol",
        "timeout_keep_alive": keep_alive,
        "timeout_graceful_shutdown": grace,
        "server_header": False,
        "access_log": False,
    }


def test_what_the_flags_do(database_url: str, tmp_path: Path) -> None:
    """The web process serves on every address, with uvloop, and without uvicorn's own log.

    Empty variables count as not set.
    """
    log = tmp_path / "web.log"
    empty = {"WEB_CONCURRENCY": "", "HOST": "", "MAX_REQUESTS": ""}
    with web(database_url, log, **empty) as (started, url):
        answer = httpx2.get(f"{url.replace('127.0.0.1', '127.0.0.2')}/health/live", timeout=30)
        assert answer.status_code == 200
        assert "server" not in answer.headers
        children = psutil.Process(started.pid).children(recursive=True)
        assert any("uvloop" in mapped.path for child in children for mapped in child.memory_maps())
    assert "path=/health/live" in log.read_text()
    assert '"GET /health/live' not in log.read_text()


def test_idle_connections_end_after_the_keep_alive(database_url: str, tmp_path: Path) -> None:
    """A connection takes one request after the other, and is closed when it has been idle."""
    port = free_port()
    command = web_command().replace("--timeout-keep-alive 95", "--timeout-keep-alive 1")
    variables = {"DATABASE_URL": database_url, "PORT": str(port)}
    with (
        process(["sh", "-c", command], port, tmp_path / "log", variables),
        connect(f"http://127.0.0.1:{port}") as connection,
    ):
        for _ in range(2):
            assert send(connection, "GET", "/health/live").status == 200
        assert connection.sock.recv(1) == b""


def test_app_json_fits_procfile() -> None:
    """app.json asks for Python, a PostgreSQL, and at least one process that the Procfile has."""
    app = json.loads((ROOT / "app.json").read_text())
    processes = parse_procfile((ROOT / "Procfile").read_text()).processes

    assert {"url": "heroku/python"} in app["buildpacks"]
    assert "heroku-postgresql" in app["addons"]
    assert app["formation"]["web"]["quantity"] >= 1
    assert set(app["formation"]) <= set(processes)


def test_python_version_is_supported() -> None:
    """.python-version names a version that the service runs on and nothing else."""
    version = (ROOT / ".python-version").read_text().strip()

    assert re.fullmatch(r"3\.\d+", version)
    assert int(version.removeprefix("3.")) >= 11
