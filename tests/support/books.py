"""A service of other resources, for tests: authors of a unique name, and books of an author.

Each user has lists. Who the user is stands in a header.
"""

import sqlalchemy
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import make_app
from service.openapi.document import document as make_document
from service.resources.definition import Definition, Filter, Search, with_id
from service.resources.usual import Usual
from service.schemas.fields import MAX_ID, Boolean, Input, Integer, Text
from service.tables import ID
from service.web.routing import Path, Resource

metadata = sqlalchemy.MetaData()
authors = sqlalchemy.Table(
    "authors",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("name", sqlalchemy.String(100), nullable=False, unique=True),
    sqlite_autoincrement=True,
)
books = sqlalchemy.Table(
    "books",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("author_id", ID, sqlalchemy.ForeignKey("authors.id"), nullable=False),
    sqlalchemy.Column("title", sqlalchemy.String(100), nullable=False),
    sqlalchemy.Column("shelf", sqlalchemy.Integer),
    sqlalchemy.UniqueConstraint("author_id", "title"),
    sqlalchemy.CheckConstraint("shelf <> 13"),
    sqlite_autoincrement=True,
)


lists = sqlalchemy.Table(
    "lists",
    metadata,
    sqlalchemy.Column("id", ID, primary_key=True),
    sqlalchemy.Column("owner_id", ID, nullable=False),
    sqlalchemy.Column("name", sqlalchemy.String(100), nullable=False),
    sqlalchemy.Column("folded", sqlalchemy.String(300)),
    sqlalchemy.Column("shared", sqlalchemy.Boolean, nullable=False),
    sqlalchemy.UniqueConstraint("owner_id", "name"),
    sqlite_autoincrement=True,
)


class AuthorIn(Input):
    name = Text(100, required=True)


class BookIn(Input):
    author_id = Integer(1, MAX_ID, required=True)
    title = Text(100, required=True)
    shelf = Integer(load_default=None)


AUTHORS = Definition(authors, "author", AuthorIn(), with_id(AuthorIn, "Author"))
BOOKS = Definition(
    table=books,
    name="book",
    new=BookIn(),
    shape=with_id(BookIn, "Book"),
    filters={"author_id": Filter(books.c.author_id, "Only books of this author", 1)},
)


class ListIn(Input):
    name = Text(100, required=True)
    shared = Boolean(load_default=False)


LISTS = Definition(
    table=lists,
    name="list",
    new=ListIn(),
    shape=with_id(ListIn, "List"),
    filters={"shared": Filter(lists.c.shared, "Shared lists (`true`) or other ones", True)},
    search=Search(lists.c.name, lists.c.folded, "a"),
    owner=lists.c.owner_id,
)


def resource(definition: Definition) -> Resource:
    usual = Usual(definition, "For tests.")
    name, path = definition.name, f"/{definition.plural}/"
    return Resource(
        usual.schemas,
        Path(path, GET=usual.listing(f"read_{name}s"), POST=usual.create(f"create_{name}")),
        Path(f"{path}batch", POST=usual.create_many(f"create_{name}s")),
        Path(
            f"{path}{{{name}_id}}",
            name,
            GET=usual.read(f"read_{name}"),
            PUT=usual.replace(f"replace_{name}"),
            PATCH=usual.change(f"change_{name}"),
            DELETE=usual.delete(f"delete_{name}"),
        ),
    )


class Guard:
    """Takes for the user who a header says it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = {"id": int(dict(scope["headers"]).get(b"user", b"1")), "username": "x"}
        await self.app(scope, receive, send)


RESOURCES = [resource(AUTHORS), resource(BOOKS), resource(LISTS)]
app = make_app(RESOURCES, make_document(RESOURCES, by_token=False), [Middleware(Guard)])
