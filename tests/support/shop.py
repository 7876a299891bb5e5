"""A service of a resource that uses what notes don't. Its tables are no part of the migrations."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    MetaData,
    Table,
    create_mock_engine,
)

from service.app import make_app
from service.openapi.document import document as make_document
from service.resources.definition import AtLeast, AtMost, Definition, Filter, with_id
from service.resources.usual import Usual
from service.schemas import fields
from service.tables import ID, sorted_text
from service.web.routing import Path, Resource
from tests.support import databases

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", sorted_text(100), nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("due", Date, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("projects_due", "due", "id"),
    Index("projects_archived_due", "archived", "due", "id"),
    Index("projects_name", "name", "id"),
    sqlite_autoincrement=True,
)
Index("projects_rank", projects.c.rank.desc(), projects.c.name, projects.c.id)


def create_tables(database_url: str) -> None:
    """Adds the tables to a database of the service."""
    statements: list[str] = []
    if databases.kind_of(database_url) == "mysql":
        # Migrations say it of each column.
        statements.append("ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin")

    def add(statement: Any, *_: Any) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine(f"{databases.kind_of(database_url)}://", add)
    metadata.create_all(engine, checkfirst=False)
    databases.execute(database_url, *statements)


class ProjectIn(fields.Input):
    """A project as clients send it."""

    name = fields.Text(100, required=True, metadata={"description": "A name", "examples": ["a"]})
    archived = fields.Boolean(
        load_default=False, metadata={"description": "Whether it is over", "examples": [False]}
    )
    due = fields.Date(
        required=True, metadata={"description": "The last day", "examples": ["2026-02-28"]}
    )
    rank = fields.Integer(required=True, metadata={"description": "1 is first", "examples": [1]})


PROJECTS = Definition(
    table=projects,
    name="project",
    new=ProjectIn(),
    shape=with_id(ProjectIn, "Project", "created_at", "updated_at"),
    filters={
        "archived": Filter(projects.c.archived, "Only projects that are over, or aren't", False),
        "rank": Filter(projects.c.rank, "Only projects of this rank", 1),
        "due_from": AtLeast(projects.c.due, "Only projects due then or later", "2026-01-01"),
        "due_to": AtMost(projects.c.due, "Only projects due then or before", "2026-12-31"),
        "created_from": AtLeast(
            projects.c.created_at, "Only projects stored then or later", "2026-01-01T00:00:00Z"
        ),
    },
    sorts=[projects.c.due, projects.c.name, projects.c.rank],
)
usual = Usual(PROJECTS, "What is to be done in time.")

resource = Resource(
    usual.schemas,
    Path("/projects/", GET=usual.listing("read_projects"), POST=usual.create("create_project")),
    Path("/projects/batch", POST=usual.create_many("create_projects")),
    Path(
        "/projects/{project_id}",
        "project",
        GET=usual.read("read_project"),
        PUT=usual.replace("replace_project"),
        PATCH=usual.change("change_project"),
        DELETE=usual.delete("delete_project"),
    ),
)

RESOURCES = [resource]
document = make_document(RESOURCES, by_token=False)
app = make_app(RESOURCES, document)
