"""Generated clients and linters: what well-known tools make of the OpenAPI document.

The tools stand in tests/clients, pinned. Their programs for the FastAPI example are compiled with
what is generated from its document, and unchanged with what is generated from this service's, which
has all that LIVE=1 adds.
"""

import fcntl
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.fastapi_twin import app as twin
from service.app import document
from tests.support.databases import ROOT, NewDatabase, environment
from tests.support.notes import known
from tests.support.servers import running

CLIENTS = ROOT / "tests/clients"
CACHE = ROOT / ".cache/clients"
# openapi-python-client formats with the ruff that it finds.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
A_DAY = 24 * 3600
PROGRAMS = ("openapi-fetch", "orval", "hey-api")
VARIABLES = {"NO_COLOR": "1", "PATH": PATH}


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """A command's output; AssertionError with it for any other status."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**VARIABLES),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == status, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of the installed tools, which is kept until others are pinned."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        assert "CI" not in os.environ, "nothing is skipped in CI"
        pytest.skip("node and npm are needed")
    pinned = (CLIENTS / "package-lock.json").read_bytes()
    installed = CACHE / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE.parent / "clients.lock").open("w") as lock:
        # Others may want to install at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != pinned:
            installed.unlink(missing_ok=True)
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(CLIENTS / name, CACHE)
            run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=CACHE)
            installed.write_bytes(pinned)
    return CACHE / "node_modules"


@pytest.fixture(scope="module")
def live_document(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The document of the service with LIVE=1."""
    log = tmp_path_factory.mktemp("live") / "log"
    with running(new_database("sqlite"), log, LIVE="1") as url:
        return httpx2.get(f"{url}/openapi.json").json()


def test_following_is_added_alone(live_document: Any) -> None:
    """With LIVE=1 the document has one path more, and else is the same."""
    paths = {**live_document["paths"]}
    assert list(paths.pop("/notes/changes")) == ["get"]
    assert {**live_document, "paths": paths} == document


@pytest.fixture(scope="module")
def workshop(tools: Path, live_document: Any) -> Path:
    """A folder with both documents, and all that the tools make of them.

    It is kept. Its name tells of all that it is made of, so what is there is what would be made.
    """
    documents = {
        "twin.json": json.dumps(twin.openapi()).encode(),
        "service.json": json.dumps(live_document).encode(),
    }
    pinned = (*sorted(CLIENTS.rglob("*")), Path(__file__), ROOT / "requirements-dev.txt")
    parts = [*documents.values(), run("node", "--version", cwd=CACHE).encode()]
    parts += [path.read_bytes() for path in pinned if path.is_file()]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    workshop = CACHE / f"made-{hashlib.sha256(digests).hexdigest()[:16]}"
    if not workshop.exists():
        for old in CACHE.glob("made-*"):
            # Another run may use one that is newer.
            if time.time() - old.stat().st_mtime > A_DAY:
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE) as making:
            folder = Path(making) / "workshop"
            folder.mkdir()
            for name, document_ in documents.items():
                (folder / name).write_bytes(document_)
            make(folder, tools)
            # Another run may have been quicker.
            with suppress(OSError):
                folder.rename(workshop)
    os.utime(workshop)
    return workshop


def make(folder: Path, tools: Path) -> None:
    """Makes clients of both documents in `twin` and `service`, and compiles and checks them.

    What the generators say of the service's document is in outputs.json, and what the linters say
    of both in linted.json.
    """
    (folder / "node_modules").symlink_to(tools)
    for name in ("tsconfig.json", "lint.mjs"):
        shutil.copy(CLIENTS / name, folder)
    for name in ("twin", "service"):
        shutil.copytree(CLIENTS / "example", folder / name)
    shutil.copytree(CLIENTS / "batch", folder / "service", dirs_exist_ok=True)
    outputs = {}
    for name in ("twin", "service"):
        for tool, command in commands(name).items():
            outputs[tool] = run(*command, cwd=folder)
        # orval ends with status 0 also if it failed, and says why.
        assert (folder / name / "generated.ts").exists(), outputs["orval"]
    outputs["openapi-python-client"] = run(
        "openapi-python-client",
        "generate",
        "--path=service.json",
        "--meta=none",
        "--output-path=notes_client",
        cwd=folder,
    )
    (folder / "outputs.json").write_text(json.dumps(outputs))
    assert run("node_modules/.bin/tsc", "--project", ".", cwd=folder) == ""
    linted = run("node", "lint.mjs", "service.json", "twin.json", cwd=folder)
    (folder / "linted.json").write_text(linted)


