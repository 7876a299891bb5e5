"""Whether a definition's parts fit together: its table, its fields, and what uses them."""

import operator
import re
from collections.abc import Iterator
from datetime import date
from itertools import chain
from typing import TYPE_CHECKING, Any

import sqlalchemy
from marshmallow import fields, missing
from sqlalchemy import Column

from service.resources import orders
from service.schemas.fields import Boolean, Choice, Date, Integer, List, Text, Timestamp
from service.tables import OWNER

if TYPE_CHECKING:
    from service.resources.definition import Definition

# The parameters of listings that are no filters.
RESERVED = {"limit", "after", "order", "q", "sort", "cursor"}

# For each type of field: the type of its column, and that of a default.
_COLUMNS: dict[type[fields.Field[Any]], tuple[type[Any], type[Any]]] = {
    Boolean: (sqlalchemy.Boolean, bool),
    Choice: (sqlalchemy.String, str),
    Date: (sqlalchemy.Date, date),
    List: (sqlalchemy.String, str),
    Text: (sqlalchemy.String, str),
    Timestamp: (sqlalchemy.BigInteger, int),
    # That of the ids is marshmallow's.
    fields.Integer: (sqlalchemy.Integer, int),
}
# The type of an integer column on each database; BigInteger is an Integer, too.
_BITS = ((sqlalchemy.BigInteger, 64), (sqlalchemy.SmallInteger, 16), (sqlalchemy.Integer, 32))
# Some characters are three after str.casefold.
_FOLDED = 3


def refuse_misfits(definition: "Definition") -> None:
    """Raises ValueError with the first part that doesn't fit the others.

    Otherwise a request would find it: as a 500, or as a row that can't be read.
    """
    _refuse_names(definition)
    shape, given = definition.shape.dump_fields, definition.new.load_fields
    for name, field in {**shape, **given}.items():
        column = definition.table.c.get(name)
        if column is None:
            raise ValueError(f"{definition.plural} has no column for the field {name}")
        _refuse_type(field, column)
    for name, field in given.items():
        _refuse_input(field, definition.table.c[name], definition)
    _refuse_unfilled(definition)
    _refuse_search(definition)
    for name, (column, _, _, compare) in definition.filters.items():
        if name in RESERVED:
            raise ValueError(f"{definition.plural}: {name} is a parameter of every listing")
        if compare is not operator.eq:
            orders.refuse_unordered(column)
        if isinstance(shape.get(str(column.name)), List | None) or column.name == "id":
            raise ValueError(f"{column} is not shown, or is the id or a list: it can't be a filter")
    for column in definition.sorts:
        orders.refuse_unordered(column)
        if column.nullable or column.name not in shape:
            raise ValueError(f"{column} is not shown, or may be NULL: it can't be sorted by")
    if definition.sorts and definition.large is not None:
        # Pages of large texts are bounded by an index in the order of the ids.
        raise ValueError(
            f"{definition.plural}: large texts have no other order than that of the ids"
        )


def _refuse_names(definition: "Definition") -> None:
    if re.fullmatch("[a-z][a-z0-9_]*", definition.name) is None or (
        definition.name == definition.plural
    ):
        raise ValueError(f"{definition.name!r} is no name for one of the {definition.plural}")
    key = definition.table.primary_key.columns
    if key.keys() != ["id"] or not isinstance(key["id"].type, sqlalchemy.Integer):
        raise ValueError(f"{definition.plural}: its primary key has to be the column id, of ID")
    if definition.records is not None and definition.records.name != OWNER:
        raise ValueError(f"{definition.records}: the operators' commands know only {OWNER}")
    for column in _used(definition):
        if definition.table.c.get(str(column.name)) is not column:
            raise ValueError(f"{column} is no column of {definition.plural}")


