"""The recipes of README and docs/ for new fields and resources, in a copy of the project."""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from tests.deploy.test_scripts import copy_repository
from tests.support import databases
from tests.support.databases import KINDS, ROOT, kind_of, run_in
from tests.support.following import following
from tests.support.notes import follow, known
from tests.support.servers import free_port, process, uvicorn
from tests.support.usual import LAWS, Law, Usual, empty, find

# Tests of each resource.
COVERING = ("tests/test_architecture.py", "tests/resources/test_usual.py")
# The recipe's test of an operation of its own.
OWN = "tests/projects/test_complete.py"
TABLE_END = '    sqlalchemy.Index("notes_completed"'
COLUMNS = """\
    sqlalchemy.Column("writer", sqlalchemy.String, nullable=False, server_default="nobody"),
    sqlalchemy.Column("weight", sqlalchemy.Integer, nullable=False, server_default="3"),
    sqlalchemy.Column("day", sqlalchemy.Date),
    sqlalchemy.Column("aside", sqlalchemy.String),
    sqlalchemy.Column("stars", sqlalchemy.Integer),
    sqlalchemy.Column("level", sqlalchemy.String(10)),
    sqlalchemy.Column("at", sqlalchemy.BigInteger),
    sqlalchemy.Column("tags", sqlalchemy.String, nullable=False, server_default="[]"),
"""
FIELDS = """\
    writer = Text(200, load_default="nobody")
    weight = Integer(load_default=3)
    day = Date(load_default=None)
    aside = Text(200, load_default=None)
    stars = Integer(1, 5, load_default=None)
    level = Choice("low", "high", load_default=None)
    at = Timestamp(load_default=None)
    tags = List(Text(9), 3, load_default="[]")
"""
TYPES = "Boolean, Choice, Date, Integer, List, Timestamp"
OLD = {"text": "old", "completed": False}
DEFAULTS = {
    "writer": "nobody",
    "weight": 3,
    "day": None,
    "aside": None,
    "stars": None,
    "level": None,
    "at": None,
    "tags": [],
}
NEW = {
    "text": "Straße",
    "completed": True,
    "writer": "Zoë",
    "weight": -7,
    "day": "2026-02-28",
    "aside": "",
    "stars": 5,
    "level": "high",
    "at": "2026-02-28T12:00:00Z",
    "tags": ["a", ""],
}


def copy_project(folder: Path) -> Path:
    """Copies all that migrating and serving need, with what is compiled of it."""
    # Other processes write such files now.
    unfinished = shutil.ignore_patterns("*.pyc.*")
    for name in ("service", "alembic"):
        shutil.copytree(ROOT / name, folder / name, ignore=unfinished)
    shutil.copy(ROOT / "alembic.ini", folder)
    return folder


def edit(file: Path, before: str, new: str) -> None:
    """Puts lines in front of others."""
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, new + before))


def alembic(copy: Path, database_url: str, *arguments: str) -> None:
    command = (sys.executable, "-m", "alembic", *arguments)
    result = run_in(copy, *command, DATABASE_URL=database_url)
    assert result.returncode == 0, result.stderr