def commands(name: str) -> dict[str, list[str]]:
    """What makes a client of a document, by tool."""
    source = f"{name}.json"
    node = "node_modules/.bin"
    return {
        "openapi-typescript": [
            f"{node}/openapi-typescript",
            source,
            f"--output={name}/schema.d.ts",
        ],
        "orval": [
            f"{node}/orval",
            f"--input={source}",
            f"--output={name}/generated.ts",
            "--client=fetch",
        ],
        "hey-api": [
            f"{node}/openapi-ts",
            f"--input={source}",
            f"--output={name}/hey",
            "--client=@hey-api/client-fetch",
        ],
    }


@pytest.mark.parametrize("tool", [*commands(""), "openapi-python-client"])
def test_clients_are_generated(workshop: Path, tool: str) -> None:
    """Each generator makes a client of the document and has nothing to warn of."""
    outputs = json.loads((workshop / "outputs.json").read_text())
    assert re.findall(r"(?i)warn|error|unsupported|skip", outputs[tool]) == [], outputs[tool]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_for_the_example_work(
    workshop: Path, service: httpx2.Client, program: str
) -> None:
    """A program for the example compiles against this document, and lists, creates, is refused."""
    for name in ("twin", "service"):
        assert (workshop / "built" / name / f"{program}.js").exists()
    url = str(service.base_url).rstrip("/")
    result = json.loads(run("node", f"built/service/{program}.js", url, cwd=workshop))
    note = {"text": "a", "completed": True}
    assert {name: known(value) for name, value in result.items()} == {
        "created": known(result["listed"][0]),
        "listed": [{"id": result["created"]["id"], **note}],
        "refused": "Input should be a valid string",
    }
    assert service.get("/notes/").json() == result["listed"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_generated_clients_store_batches(
    workshop: Path, service: httpx2.Client, program: str
) -> None:
    """Generated clients store a batch, list a page of it, and are told what is wrong."""
    url = str(service.base_url).rstrip("/")
    result = json.loads(run("node", f"built/service/{program}-batch.js", url, cwd=workshop))
    assert result == {
        "stored": ["b", "c"],
        "page": ["b"],
        "refused": "List should have at least 1 item after validation, not 0",
    }
    assert [note["text"] for note in service.get("/notes/").json()] == ["b", "c"]


def test_python_clients_work(
    workshop: Path, service: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client that openapi-python-client makes creates, stores a batch and lists."""
    monkeypatch.syspath_prepend(workshop)
    package = importlib.import_module("notes_client")
    models = importlib.import_module("notes_client.models")
    create, batch, read = (
        importlib.import_module(f"notes_client.api.notes.{name}").sync
        for name in (
            "create_note_notes_post",
            "create_notes_notes_batch_post",
            "read_notes_notes_get",
        )
    )
    with package.Client(base_url=str(service.base_url), raise_on_unexpected_status=True) as client:
        new = [models.NoteIn(text=text, completed=text == "b") for text in "abc"]
        created = create(client=client, body=new[0])
        stored = batch(client=client, body=new[1:], idempotency_key="python")
        listed = read(client=client)
        page = read(client=client, limit=1, completed=True)
        empty = batch(client=client, body=[])
    assert [created, *stored] == listed
    assert [note.text for note in listed] == ["a", "b", "c"]
    assert [note.text for note in page] == ["b"]
    assert "at least 1 item" in empty.detail[0].msg


@pytest.fixture(scope="module")
def linted(workshop: Path) -> Any:
    """What the linters say."""
    return json.loads((workshop / "linted.json").read_text())


def test_spectral_finds_the_slash_alone(linted: Any) -> None:
    """By Spectral's rules for OpenAPI all is well but the slash that the example has."""
    assert linted["spectral"] == [["path-keys-no-trailing-slash", ["paths", "/notes/"]]]


def test_redocly_finds_what_the_example_has(linted: Any) -> None:
    """By Redocly's recommended rules no error is there that the example's document doesn't have."""
    service, example = (
        {tuple(problem) for problem in linted["redocly"][name]} for name in ("service", "twin")
    )
    assert service <= example


def test_the_tools_are_pinned() -> None:
    """The lock pins each package by its digest, and names no registry."""
    lock = json.loads((CLIENTS / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert all("integrity" in package or package.get("inBundle") for package in packages)
    assert not any("resolved" in package for package in packages)
