"""The newcomer's way: the repository's files, an empty environment and scripts/run."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.support.databases import ROOT
from tests.support.notes import known
from tests.support.servers import end, free_port, wait_until_listening
from tests.support.wheels import fetched

NOTE = {"text": "First", "completed": True}


class Newcomer(NamedTuple):
    """A project after its first run, and the answer to its first note."""

    folder: Path
    answer: dict[str, Any]


def copy_repository(folder: Path) -> Path:
    """Copies the files of a clone: no ignored files, no .venv."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def bare_environment(**variables: str) -> dict[str, str]:
    kept = ("PATH", "HOME", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | variables


def wait_until_installed(process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    for _ in range(6000):
        if (folder / ".venv/installed/requirements.txt").exists():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@contextmanager
def scripts_run(folder: Path, log: Path, port: int, **variables: str) -> Iterator[httpx2.Client]:
    """Runs scripts/run until the block ends, and yields a client of the service."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [folder / "scripts/run"],
            env=bare_environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_installed(process, folder, log)
        wait_until_listening(process, port, log)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        end(process)


def run_to_the_end(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/run where it has to give up."""
    return subprocess.run(
        [folder / "scripts/run"],
        env=bare_environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """Clones, runs, posts a note and stops. Later runs can't install anything."""
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    log = tmp_path_factory.mktemp("log") / "run.log"
    port = free_port()
    # The Python of the wheels that are kept.
    commands = tmp_path_factory.mktemp("bin")
    fake_command(commands / "python3", f"exec '{sys.executable}' \"$@\"")
    variables = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PORT": str(port),
        # pip asks no index, which it would do once for each package.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": fetched(ROOT / "requirements.txt").as_uri(),
        # Most of what pip would compile is never imported.
        "PIP_COMPILE": "0",
    }
    with scripts_run(folder, log, port, **variables) as client:
        answer = client.post("/notes/", json=NOTE).json()
    (folder / ".venv/bin/pip").write_text("#!/bin/sh\nexit 1\n")
    return Newcomer(folder, answer)


@pytest.fixture
def env_file(newcomer: Newcomer) -> Iterator[Path]:
    """The project's .env, gone again after the test."""
    path = newcomer.folder / ".env"
    yield path
    path.unlink()


def fake_python(path: Path, version: tuple[int, int, int]) -> Path:
    """An interpreter that takes itself for another version."""
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretend}' \"$2\"\n")
    path.chmod(0o755)
    return path


def test_first_run_installs_migrates_and_serves(newcomer: Newcomer) -> None:
    """One command takes a fresh clone to a service that stores notes in notes.db."""
    assert known(newcomer.answer) == {"id": 1, **NOTE}
    assert (newcomer.folder / "notes.db").is_file()


def test_first_run_leaves_out_development_requirements(newcomer: Newcomer) -> None:
    """Running the service installs nothing that only its tests need."""
    commands = {path.name for path in (newcomer.folder / ".venv/bin").iterdir()}

    assert {"alembic", "uvicorn"} <= commands
    assert not {"mypy", "pytest", "ruff"} & commands


def test_second_run_keeps_notes_and_installs_nothing(
    newcomer: Newcomer, env_file: Path, tmp_path: Path
) -> None:
    """Notes survive a restart, which needs no pip, also with a copy of .env.example."""
    port = free_port()
    shutil.copy(newcomer.folder / ".env.example", env_file)
    with scripts_run(newcomer.folder, tmp_path / "log", port, PORT=str(port)) as client:
        assert client.get("/notes/").json() == [newcomer.answer]


def test_changed_requirements_are_installed(newcomer: Newcomer) -> None:
    """Changed requirements are installed before the service runs. A failure of pip ends it."""
    requirements = newcomer.folder / "requirements.txt"
    installed = newcomer.folder / ".venv/installed"
    original = requirements.read_text()
    requirements.write_text(original + "# changed\n")
    try:
        result = run_to_the_end(newcomer.folder)
    finally:
        requirements.write_text(original)
        failed = not installed.exists()
        installed.mkdir(exist_ok=True)
        shutil.copy(requirements, installed)

    assert result.returncode != 0
    assert failed


def test_variables_are_honoured(newcomer: Newcomer, tmp_path: Path) -> None:
    """The environment's HOST, PORT and DATABASE_URL are the service's."""
    port = free_port()
    log = tmp_path / "log"
    variables = {
        "HOST": "localhost",
        "PORT": str(port),
        "DATABASE_URL": f"sqlite:///{tmp_path}/other.db",
    }
    with scripts_run(newcomer.folder, log, port, **variables) as client:
        assert client.get("/notes/").json() == []

    assert f"http://localhost:{port} " in log.read_text()
    assert (tmp_path / "other.db").is_file()


def test_env_file_is_read(newcomer: Newcomer, env_file: Path, tmp_path: Path) -> None:
    """Variables of .env are the service's settings."""
    port = free_port()
    log = tmp_path / "log"
    env_file.write_text(
        f"# Comment\nHOST=localhost\nPORT={port}\nDATABASE_URL=sqlite:///{tmp_path}/env.db\n"
    )
    with scripts_run(newcomer.folder, log, port) as client:
        assert client.get("/notes/").json() == []

    assert f"http://localhost:{port} " in log.read_text()
    assert (tmp_path / "env.db").is_file()


def test_environment_wins_over_env_file(newcomer: Newcomer, env_file: Path, tmp_path: Path) -> None:
    """A variable of the environment wins over .env, whose empty ones count as not set."""
    port = free_port()
    # Any characters.
    folder = tmp_path / 'it\'s $HOME; "quoted"'
    folder.mkdir()
    empty = ("HOST", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "MAX_REQUESTS")
    env_file.write_text(
        f"PORT=1\nDATABASE_URL=sqlite:///{tmp_path}/env.db\n"
        + "".join(f"{name}=\n" for name in empty)
    )
    variables = {"PORT": str(port), "DATABASE_URL": f"sqlite:///{folder}/notes.db"}
    with scripts_run(newcomer.folder, tmp_path / "log", port, **variables) as client:
        assert client.get("/notes/").json() == []
        headers = {"x-forwarded-proto": "https"}
        assert client.get("/notes", headers=headers).headers["location"].startswith("https://")

    assert (folder / "notes.db").is_file()
    assert not (tmp_path / "env.db").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("WEB_CONCURRENCY", "x"), ("CORS_ORIGINS", "a.example"), ("HOST", "..")]
)
def test_nonsense_is_refused(newcomer: Newcomer, tmp_path: Path, name: str, value: str) -> None:
    """A value that can't be used ends the run with one line, before anything is migrated."""
    database = tmp_path / "notes.db"
    variables = {"DATABASE_URL": f"sqlite:///{database}", name: value}
    result = run_to_the_end(newcomer.folder, **variables)

    assert result.returncode != 0
    assert re.fullmatch(f"Configuration: .*{name}.*\n", result.stderr)
    assert not database.exists()


