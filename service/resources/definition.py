"""What a resource is: data alone. Its queries, operations and descriptions are made from it."""

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from marshmallow import Schema, fields
from sqlalchemy import Column, Table

from service.resources import orders
from service.resources.fitting import refuse_misfits
from service.schemas.fields import MAX_ID, Choice, Input, Integer, Text, Timestamp

# The most items of a page, and of a batch.
MAX_PAGE = 1000
MAX_BATCH = 1000
# PostgreSQL can't interrupt the search in one text. Its duration grows with the text's length times
# this: up to two seconds for 1 MB.
MAX_Q = 200

# The columns that the service sets, in seconds since the epoch.
TIMES = {
    "created_at": "The time when it was stored",
    "updated_at": "The time when it was last changed, or stored",
}


class Filter(NamedTuple):
    """A query parameter that selects the rows whose column has its value.

    It is read like the field that shows the column. The other two describe it.
    """

    column: Column[Any]
    about: str
    example: Any
    compare: Callable[[Any, Any], Any] = operator.eq


# Filters that select the rows whose column has the value, or a greater or smaller one.
AtLeast = partial(Filter, compare=operator.ge)
AtMost = partial(Filter, compare=operator.le)


class Search(NamedTuple):
    """The query parameter `q`, for the rows whose text contains it, in upper or lower case."""

    text: Column[Any]
    # It holds the text after str.casefold, or NULL if the text is ASCII.
    folded: Column[Any]
    example: str


@dataclass(frozen=True)
class Definition:
    """A resource, at the path of its table's name.

    Its rows have an integer `id`, which the database gives, and are listed in the order of their
    ids. `new` is the shape that clients send, `shape` the one that they get. `large` is the column
    whose texts may be as long as a body. Clients may sort by the columns `sorts`, which are shown
    and NOT NULL. Filters and orders that no index serves together run in the lane of searches.
    Raises ValueError for what doesn't fit together, such as a field that its column can't hold.
    """

    table: Table
    # For one of them, such as "note".
    name: str
    new: Schema
    shape: Schema
    filters: Mapping[str, Filter] = field(default_factory=dict)
    search: Search | None = None
    large: Column[Any] | None = None
    # The column OWNER, if the row is the user's who creates it. To all others it is a 404.
    owner: Column[Any] | None = None
    # The same column, if it only records who creates the row.
    creator: Column[Any] | None = None
    sorts: Sequence[Column[Any]] = ()

    def __post_init__(self) -> None:
        refuse_misfits(self)

    @property
    def plural(self) -> str:
        return str(self.table.name)

    @property
    def records(self) -> Column[Any] | None:
        """The column for the user who creates a row."""
        return self.creator if self.owner is None else self.owner

    @property
    def times(self) -> list[str]:
        """The columns of TIMES that clients see, and don't send."""
        shown, given = self.shape.dump_fields, self.new.load_fields
        return [name for name in TIMES if name in shown and name not in given]

    def patch(self) -> Schema:
        """The shape of changes: any of the fields that clients send."""
        return type(self.new)(partial=True)

    def filter_field(self, name: str) -> fields.Field[Any]:
        """The field that reads a filter's parameter. Without one it gives None."""
        found = copy(self.shape.declared_fields[str(self.filters[name].column.name)])
        found.required = False
        found.load_default = None
        return found

    def listing_query(self) -> Schema:
        """The query of a listing."""
        read: dict[str, fields.Field[Any]] = {
            "limit": Integer(1, MAX_PAGE, load_default=None),
            "after": Integer(0, MAX_ID, load_default=None),
            "order": Choice("asc", "desc", load_default="asc"),
            **{name: self.filter_field(name) for name in self.filters},
        }
        if self.search:
            read["q"] = Text(MAX_Q, load_default="")
        if self.sorts:
            names = [str(column.name) for column in self.sorts]
            unique = orders.unique_columns(self.table, self.owner)
            read["sort"] = orders.Sort(names, unique)
            read["cursor"] = Text(load_default=None)
        return Input.from_dict(read)()


def with_id(new: type[Schema], name: str, *times: str) -> Schema:
    """The shape of items as clients get them: the id, the fields that clients send, and the times.

    The times are names of TIMES. Their columns are BigInteger and NOT NULL. ValueError for others.
    """
    if unknown := set(times) - TIMES.keys():
        raise ValueError(f"{unknown} are none of the times {list(TIMES)}")
    about = {"description": "The service assigns it, and never uses it twice", "examples": [1]}
    meta = type("Meta", (), {"fields": ("id", *new._declared_fields, *times)})
    given = {
        "Meta": meta,
        "id": fields.Integer(required=True, metadata=about),
        **{time: _time(TIMES[time]) for time in times},
    }
    shape: Schema = type(name, (new,), given)()
    return shape


def _time(description: str) -> Timestamp:
    about = {"description": f"{description}, in UTC", "examples": ["2026-02-28T12:00:00Z"]}
    return Timestamp(required=True, metadata=about)
