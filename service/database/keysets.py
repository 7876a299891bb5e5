"""Pages in the order of several columns, each of which rises or descends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Integer, Select, and_, bindparam, or_
from sqlalchemy.types import TypeEngine

from service.database.operations import Operation


class _Place(NamedTuple):
    """A column, and its value in the last row of the page before."""

    column: Column[Any]
    descends: bool
    value: ColumnElement[Any]


def page(
    prepare: Callable[..., Operation],
    parameter: Callable[[str, TypeEngine[Any]], ColumnElement[Any]],
    query: Select[Any],
    order: Sequence[tuple[Column[Any], bool]],
    follows: bool,
    searches: bool,
) -> Operation:
    # The best plan of a search depends on all parameters.
    new = bindparam if searches else parameter
    if follows:
        places = [
            _Place(column, descends, new(f"after_{number}", column.type))
            for number, (column, descends) in enumerate(order)
        ]
        query = query.where(*_behind(*places))
    ordered = query.order_by(*(column.desc() if descends else column for column, descends in order))
    return prepare(ordered.limit(new("limit", Integer())), searches)


def _behind(first: _Place, *others: _Place) -> list[ColumnElement[bool]]:
    """The conditions of a row behind a place. For `sort=due,-id` they are:

    due >= :after_0 AND (due > :after_0 OR id < :after_1)

    The first is implied by the second. Databases look it up in an index, and the second they don't.
    """
    column, descends, value = first
    is_behind = column < value if descends else column > value
    if not others:
        return [is_behind]
    is_not_before = column <= value if descends else column >= value
    return [is_not_before, or_(is_behind, and_(*_behind(*others)))]