def _used(definition: "Definition") -> Iterator[Column[Any]]:
    """The columns that a definition names."""
    named = (definition.large, definition.owner, definition.creator, *definition.sorts)
    searched = definition.search[:2] if definition.search else ()
    filtered = (one.column for one in definition.filters.values())
    return (column for column in chain(named, searched, filtered) if column is not None)


def _refuse_type(field: fields.Field[Any], column: Column[Any]) -> None:
    kinds = next((kinds for kind, kinds in _COLUMNS.items() if isinstance(field, kind)), None)
    if kinds is None:
        kind = type(field).__name__
        raise ValueError(f"{column}: {kind} is none of the fields in service/schemas/fields.py")
    if not isinstance(column.type, kinds[0]):
        name = type(field).__name__
        raise ValueError(f"{column}: {name} needs a column of the type {kinds[0].__name__}")
    default = field.load_default
    if default not in (missing, None) and not callable(default):
        is_boolean = isinstance(default, bool)
        if not isinstance(default, kinds[1]) or is_boolean is not (kinds[1] is bool):
            raise ValueError(
                f"{column}: the type of its load_default has to be {kinds[1].__name__}"
            )


def _refuse_input(field: fields.Field[Any], column: Column[Any], definition: "Definition") -> None:
    if not field.required and field.load_default is missing:
        raise ValueError(f"{column}: its field has to be required, or to have a load_default")
    if field.allow_none and not column.nullable:
        raise ValueError(f"{column} can't be NULL, and its field may be null")
    searched = definition.search and definition.search.text
    if field.allow_none and (column is definition.large or column is searched):
        raise ValueError(f"{column} is large or searched, and its field may be null")
    length = getattr(column.type, "length", None)
    if isinstance(field, Text) and column is not definition.large:
        # Pages of a thousand of them have to fit into memory.
        if field.max_length is None:
            raise ValueError(f"{column} needs a max_length, or has to be large")
        _refuse_length(column, field.max_length)
    elif isinstance(field, Choice):
        _refuse_length(column, max(map(len, field.choices)))
    elif isinstance(field, List) and length is not None:
        raise ValueError(f"{column} holds a list, so it needs a String without a length")
    elif isinstance(field, Integer):
        most = 1 << (next(bits for kind, bits in _BITS if isinstance(column.type, kind)) - 1)
        if field.ge < -most or field.le >= most:
            raise ValueError(f"{column} is too small for integers from {field.ge} to {field.le}")


def _refuse_length(column: Column[Any], most: int) -> None:
    if most > (getattr(column.type, "length", None) or most):
        raise ValueError(f"{column} is shorter than its field")


def _refuse_unfilled(definition: "Definition") -> None:
    """Refuses columns that a create leaves empty, though they can't be."""
    filled = {"id", OWNER, *definition.new.load_fields, *definition.times}
    if definition.records is None:
        filled.discard(OWNER)
    for column in definition.table.c:
        if not (column.nullable or column.server_default is not None or column.name in filled):
            raise ValueError(
                f"{column} can't be NULL, and neither clients nor a server_default fill it"
            )


def _refuse_search(definition: "Definition") -> None:
    given = definition.new.load_fields
    if definition.large is not None and not isinstance(given.get(definition.large.name), Text):
        raise ValueError(f"{definition.large} is no text that clients send: it can't be large")
    if definition.search is None:
        return
    text, folded, _ = definition.search
    field = given.get(str(text.name))
    if not isinstance(field, Text):
        raise ValueError(f"{text} is no text that clients send: it can't be searched")
    if folded is text or folded.name in given or not folded.nullable:
        raise ValueError(f"{folded} has to be a column of its own, which may be NULL")
    if not isinstance(folded.type, sqlalchemy.String):
        raise ValueError(f"{folded} has to be a String")
    if folded.type.length is not None and (
        field.max_length is None or folded.type.length < _FOLDED * field.max_length
    ):
        raise ValueError(f"{folded} has to be {_FOLDED} times as long as the text, or without end")