@contextmanager
def serving(copy: Path, database_url: str, log: Path, **variables: str) -> Iterator[httpx2.Client]:
    """A client of the copy, on the database after `check` has found nothing to migrate."""
    alembic(copy, database_url, "upgrade", "head")
    alembic(copy, database_url, "check")
    port = free_port()
    with (
        process(uvicorn(port), port, log, {"DATABASE_URL": database_url, **variables}, cwd=copy),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


class Changed(NamedTuple):
    """A client of a service that a recipe has changed, and its database."""

    client: httpx2.Client
    database_url: str


@pytest.fixture(scope="module", params=KINDS)
def with_fields(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: databases.NewDatabase,
) -> Iterator[Changed]:
    """The service with more fields of notes, on a database that holds a note already."""
    tmp_path = tmp_path_factory.mktemp("adding")
    copy = copy_project(tmp_path / "copy")
    url = new_database(request.param)
    databases.execute(url, "INSERT INTO notes (text, completed) VALUES ('old', false)")
    edit(copy / "service/tables.py", TABLE_END, COLUMNS)
    alembic(copy, url, "revision", "--autogenerate", "-m", "more of a note")
    resource = copy / "service/notes/resource.py"
    edit(resource, "\n\nNOTES = Definition", FIELDS)
    resource.write_text(resource.read_text().replace("import Boolean,", f"import {TYPES},"))
    with serving(copy, url, tmp_path / "log") as client:
        yield Changed(client, url)


@pytest.fixture
def client(with_fields: Changed) -> httpx2.Client:
    return with_fields.client


def test_a_field_is_added(client: httpx2.Client) -> None:
    """After README's steps every operation has the new fields, on notes old and new."""
    assert client.get("/health/ready").status_code == 200
    old = {"id": 1, **OLD, **DEFAULTS}
    assert known(client.get("/notes/1").json()) == old

    created = client.post("/notes/", json=NEW)
    assert known(created.json()) == {"id": 2, **NEW}
    assert list(known(created.json())) == ["id", *OLD, *DEFAULTS]
    assert known(client.post("/notes/", json=OLD).json()) == {"id": 3, **OLD, **DEFAULTS}
    key = {"idempotency-key": "k"}
    batch = [client.post("/notes/batch", json=[NEW, OLD], headers=key) for _ in range(2)]
    assert known(batch[0].json()) == [{"id": 4, **NEW}, {"id": 5, **OLD, **DEFAULTS}]
    assert batch[1].json() == batch[0].json()
    assert known(client.get("/notes/").json()[:2]) == [old, {"id": 2, **NEW}]
    assert [note["id"] for note in client.get("/notes/?q=STRASSE").json()] == [2, 4]

    day = {"day": "2027-12-31"}
    condition = {"if-match": client.get("/notes/2").headers["etag"]}
    changed = client.patch("/notes/2", json=day, headers=condition)
    assert known(changed.json()) == {"id": 2, **NEW, **day}
    assert client.patch("/notes/2", json={"day": None}, headers=condition).status_code == 412
    nothing = {"day": None, "aside": None}
    for change in (nothing, {}):
        changed = client.patch("/notes/2", json=change)
        assert known(changed.json()) == {"id": 2, **NEW, **nothing}
    condition = {"if-match": client.get("/notes/2").headers["etag"]}
    assert client.put("/notes/2", json=OLD, headers=condition).json()["writer"] == "nobody"
    condition = {"if-match": client.get("/notes/4").headers["etag"]}
    assert client.delete("/notes/4", headers=condition).status_code == 204


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("writer", None, "string_type"),
        ("weight", 1.5, "int_from_float"),
        ("weight", "x", "int_parsing"),
        ("weight", None, "int_type"),
        ("weight", 2**31, "less_than_equal"),
        ("day", "2026-02-30", "date_parsing"),
        ("day", 7, "date_type"),
        ("aside", 7, "string_type"),
        ("aside", "\0", "string_nul"),
    ],
)
def test_bad_values_of_new_fields(
    client: httpx2.Client, field: str, value: object, kind: str
) -> None:
    """What a new field can't be is told as for the fields that were there."""
    for answer in (
        client.post("/notes/", json={**NEW, field: value}),
        client.patch("/notes/1", json={field: value}),
    ):
        assert answer.status_code == 422
        (error,) = answer.json()["detail"]
        assert (error["type"], error["loc"]) == (kind, ["body", field])


def test_the_document_has_new_fields(client: httpx2.Client) -> None:
    """The OpenAPI document follows the schema."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("NoteIn", "NotePatch", "Note"):
        fields = schemas[name]["properties"]
        assert fields["weight"]["type"] == "integer"
        assert (fields["day"]["type"], fields["day"]["format"]) == (["string", "null"], "date")
        assert fields["aside"]["type"] == ["string", "null"]
    assert set(schemas["NoteIn"]["required"]) == {"text", "completed"}


def test_a_new_field_can_be_taken_back(tmp_path: Path, database_url: str) -> None:
    """A downgrade removes the columns, and leaves the table as it was before."""
    copy = copy_project(tmp_path / "copy")
    before = schema(database_url)
    edit(copy / "service/tables.py", TABLE_END, COLUMNS)
    alembic(copy, database_url, "revision", "--autogenerate", "-m", "more of a note")
    for command in ("upgrade head", "downgrade -1"):
        alembic(copy, database_url, *command.split())
    assert schema(database_url) == before


PROJECTS = """

