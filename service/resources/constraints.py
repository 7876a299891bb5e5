"""Which values break a table's unique constraints and foreign keys.

A database names one constraint of one row at most, and SQLite not even that for a foreign key. So
after an error, and then only, the values are looked up.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Table, UniqueConstraint, select

from service.database.dialect import dialect
from service.database.operations import Operation
from service.database.statements import fetch

Values = Mapping[str, Any]


class Fault(NamedTuple):
    """A value that is refused: the place of its row, its column, and an error type."""

    place: int
    name: str
    kind: str


class _Key(NamedTuple):
    """Columns by which rows are looked up, and the query, with a list of values for each."""

    names: list[str]
    columns: list[str]
    query: Operation


class Constraints:
    """The unique constraints and foreign keys of a table."""

    def __init__(self, table: Table) -> None:
        uniques = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
        indexes = [one for one in table.indexes if one.unique]
        groups = [list(one.columns) for one in uniques] + [list(one.columns) for one in indexes]
        self._uniques = [_key([str(one.name) for one in columns], columns) for columns in groups]
        self._references = [
            _key(
                [str(one.parent.name) for one in constraint.elements],
                [one.column for one in constraint.elements],
            )
            for constraint in table.foreign_key_constraints
        ]

    async def find(
        self, rows: Sequence[Values], sent: Collection[str], row_id: int | None = None
    ) -> list[Fault]:
        """The faults of rows to be stored, or of changes to the row with an id, in order.

        They are told of the columns that clients have sent. Raises DatabaseUnavailable.
        """
        faults = []
        for key in self._uniques:
            given = _given(key, rows)
            counted = Counter(given.values())
            others = await _existing(key, given, row_id)
            seen = Counter[tuple[Any, ...]]()
            for place, values in given.items():
                seen[values] += 1
                if values in others or (counted[values] > 1 and seen[values] > 1):
                    faults.append(Fault(place, _told(key, sent), "not_unique"))
        for key in self._references:
            given = _given(key, rows)
            existing = await _existing(key, given, None)
            faults += [
                Fault(place, _told(key, sent), "not_found")
                for place, values in given.items()
                if values not in existing
            ]
        return sorted(faults)


def _told(key: _Key, sent: Collection[str]) -> str:
    return next((name for name in key.names[::-1] if name in sent), key.names[-1])


def _key(names: list[str], columns: list[Column[Any]]) -> _Key:
    (row_id,) = columns[0].table.primary_key
    found = select(row_id.label("row_id"), *(column for column in columns if column is not row_id))
    lists = [dialect.is_one_of(column, f"values_{number}") for number, column in enumerate(columns)]
    query = dialect.prepare(found.where(*lists))
    shown = ["row_id" if column is row_id else str(column.name) for column in columns]
    return _Key(names, shown, query)


def _given(key: _Key, rows: Sequence[Values]) -> dict[int, tuple[Any, ...]]:
    """The values of the key by the place of their row. NULL is equal to nothing."""
    return {
        place: tuple(row[name] for name in key.names)
        for place, row in enumerate(rows)
        if all(row.get(name) is not None for name in key.names)
    }


async def _existing(
    key: _Key, given: Mapping[int, tuple[Any, ...]], except_id: int | None
) -> set[tuple[Any, ...]]:
    """The values that rows have, except the row with an id."""
    if not given:
        return set()
    columns = zip(*given.values(), strict=True)
    lists = {f"values_{number}": list(set(values)) for number, values in enumerate(columns)}
    rows = await fetch(key.query, **lists)
    return {tuple(row[name] for name in key.columns) for row in rows if row["row_id"] != except_id}
