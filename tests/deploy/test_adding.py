"""The recipes of README and docs/ for new fields and resources, in a copy of the project."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from tests.support import databases
from tests.support.databases import KINDS, ROOT, kind_of, run_in
from tests.support.notes import known
from tests.support.servers import free_port, process, uvicorn
from tests.support.usual import LAWS, Usual, find

TABLE_END = '    sqlalchemy.Index("notes_completed"'
COLUMNS = """\
    sqlalchemy.Column("writer", sqlalchemy.String, nullable=False, server_default="nobody"),
    sqlalchemy.Column("weight", sqlalchemy.Integer, nullable=False, server_default="3"),
    sqlalchemy.Column("day", sqlalchemy.Date),
    sqlalchemy.Column("aside", sqlalchemy.String),
"""
FIELDS = """\
    writer = Text(load_default="nobody")
    weight = Integer(load_default=3)
    day = Date(load_default=None)
    aside = Text(load_default=None)
"""
OLD = {"text": "old", "completed": False}
DEFAULTS = {"writer": "nobody", "weight": 3, "day": None, "aside": None}
NEW = {
    "text": "Straße",
    "completed": True,
    "writer": "Zoë",
    "weight": -7,
    "day": "2026-02-28",
    "aside": "",
}


def copy_project(folder: Path) -> Path:
    """Copies all that migrating and serving need."""
    for name in ("service", "alembic"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
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
def serving(copy: Path, database_url: str, log: Path) -> Iterator[httpx2.Client]:
    """A client of the copy, on the database after `check` has found nothing to migrate."""
    alembic(copy, database_url, "upgrade", "head")
    alembic(copy, database_url, "check")
    port = free_port()
    with (
        process(uvicorn(port), port, log, {"DATABASE_URL": database_url}, cwd=copy),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module", params=KINDS)
def client(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: databases.NewDatabase,
) -> Iterator[httpx2.Client]:
    """The service with four more fields of notes, on a database that holds a note already."""
    tmp_path = tmp_path_factory.mktemp("adding")
    copy = copy_project(tmp_path / "copy")
    url = new_database(request.param)
    databases.execute(url, "INSERT INTO notes (text, completed) VALUES ('old', false)")
    edit(copy / "service/tables.py", TABLE_END, COLUMNS)
    alembic(copy, url, "revision", "--autogenerate", "-m", "more of a note")
    resource = copy / "service/notes/resource.py"
    edit(resource, "\n\nNOTES = Definition", FIELDS)
    resource.write_text(
        resource.read_text().replace("import Boolean,", "import Boolean, Date, Integer,")
    )
    with serving(copy, url, tmp_path / "log") as client:
        yield client


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
def tags(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: databases.NewDatabase,
) -> Iterator[httpx2.Client]:
    """The service with the resource that docs/adding-a-resource.md adds, to the letter."""
    tmp_path = tmp_path_factory.mktemp("resource")
    copy = copy_project(tmp_path / "copy")
    url = new_database(request.param)
    table, resource, app = (code for _, code in steps())
    with (copy / "service/tables.py").open("a") as file:
        file.write("\n" + table)
    (copy / "service/tags").mkdir()
    (copy / "service/tags/__init__.py").touch()
    (copy / "service/tags/resource.py").write_text(resource)
    main = copy / "service/app.py"
    imported, _, listed = app.strip().partition("\n\n")
    text, count = re.subn(
        r"^RESOURCES = .*$", f"{imported}\n{listed}", main.read_text(), flags=re.M
    )
    assert count == 1
    main.write_text(text)
    alembic(copy, url, "revision", "--autogenerate", "-m", "tags")
    with serving(copy, url, tmp_path / "log") as client:
        yield client


def steps() -> list[tuple[str, str]]:
    """The files that the recipe names, with the code for each, in turn."""
    recipe = (ROOT / "docs/adding-a-resource.md").read_text()
    blocks = r"(`service/[^\n]*)\n(?:[^`\n]+\n)*\n```python\n(.*?)```"
    found = [
        (re.findall(r"service/\S+\.py", text)[-1], code)
        for text, code in re.findall(blocks, recipe, re.DOTALL)
    ]
    files = ["service/tables.py", "service/tags/resource.py", "service/app.py"]
    assert [file for file, _ in found] == files
    return found


def test_a_resource_takes_few_lines() -> None:
    """A resource that can do what notes can has at most 40 lines, except imports and docstrings."""
    lines = [line for _, code in steps() for line in code.splitlines() if line]
    kept = [line for line in lines if not line.strip().startswith(("from ", '"""'))]
    assert len(kept) <= 40


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_new_resource_does_what_notes_do(
    law: Callable[[httpx2.Client, Usual], None], tags: httpx2.Client
) -> None:
    """After the recipe, what holds for each resource holds for the new one."""
    (usual,) = (one for one in find(tags.get("/openapi.json").json()) if one.path == "/tags/")
    law(tags, usual)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_notes_with_more_fields_do_what_notes_do(
    law: Callable[[httpx2.Client, Usual], None], client: httpx2.Client
) -> None:
    """After README's steps, what holds for each resource holds for notes with more fields."""
    (usual,) = find(client.get("/openapi.json").json())
    law(client, usual)


def test_a_new_resource_is_described(tags: httpx2.Client) -> None:
    """The OpenAPI document is valid, and has the resource with all its operations."""
    document = tags.get("/openapi.json").json()
    validate(document, cls=OpenAPIV31SpecValidator)
    operations = document["paths"]["/tags/"] | document["paths"]["/tags/{tag_id}"]
    assert set(operations) == {"get", "post", "put", "patch", "delete"}
    assert all(operation["tags"] == ["Tags"] for operation in operations.values())
    assert "Tags" in [tag["name"] for tag in document["tags"]]