projects = sqlalchemy.Table(
    "projects",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("name", sqlalchemy.String(100), nullable=False, unique=True),
    sqlite_autoincrement=True,
)
"""
REFERENCE = """\
    sqlalchemy.Column("project_id", ID, sqlalchemy.ForeignKey("projects.id")),
"""


def test_a_reference_is_added_and_taken_back(tmp_path: Path, database_url: str) -> None:
    """A column of notes that refers to a new table keeps notes, indexes, triggers and ids."""
    copy = copy_project(tmp_path / "copy")
    before, ids = schema(database_url), "SELECT sql FROM sqlite_master WHERE name = 'notes'"
    databases.execute(database_url, "INSERT INTO notes (text, completed) VALUES ('old', false)")
    edit(copy / "service/tables.py", TABLE_END, REFERENCE)
    with (copy / "service/tables.py").open("a") as file:
        file.write(PROJECTS)
    alembic(copy, database_url, "revision", "--autogenerate", "-m", "projects")
    alembic(copy, database_url, "upgrade", "head")
    alembic(copy, database_url, "check")
    assert schema(database_url) - before <= {"column project_id", "project_id", *FOREIGN_KEYS}
    assert before < schema(database_url)
    databases.execute(database_url, "INSERT INTO projects (name) VALUES ('p')")
    databases.execute(database_url, "UPDATE notes SET project_id = 1")
    wrong = ["UPDATE notes SET project_id = 2"]
    if kind_of(database_url) == "sqlite":
        assert "AUTOINCREMENT" in databases.execute(database_url, ids)
        wrong.insert(0, "PRAGMA foreign_keys = ON")
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        databases.execute(database_url, *wrong)
    alembic(copy, database_url, "downgrade", "-1")
    assert schema(database_url) == before
    assert databases.execute(database_url, "SELECT text FROM notes") == "old"


# The index that MySQL makes for a foreign key.
FOREIGN_KEYS = {"notes_project_id_fkey"}

SCHEMA = {
    "sqlite": (
        "SELECT group_concat(type || ' ' || name) FROM sqlite_master WHERE tbl_name = 'notes'",
        "SELECT group_concat('column ' || name) FROM pragma_table_info('notes')",
    ),
    "postgresql": (
        "SELECT string_agg(indexname, ',') FROM pg_indexes WHERE tablename = 'notes'",
        "SELECT string_agg(column_name, ',') FROM information_schema.columns"
        " WHERE table_name = 'notes'",
    ),
    "mysql": (
        "SELECT group_concat(index_name) FROM information_schema.statistics"
        " WHERE table_schema = database() AND table_name = 'notes'",
        "SELECT group_concat(column_name) FROM information_schema.columns"
        " WHERE table_schema = database() AND table_name = 'notes'",
    ),
}


def schema(database_url: str) -> set[str]:
    """The columns, indexes and triggers of notes."""
    found = [databases.execute(database_url, query) for query in SCHEMA[kind_of(database_url)]]
    return set(",".join(found).split(","))


@pytest.fixture(scope="module", params=KINDS)
def with_projects(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: databases.NewDatabase,
) -> Iterator[Changed]:
    """The service with what docs/adding-a-resource.md adds, to the letter, for a user."""
    tmp_path = tmp_path_factory.mktemp("resource")
    copy = copy_project(tmp_path / "copy")
    url = new_database(request.param)
    add_resource(copy)
    alembic(copy, url, "revision", "--autogenerate", "-m", "projects")
    is_live = kind_of(url) != "mysql"
    with serving(copy, url, tmp_path / "log", ACCESS="token", LIVE=str(int(is_live))) as client:
        if is_live:
            on = run_in(copy, sys.executable, "-m", "service", "live", "on", DATABASE_URL=url)
            assert on.stdout == "notes: on\nprojects: on\n", on.stderr
        for name in ("ann", "bob"):
            client.headers["authorization"] = f"Bearer {token_of(copy, url, name)}"
        yield Changed(client, url)


@pytest.fixture
def projects(with_projects: Changed) -> httpx2.Client:
    return with_projects.client


def add_resource(copy: Path) -> None:
    """Changes the copy as the recipe says."""
    table, column, resource, field, filters, operation, app = (code for _, code in steps())
    edit(copy / "service/tables.py", TABLE_END, column)
    with (copy / "service/tables.py").open("a") as file:
        file.write("\n\n" + table)
    (copy / "service/projects").mkdir()
    (copy / "service/projects/__init__.py").touch()
    (copy / "service/projects/resource.py").write_text(resource)
    (copy / "service/projects/complete.py").write_text(operation)
    notes = copy / "service/notes/resource.py"
    edit(notes, "\n\nNOTES = Definition", field)
    replace(notes, r"    filters=\{[^}]*\},\n", filters)
    replace(notes, "import Boolean,", "import MAX_ID, Boolean, Integer,")
    imported, _, listed = app.strip().partition("\n\n")
    replace(copy / "service/app.py", r"^RESOURCES = .*$", f"{imported}\n{listed}")


def replace(file: Path, before: str, after: str) -> None:
    """Replaces what matches a regular expression, at one place."""
    text, count = re.subn(before, lambda _: after, file.read_text(), flags=re.M)
    assert count == 1
    file.write_text(text)


def token_of(copy: Path, database_url: str, name: str) -> str:
    """Adds a user and gives the token."""
    command = (sys.executable, "-m", "service", "users", "add", name)
    added = run_in(copy, *command, DATABASE_URL=database_url)
    assert added.returncode == 0, added.stderr
    return added.stdout.strip()


def steps() -> list[tuple[str, str]]:
    """The files that the recipe names, with the code for each, in turn."""
    recipe = (ROOT / "docs/adding-a-resource.md").read_text()
    blocks = r"(`service/[^\n]*)\n(?:[^`\n]+\n)*\n```(?:python)?\n(.*?)```"
    found = [
        (re.findall(r"service/\S+\.py", text)[-1], code)
        for text, code in re.findall(blocks, recipe, re.DOTALL)
    ]
    assert [file.removeprefix("service/") for file, _ in found] == [
        *("tables.py", "tables.py", "projects/resource.py"),
        *("notes/resource.py", "notes/resource.py", "projects/complete.py", "app.py"),
    ]
    return found


def test_a_resource_takes_few_lines() -> None:
    """A resource that can do what notes can has at most 41 lines, except imports and docstrings."""
    codes = [code for _, code in steps()]
    lines = [line for code in (codes[0], codes[2], codes[-1]) for line in code.splitlines() if line]
    kept = [line for line in lines if not line.strip().startswith(("from ", '"""'))]
    # The operation of another kind is one more.
    assert len([line for line in kept if "complete" not in line]) <= 41


