"""docs/starlette-and-fastapi.md, and the plain counterpart of the example that it shows."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.contract.conftest import Pair
from tests.support import databases
from tests.support.databases import ROOT, NewDatabase
from tests.support.raw import connect, send
from tests.support.servers import running

PAGE = (ROOT / "docs/starlette-and-fastapi.md").read_text()
PROGRAMS = ("benchmarks/fastapi_twin.py", "benchmarks/starlette_plain.py")
JSON = {"content-type": "application/json"}


def test_quotes_are_the_code() -> None:
    """What the page quotes is in each of the files that it names, in one piece."""
    quotes = re.findall(r"^(`benchmarks/[^\n]*):\n\n```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(quotes) == 12
    for names, code in quotes:
        for name in re.findall(r"`(benchmarks/\S+)`", names):
            assert f"\n{code}" in (ROOT / name).read_text(), (name, code)


def test_the_files_of_the_page_exist() -> None:
    """Each path of this project that the page names is there."""
    paths = re.findall(r"`((?:service|benchmarks|alembic)/[\w/.]*)`", PAGE)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def programs(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The plain counterpart beside the example, each on a PostgreSQL database of its own."""
    logs = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:
        connections = []
        for file in PROGRAMS:
            app = file.removesuffix(".py").replace("/", ".") + ":app"
            server = running(new_database("postgresql"), logs / f"{app}.log", app=app)
            connections.append(stack.enter_context(connect(stack.enter_context(server))))
        yield Pair(*connections)


def test_the_plain_counterpart_answers_like_the_example(programs: Pair) -> None:
    """Notes are created and listed alike, and an empty list is one."""
    requests: list[tuple[str, bytes | None]] = [
        ("GET", None),
        ("POST", '{"text":"é \\" \\n ☃","completed":false}'.encode()),
        ("POST", b'{"completed":"true","text":""}'),
        ("GET", None),
    ]
    for method, body in requests:
        twin, plain = (send(one, method, "/notes/", body, JSON) for one in programs)
        assert twin.status == plain.status == 200
        assert plain == twin


def test_what_starlette_leaves_to_the_plain_counterpart(programs: Pair) -> None:
    """A missing field is a 422 of another shape, and a body that isn't JSON a 500."""
    twin, plain = (send(one, "POST", "/notes/", b'{"text":"a"}', JSON) for one in programs)
    assert twin.status == plain.status == 422
    assert plain.json() == {"completed": ["Missing data for required field."]}
    statuses = [send(one, "POST", "/notes/", b"{", JSON).status for one in programs]
    assert statuses == [422, 500]
    allowed = [send(one, "DELETE", "/notes/").headers["allow"] for one in programs]
    assert [set(methods.split(", ")) for methods in allowed] == [{"GET"}, {"GET", "HEAD"}]


def test_the_counterpart_on_sqlalchemys_asyncio(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The page's code without encode/databases stores a note and lists it."""
    url = new_database("sqlite")
    # The module names a database when it is imported.
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/unused.db")
    names = dict(vars(import_module("benchmarks.starlette_plain")))
    names["DATABASE_URL"] = url.replace("sqlite:", "sqlite+aiosqlite:")
    names["create_async_engine"] = create_async_engine
    exec(re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[-1], names)
    routes = [
        Route("/notes/", names["list_notes"], methods=["GET"]),
        Route("/notes/", names["create_note"], methods=["POST"]),
    ]
    with TestClient(Starlette(routes=routes, lifespan=names["lifespan"])) as client:
        created = client.post("/notes/", json={"text": "a", "completed": True}).json()
        assert created == {"id": 1, "text": "a", "completed": True}
        assert client.get("/notes/").json() == [created]
    assert databases.execute(url, "SELECT text FROM notes") == "a"
