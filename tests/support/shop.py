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

repairs = Table(
    "repairs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", sorted_text(100), nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("due", Date, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("repairs_due", "due", "id"),
    Index("repairs_archived_due", "archived", "due", "id"),
    Index("repairs_name", "name", "id"),
    sqlite_autoincrement=True,
)
Index("repairs_rank", repairs.c.rank.desc(), repairs.c.name, repairs.c.id)


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


class RepairIn(fields.Input):
    """A repair as clients send it."""

    name = fields.Text(100, required=True, metadata={"description": "A name", "examples": ["a"]})
    archived = fields.Boolean(
        load_default=False, metadata={"description": "Whether it is over", "examples": [False]}
    )
    due = fields.Date(
        required=True, metadata={"description": "The last day", "examples": ["2026-02-28"]}
    )
    rank = fields.Integer(required=True, metadata={"description": "1 is first", "examples": [1]})


REPAIRS = Definition(
    table=repairs,
    name="repair",
    new=RepairIn(),
    shape=with_id(RepairIn, "Repair", "created_at", "updated_at"),
    filters={
        "archived": Filter(repairs.c.archived, "Only repairs that are over, or aren't", False),
        "rank": Filter(repairs.c.rank, "Only repairs of this rank", 1),
        "due_from": AtLeast(repairs.c.due, "Only repairs due then or later", "2026-01-01"),
        "due_to": AtMost(repairs.c.due, "Only repairs due then or before", "2026-12-31"),
        "created_from": AtLeast(
            repairs.c.created_at, "Only repairs stored then or later", "2026-01-01T00:00:00Z"
        ),
    },
    sorts=[repairs.c.due, repairs.c.name, repairs.c.rank],
)
usual = Usual(REPAIRS, "What is to be done in time.")

resource = Resource(
    usual.schemas,
    Path("/repairs/", GET=usual.listing("read_repairs"), POST=usual.create("create_repair")),
    Path("/repairs/batch", POST=usual.create_many("create_repairs")),
    Path(
        "/repairs/{repair_id}",
        "repair",
        GET=usual.read("read_repair"),
        PUT=usual.replace("replace_repair"),
        PATCH=usual.change("change_repair"),
        DELETE=usual.delete("delete_repair"),
    ),
)

RESOURCES = [resource]
document = make_document(RESOURCES, by_token=False)
app = make_app(RESOURCES, document)
