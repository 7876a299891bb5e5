"""Orders of listings: their parameter `sort`, cursors, and the indexes that serve them."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson
from marshmallow import ValidationError, fields
from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    Column,
    Date,
    Integer,
    String,
    Table,
    UnaryExpression,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.operators import desc_op, is_not

from service.schemas import fields as inputs

# The names of columns in turn, and whether each of them descends.
Order = tuple[tuple[str, bool], ...]
# The values of these columns in the last row of a page.
Values = tuple[Any, ...]

# For each type of column that has an order: the field that reads a value of it in a cursor.
_FIELDS: dict[type[Any], fields.Field[Any]] = {
    Date: inputs.Date(),
    BigInteger: inputs.Integer(-(2**63), 2**63 - 1),
    Integer: inputs.Integer(),
    String: inputs.Text(),
}


_POSTGRESQL = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


def _field(column: Column[Any]) -> fields.Field[Any] | None:
    return next((one for kind, one in _FIELDS.items() if isinstance(column.type, kind)), None)


def refuse_unordered(column: Column[Any]) -> None:
    """Raises ValueError for a column whose values have no order, or another on each database."""
    if _field(column) is None:
        raise ValueError(f"{column}: its type has no order here")
    if isinstance(column.type, String):
        of_postgresql = column.type.dialect_impl(_POSTGRESQL)
        if getattr(of_postgresql, "collation", None) != "C":
            raise ValueError(f"{column}: its order depends on the server; make it a sorted_text")


def unique_columns(table: Table, owner: Column[Any] | None = None) -> set[str]:
    """The names of the columns of which each is unique alone, or for each owner."""
    others = [
        {name for name, _ in columns if owner is None or name != owner.name}
        for columns, is_unique, _ in _indexes(table)
        if is_unique
    ]
    return {name for names in others if len(names) == 1 for name in names}


class Sort(fields.String):
    """An order: names with commas, each with a minus if it descends.

    What is the same in all of them comes in the order of the ids, in the direction of the last
    name. Names behind one whose values are unique say nothing, and are dropped.
    """

    def __init__(self, names: Iterable[str], unique: Collection[str], **kwargs: Any) -> None:
        super().__init__(load_default=(), **kwargs)
        one = f"-?({'|'.join(sorted({*names, 'id'}))})"
        self.pattern = f"^{one}(,{one})*$"
        self._unique = unique

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if re.fullmatch(self.pattern, value) is None:
            raise ValidationError([{"type": "string_pattern_mismatch", "pattern": self.pattern}])
        order: dict[str, bool] = {}
        for part in value.split(","):
            name = part.removeprefix("-")
            order.setdefault(name, part.startswith("-"))
            if name in self._unique:
                return tuple(order.items())
        *_, last = order.values()
        return (*order.items(), ("id", last))


def write_cursor(values: Values) -> str:
    return urlsafe_b64encode(orjson.dumps(values)).rstrip(b"=").decode()


def read_cursor(cursor: str, columns: Sequence[Column[Any]]) -> Values:
    """The values of these columns. Raises ValueError for what is no cursor of them."""
    try:
        values = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list):
            raise TypeError(cursor)
        return tuple(
            found.deserialize(value)
            for value, column in zip(values, columns, strict=True)
            if (found := _field(column))
        )
    except (TypeError, ValidationError) as error:
        raise ValueError(cursor) from error.with_traceback(None)


class _Index(NamedTuple):
    columns: Sequence[tuple[str, bool]]
    is_unique: bool
    # The column that is not NULL in all rows that the index has.
    filled: str | None = None


def _indexes(table: Table) -> Iterator[_Index]:
    yield _Index([(column.name, False) for column in table.primary_key], True)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield _Index([(column.name, False) for column in constraint], True)
    for index in table.indexes:
        found = list(map(_indexed, index.expressions))
        filled = [_filled(one) for name, one in index.kwargs.items() if name in _CONDITIONS]
        # Others have another condition, prefixes of texts or no order.
        is_known = not (index.kwargs.keys() - _CONDITIONS - {"postgresql_include"})
        if is_known and None not in [*found, *filled]:
            columns = [one for one in found if one]
            yield _Index(columns, bool(index.unique), *filled[:1])


_CONDITIONS = {"postgresql_where", "sqlite_where"}


def _filled(condition: Any) -> str | None:
    """The column that is not NULL, if the condition says that; None for another condition."""
    is_filled = isinstance(condition, BinaryExpression) and condition.operator is is_not
    return str(condition.left.name) if is_filled else None


def _indexed(expression: Any) -> tuple[str, bool] | None:
    """The name of an indexed column, and whether it descends; None for another expression."""
    if isinstance(expression, UnaryExpression) and isinstance(expression.element, Column):
        return (expression.element.name, True) if expression.modifier is desc_op else None
    return (expression.name, False) if isinstance(expression, Column) else None


def is_served(table: Table, equal: set[str], ranges: set[str], order: Order) -> bool:
    """Whether an index has the rows of a page in a row, in their order.

    They are selected by values of the columns `equal`, and by ranges of the columns `ranges`.
    """
    return any(_serves(index, equal, ranges, order) for index in _indexes(table))


def _serves(index: _Index, equal: set[str], ranges: set[str], order: Order) -> bool:
    names = [name for name, _ in index.columns]
    if index.filled and index.filled not in equal:
        return False
    if index.is_unique and equal.issuperset(names):
        return True
    wanted = [one for one in order if one[0] not in equal]
    found = index.columns[len(equal) : len(equal) + len(wanted)]
    if set(names[: len(equal)]) != equal or [name for name, _ in found] != [
        name for name, _ in wanted
    ]:
        return False
    turns = {has != wants for (_, has), (_, wants) in zip(found, wanted, strict=True)}
    return len(turns) < 2 and ranges <= {name for name, _ in wanted[:1]}
