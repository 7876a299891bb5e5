"""Operations for databases with INSERT, UPDATE and DELETE ... RETURNING."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Integer, Select, Table, bindparam, case, func, select

from service.database.operations import Operation

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
    length: Callable[[ColumnElement[Any]], ColumnElement[Any]],
    query: Select[Any],
    large: Column[Any],
    short: int,
    max_bytes: int,
    searches: bool,
) -> Operation:
    limit = bindparam("limit", type_=Integer)
    values = query.with_only_columns(large).limit(limit).subquery()
    total = select(func.sum(length(values.c[large.name]))).scalar_subquery()
    is_large = (total > max_bytes) & (limit > short)
    return prepare(query.limit(case((is_large, short), else_=limit)), searches)