def usual_of(client: httpx2.Client, path: str) -> Usual:
    (usual,) = (one for one in find(client.get("/openapi.json").json()) if one.path == path)
    return usual


@pytest.mark.parametrize("path", ["/projects/", "/notes/"])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_new_resource_does_what_notes_do(law: Law, with_projects: Changed, path: str) -> None:
    """After the recipe, what holds for each resource holds for the new one, and for notes."""
    usual = usual_of(with_projects.client, path)
    empty(with_projects.database_url, usual)
    law(with_projects.client, usual)


def test_the_tests_cover_a_new_resource(tmp_path: Path) -> None:
    """After the recipe, the project's own tests pass, and the laws have found the new resource."""
    copy = copy_repository(tmp_path / "copy")
    add_resource(copy)
    url = f"sqlite:///{tmp_path}/new.db"
    for command in ("upgrade head", "revision --autogenerate -m projects"):
        alembic(copy, url, *command.split())
    # Tests are read twice as fast if pytest doesn't rewrite their assertions.
    options = ("-n", "0", "-v", "--assert=plain", "-k", "not postgresql and not mysql")
    (copy / "tests/projects").mkdir()
    (copy / "tests/projects/__init__.py").touch()
    (copy / OWN).write_text(own_test())
    result = run_in(copy, sys.executable, "-m", "pytest", *options, *COVERING, OWN)
    assert result.returncode == 0, result.stdout
    assert "test_usual_operations[sqlite-pages_are_walked-/projects/] PASSED" in result.stdout
    assert "test_the_notes_of_a_project_are_completed[sqlite] PASSED" in result.stdout


