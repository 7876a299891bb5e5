"""A service of other resources, for tests: authors of a unique name, and books of an author."""

import sqlalchemy
from starlette.routing import Route

from service.app import Service, lifespan
from service.resources.definition import Definition, Filter, with_id
from service.resources.descriptions import Descriptions
from service.resources.items import Items
from service.schemas.fields import MAX_ID, Input, Integer, Text
from service.tables import ID
from service.web.routing import Methods, Operation, Path, Resource

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


def resource(definition: Definition) -> Resource:
    items = Items(definition)
    describe = Descriptions(definition, "For tests.")
    name, path = definition.name, f"/{definition.plural}/"
    return Resource(
        describe.schemas,
        Path(
            path,
            GET=Operation(f"read_{name}s", items.listing, describe.listing()),
            POST=Operation(f"create_{name}", items.create, describe.create()),
        ),
        Path(
            f"{path}batch",
            POST=Operation(f"create_{name}s", items.create_many, describe.create_many()),
        ),
        Path(
            f"{path}{{{name}_id}}",
            name,
            GET=Operation(f"read_{name}", items.read, describe.read()),
            PUT=Operation(f"replace_{name}", items.replace, describe.replace()),
            PATCH=Operation(f"change_{name}", items.change, describe.change()),
            DELETE=Operation(f"delete_{name}", items.delete, describe.delete()),
        ),
    )


RESOURCES = [resource(AUTHORS), resource(BOOKS)]
app = Service(
    routes=[
        Route(path.path, Methods(**path.handlers()), name=path.name)
        for one in RESOURCES
        for path in one.paths
    ],
    lifespan=lifespan,
)