def test_a_database_that_is_away_ends_the_run(newcomer: Newcomer) -> None:
    """If the database is away, the script ends with one line, without the password."""
    url = f"postgresql://bob:s3cr3t@127.0.0.1:{free_port()}/notes"
    result = run_to_the_end(newcomer.folder, DATABASE_URL=url)

    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Database {url.replace('s3cr3t', '***')}: ")


def fake_command(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("which", ["", "dev"])
def test_a_long_installation_is_not_silent(tmp_path: Path, which: str) -> None:
    """While pip works, a line every few seconds says for how long, and how much is there."""
    folder = copy_repository(tmp_path / "clone")
    log = tmp_path / "log"
    # Three seconds pass at once, and pip waits until twelve were told of.
    fake_command(tmp_path / "bin/sleep", "exec /bin/sleep 0.01")
    fake_command(
        folder / ".venv/bin/pip",
        f"for i in $(seq 500); do grep -q ' 12 s, ' '{log}' && exit; /bin/sleep 0.01; done; exit 1",
    )
    (folder / ".venv/lib/python3/site-packages/one.dist-info").mkdir(parents=True)
    environment = bare_environment()
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"

    with log.open("wb") as output:
        subprocess.run(
            [folder / "scripts/install", *filter(None, [which])],
            env=environment,
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
        )

    name = "requirements-dev.txt" if which else "requirements.txt"
    step = f"Installing {name} ..."
    lines = log.read_text().splitlines()
    assert len(lines) > 4
    assert lines == [
        f"{step} {3 * n} s, packages so far: 1" if n else step for n in range(len(lines))
    ]


def test_a_missing_version_of_pyenv_is_no_obstacle(tmp_path: Path) -> None:
    """With pyenv another version does, if it lacks the one of .python-version."""
    folder = copy_repository(tmp_path / "clone")
    shims = tmp_path / "shims"
    for version in ("3", "3.14", "3.13", "3.12"):
        fake_command(shims / f"python{version}", "exit 127")
    # What the command of pyenv runs is no command of pyenv.
    installed = tmp_path / "3.11.9/python"
    fake_command(
        installed, 'mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/pip"; echo "$*" >>"$0.arguments"'
    )
    fake_command(
        shims / "python3.11", f'[ "$PYENV_VERSION" = 3.11 ] || exit 127; echo "{installed}"'
    )
    environment = bare_environment()
    environment["PATH"] = f"{shims}:/usr/bin:/bin"

    subprocess.run([folder / "scripts/install"], env=environment, check=True, timeout=300)

    assert Path(f"{installed}.arguments").read_text() == "-m venv .venv\n"


def test_venv_names_another_folder(tmp_path: Path) -> None:
    """CI has a virtual environment for each Python, beside .venv."""
    folder = copy_repository(tmp_path / "clone")
    pip = folder / ".venv-3.12/bin/pip"
    fake_command(pip, f'echo "$*" >>"{tmp_path}/pip"')

    for _ in range(2):
        environment = bare_environment(VENV=".venv-3.12")
        subprocess.run([folder / "scripts/install"], env=environment, check=True, timeout=300)

    assert (tmp_path / "pip").read_text().count("install ") == 1
    assert not (folder / ".venv").exists()


def test_old_python_is_refused(tmp_path: Path) -> None:
    """An interpreter older than 3.11 gives one line of advice, and nothing is made."""
    folder = copy_repository(tmp_path / "clone")
    python = fake_python(tmp_path / "python3.10", (3, 10, 19))

    result = run_to_the_end(folder, PYTHON=str(python))

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "Python 3.11 or newer with venv is needed; name it with PYTHON=/path/to/python3.11\n"
    )
    assert not (folder / ".venv").exists()


def test_git_for_windows_keeps_line_ends(tmp_path: Path) -> None:
    """A checkout with `core.autocrlf`, as on Windows, has scripts that shells can run."""
    copy_repository(tmp_path)

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    script = tmp_path / "scripts/web"
    before = script.read_bytes()
    shutil.rmtree(tmp_path / "scripts")
    git("checkout", "-q", ".")
    assert script.read_bytes() == before