def own_test() -> str:
    """The recipe's test of an operation."""
    recipe = (ROOT / "docs/adding-a-resource.md").read_text()
    (code,) = re.findall(rf"`{OWN}`:\n\n```python\n(.*?)```", recipe, re.DOTALL)
    return str(code)


def test_projects_are_unique_sorted_and_referred_to(with_projects: Changed) -> None:
    """A name is taken once, projects come in the order of names, and notes keep their project."""
    projects = with_projects.client
    for path in ("/notes/", "/projects/"):
        empty(with_projects.database_url, usual_of(projects, path))
    ids = [projects.post("/projects/", json={"name": name}).json()["id"] for name in "bac"]
    taken = projects.post("/projects/", json={"name": "a"})
    assert (taken.status_code, taken.json()["detail"][0]["loc"]) == (409, ["body", "name"])
    pages = [page.json() for page in follow(projects, "/projects/?sort=-name&limit=2")]
    assert [[one["name"] for one in page] for page in pages] == [["c", "b"], ["a"]]
    note = {"text": "n", "completed": False}
    wrong = projects.post("/notes/", json={**note, "project_id": ids[2] + 1})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "project_id"])
    batch = [{**note, "project_id": ids[number % 2]} for number in range(4)]
    stored = projects.post("/notes/batch", json=batch).json()
    assert projects.get(f"/notes/?project_id={ids[1]}").json() == stored[1::2]
    assert projects.delete(f"/projects/{ids[1]}").status_code == 409
    assert projects.post(f"/projects/{ids[1]}/complete").status_code == 204
    assert [one["completed"] for one in projects.get("/notes/").json()] == [False, True] * 2
    assert projects.post(f"/projects/{ids[2] + 1}/complete").status_code == 404
    assert (
        projects.post(f"/projects/{ids[1]}/complete", headers={"authorization": ""}).status_code
        == 401
    )


def test_projects_are_followed(with_projects: Changed) -> None:
    """One line makes the new resource live, with its filter."""
    projects = with_projects.client
    paths = projects.get("/openapi.json").json()["paths"]
    is_live = kind_of(with_projects.database_url) != "mysql"
    assert ("/projects/changes" in paths) == is_live
    if not is_live:
        return
    url, token = f"{projects.base_url}/projects", projects.headers["authorization"]
    with following(url, {"Authorization": token}, archived="false") as follower:
        follower.take(1)
        project = projects.post("/projects/", json={"name": "Garden"}).json()
        changed = projects.patch(f"/projects/{project['id']}", json={"name": "House"}).json()
        projects.patch(f"/projects/{project['id']}", json={"archived": True})
        assert [(event.kind, event.data) for event in follower.take(3)] == [
            ("created", project),
            ("changed", changed),
            ("deleted", {"id": project["id"]}),
        ]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_notes_with_more_fields_do_what_notes_do(law: Law, with_fields: Changed) -> None:
    """After README's steps, what holds for each resource holds for notes with more fields."""
    (usual,) = find(with_fields.client.get("/openapi.json").json())
    empty(with_fields.database_url, usual)
    law(with_fields.client, usual)


def test_a_new_resource_is_described(projects: httpx2.Client) -> None:
    """The OpenAPI document is valid, and has the resource with all its operations."""
    document = projects.get("/openapi.json").json()
    validate(document, cls=OpenAPIV31SpecValidator)
    paths = document["paths"]
    operations = [
        one for path in paths if path.startswith("/projects/") for one in paths[path].values()
    ]
    assert len(operations) == 8 + ("/projects/changes" in paths)
    assert all(operation["tags"] == ["Projects"] for operation in operations)
    assert "Projects" in [tag["name"] for tag in document["tags"]]
