"""Operations for databases with INSERT, UPDATE and DELETE ... RETURNING."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    select,
)
from sqlalchemy.types import TypeEngine

from service.database.operations import Operation, PageBounds

Prepare = Callable[..., Operation]


def insert_or_replace(
    prepare: Prepare,
    insert: Callable[[Table], Any],
    table: Table,
    values: Mapping[str, Any],
    key: Column[Any],
    columns: Sequence[ColumnElement[Any]],
    replaceable: ColumnElement[bool] | None = None,
) -> Operation:
    new = insert(table).values(**values)
    if replaceable is None:
        new = new.on_conflict_do_nothing(index_elements=[key])
    else:
        others = {name: new.excluded[name] for name in values if name != key.name}
        new = new.on_conflict_do_update(index_elements=[key], set_=others, where=replaceable)
    return prepare(new.returning(*columns))


def update(
    prepare: Prepare,
    table: Table,
    values: Mapping[str, Any],
    row: ColumnElement[bool],
    columns: Sequence[ColumnElement[Any]],
    *conditions: ColumnElement[bool],
) -> Operation:
    return prepare(table.update().values(**values).where(row, *conditions).returning(*columns))


def delete(prepare: Prepare, table: Table, *where: ColumnElement[bool]) -> Operation:
    return prepare(table.delete().where(*where).returning(*table.primary_key))


def page(
    prepare: Prepare,
    parameter: Callable[[str, TypeEngine[Any]], ColumnElement[Any]],
    length: Callable[[ColumnElement[Any]], ColumnElement[Any]],
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
    searches: bool,
) -> Operation:
    # The best plan of a search depends on all parameters.
    new = bindparam if searches else parameter
    after, limit = new("after", key.type), new("limit", Integer())
    selected = bounded(length, query, key, large, bounds, descending, after, limit)
    return prepare(selected, searches)


def behind(
    query: Select[Any], key: Column[Any], descending: bool, after: ColumnElement[Any]
) -> Select[Any]:
    """The rows of a query behind a key, in the order of the key."""
    query = query.where(key < after if descending else key > after)
    return query.order_by(key.desc() if descending else key)


def bounded(
    length: Callable[[ColumnElement[Any]], ColumnElement[Any]],
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
    after: ColumnElement[Any],
    limit: ColumnElement[Any],
    outer: FromClause | None = None,
) -> Select[Any]:
    """The rows of one page. `after` and `limit` may be columns of an outer query."""
    query = behind(query, key, descending, after).correlate(outer)
    if large is None:
        return query.limit(limit)
    # Usually no large value follows. Then the page is read only once. `+ 0` makes the planner use
    # the index of large values: in the index of the keys it would read all rows.
    place = key + _constant(0)
    follows = (
        select(_constant(1))
        .where(place < after if descending else place > after)
        .where(length(large) > _constant(bounds.large))
        .order_by(place.desc() if descending else place)
        .limit(_constant(1))
        .correlate(outer)
        .scalar_subquery()
    )
    values = query.with_only_columns(large).limit(limit).subquery()
    total = select(func.sum(length(values.c[large.name]))).scalar_subquery()
    short = _constant(bounds.short)
    is_long = (total > _constant(bounds.max_bytes)) & (limit > short)
    most = case((follows.is_(None), limit), (is_long, short), else_=limit)
    return query.limit(most)


def _constant(number: int) -> ColumnElement[int]:
    """A number in the text of the statement: an index with a condition is not used otherwise."""
    return literal_column(str(number), Integer)
