"""The queries on a resource, without HTTP."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from time import time
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    and_,
    bindparam,
    false,
    func,
    select,
    true,
)

from service import settings
from service.database.dialect import dialect
from service.database.operations import LARGE, Operation, PageBounds
from service.database.statements import Run, fetch
from service.resources.definition import MAX_PAGE, Definition
from service.resources.orders import Order, is_served
from service.schemas.fields import MAX_ID
from service.tables import Row

# A text may have MAX_BODY_BYTES, and a page has to fit into memory. 1,001 rows that are not large
# are no long page. The index of large texts has the same bound.
BOUNDS = PageBounds(max_bytes=2_000_000, short=17, large=1998)
# Pages of at most 100 rows share a statement, at most 50 of them. They have to be small.
SHARED_LENGTH = 100
MAX_SHARED = 50
_SHARED_BOUNDS = PageBounds(max_bytes=200_000, short=0, large=1998)
# A page is read under these bounds first. Longer ones hold up no others, in a lane of their own.
_SHORT_BOUNDS = PageBounds(max_bytes=200_000, short=1, large=1998)

# Items of up to 2,000 characters share an INSERT, at most 100 of them; of larger ones, up to LARGE
# characters, at most four. Larger ones go alone.
SMALL, MAX_SMALL = 2_000, 100
MAX_MEDIUM = 4

# Any value of a filter.
ANY = "any"


# Where a page goes on: behind an id, or behind the values of the columns that it is sorted by.
Place = Any


class Selection(NamedTuple):
    """What a listing selects: the order, of each filter the value or None, the text, the owner.

    `order` is empty for the order of the ids, which `descending` is about.
    """

    descending: bool = False
    values: tuple[Any, ...] = ()
    q: str = ""
    owner: int | None = None
    order: Order = ()


def fold(text: str) -> str | None:
    """The value of a column `folded`: None for ASCII, where lower() gives the same."""
    return None if text.isascii() else text.casefold()


class Queries:
    """The queries on the rows of a definition's table. Statements are compiled at their first use.

    Each raises DatabaseUnavailable.
    """

    def __init__(self, definition: Definition) -> None:
        self._table = table = definition.table
        self._filters = list(definition.filters.values())
        self._all_boolean = all(isinstance(one.column.type, Boolean) for one in self._filters)
        self._search = definition.search
        self._large = definition.large
        self._large_name = "" if self._large is None else str(self._large.name)
        # The columns that clients get, and the names of the columns that clients give.
        self._columns = [dialect.shown(table.c[name]) for name in definition.shape.dump_fields]
        self._given = list(definition.new.load_fields)
        self._times = definition.times
        self._is_updated = "updated_at" in self._times
        # What tells of a change. An item that was changed back has another time.
        self._changing = [*self._given, *(["updated_at"] if self._is_updated else [])]
        # What each statement on rows that are there requires of them.
        owner = definition.owner
        self._owned: list[ColumnElement[bool]] = []
        self._owner_name = None if owner is None else str(owner.name)
        # The best plan of a search depends on all parameters.
        self._owned_searched: list[ColumnElement[bool]] = []
        if owner is not None:
            self._owned = [dialect.is_owners(owner, "owner")]
            self._owned_searched = [owner == bindparam("owner", type_=owner.type)]
        records = definition.records
        self._records = None if records is None else str(records.name)
        self._sorts = {str(column.name): column for column in [*definition.sorts, table.c.id]}
        # Orders of several columns make many.
        self._has_index = lru_cache(1000)(self._find_index)
        self._always_has_index = not definition.sorts and all(
            self._has_index(used, ()) for used in product((False, True), repeat=len(self._filters))
        )
        self._this = and_(table.c.id == bindparam("row_id", type_=BigInteger), *self._owned)
        # The row still has the values :old_...
        self._same = [
            dialect.compared(table.c[name]).is_not_distinct_from(
                bindparam(f"old_{name}", type_=table.c[name].type)
            )
            for name in self._changing
        ]
        # The names of a text and its folded column; orjson refuses SQLAlchemy's own kind of names.
        self._folds = (
            {str(self._search.text.name): str(self._search.folded.name)} if self._search else {}
        )
        names = [*self._given, *self._folds.values(), *self._times]
        if self._records:
            names.append(self._records)
        self._insert = dialect.insert_many(table, names, self._columns)
        self._by_id = dialect.prepare(select(*self._columns).where(self._this))
        self._by_ids = dialect.prepare(
            select(*self._columns).where(dialect.is_one_of(table.c.id, "ids"), *self._owned)
        )
        self._delete = {
            False: dialect.delete(table, self._this),
            True: dialect.delete(table, self._this, *self._same),
        }
        self._page = lru_cache(1000)(self._prepare_page)
        self._sorted_page = lru_cache(1000)(self._prepare_sorted_page)
        self._pages = lru_cache(1000)(self._prepare_pages)
        self._count = lru_cache(1000)(self._prepare_count)
        self._update = lru_cache(1000)(self._prepare_update)

    def _selected(
        self, kinds: tuple[Any, ...], by_text: bool, searches: bool
    ) -> list[ColumnElement[bool]]:
        conditions = [*(self._owned_searched if searches else self._owned)]
        for number, (one, kind) in enumerate(zip(self._filters, kinds, strict=False)):
            if kind is ANY:
                value = bindparam(f"filter_{number}", type_=one.column.type)
                conditions.append(one.compare(one.column, value))
            elif kind is not None:
                conditions.append(one.column == (true() if kind else false()))
        if by_text and self._search:
            # What others have must not make a search slower, which would tell of it.
            indexed = not self._owned
            text, folded = self._search.text, self._search.folded
            conditions.append(dialect.contains(text, folded, "q", indexed))
        return conditions

    def _kinds(self, selection: Selection) -> tuple[Any, ...]:
        """What the statement of a selection depends on: of each filter None, a boolean or ANY."""
        # A boolean is not a parameter: how many rows have it makes the plan.
        if self._all_boolean:
            return selection.values
        return tuple(
            value if value is None or isinstance(one.column.type, Boolean) else ANY
            for one, value in zip(self._filters, selection.values, strict=False)
        )

    def _kind(self, selection: Selection) -> tuple[bool, tuple[Any, ...], bool]:
        return selection.descending, self._kinds(selection), bool(selection.q)

    def _parameters(self, selection: Selection) -> dict[str, Any]:
        found = {f"filter_{number}": value for number, value in enumerate(selection.values)}
        return {**found, "q": selection.q.casefold(), "owner": selection.owner}

    def _find_index(self, used: tuple[bool, ...], order: Order) -> bool:
        """Whether an index serves an order and those of the filters that are used."""
        owner = {self._owner_name} if self._owner_name else set()
        names: tuple[set[str], set[str]] = owner, set()
        for one, is_used in zip(self._filters, used, strict=False):
            if is_used:
                names[one.compare is not operator.eq].add(str(one.column.name))
        return is_served(self._table, *names, order or (("id", False),))

    def _searches(self, values: tuple[Any, ...], by_text: bool, order: Order = ()) -> bool:
        if by_text or self._always_has_index:
            return by_text
        return not self._has_index(tuple(value is not None for value in values), order)

    def searches(self, selection: Selection) -> bool:
        """Whether no index has the rows of a selection, in their order. It may read every row."""
        return self._searches(selection.values, bool(selection.q), selection.order)

    def _prepare_page(
        self,
        descending: bool,
        kinds: tuple[Any, ...],
        by_text: bool,
        bounds: PageBounds,
        ids_only: bool = False,
    ) -> Operation:
        key = self._table.c.id
        searches = self._searches(kinds, by_text)
        query = select(*([key] if ids_only else self._columns))
        query = query.where(*self._selected(kinds, by_text, searches))
        page = dialect.page(query, key, self._large, bounds, descending, searches)
        return page if searches or bounds is _SHORT_BOUNDS else page._replace(lane="large_read")

    def _prepare_sorted_page(
        self, order: Order, kinds: tuple[Any, ...], by_text: bool, follows: bool
    ) -> Operation:
        searches = self._searches(kinds, by_text, order)
        query = select(*self._columns).where(*self._selected(kinds, by_text, searches))
        columns = [(self._sorts[name], descends) for name, descends in order]
        return dialect.sorted_page(query, columns, follows, searches)

    def _prepare_pages(self, descending: bool, kinds: tuple[Any, ...]) -> Operation | None:
        if ANY in kinds or self._searches(kinds, by_text=False):
            return None
        selected = self._selected(kinds, by_text=False, searches=False)
        query = select(*self._columns).where(*selected)
        return dialect.pages(query, self._table.c.id, self._large, _SHARED_BOUNDS, descending)

    def is_shared(self, selection: Selection, limit: int) -> bool:
        """Whether a page may be read in a statement with other pages of its selection."""
        # The best plan of a search depends on all parameters.
        if limit > SHARED_LENGTH or selection.q or selection.order:
            return False
        return self._pages(selection.descending, self._kinds(selection)) is not None

    def _prepare_count(self, kinds: tuple[Any, ...], by_text: bool) -> Operation:
        # Listings have no other ids, which another program may have stored.
        query = select(func.count().label("total")).where(self._table.c.id.between(1, MAX_ID))
        # It reads every row, or an entry of an index for each, as a search does.
        return dialect.prepare(
            query.where(*self._selected(kinds, by_text, searches=True)), searches=True
        )

    def _prepare_update(self, names: tuple[str, ...], conditional: bool) -> Operation:
        """The update of some values, possibly none."""
        columns = self._table.c
        values: dict[str, ColumnElement[Any]] = {
            name: bindparam(f"new_{name}", type_=columns[name].type) for name in names
        }
        conditions = self._same if conditional else []
        return dialect.update(
            self._table, values or {"id": columns.id}, self._this, self._columns, *conditions
        )

    def size(self, values: Mapping[str, Any]) -> int:
        """The number of characters of the text that may be large."""
        return len(values.get(self._large_name, ""))

    def most_bytes(self, limit: int) -> int:
        """The most bytes that the texts of a page have, if MAX_BODY_BYTES was never larger."""
        return max(BOUNDS.max_bytes, min(limit, BOUNDS.short) * settings.MAX_BODY_BYTES)

    def _folded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, and the folded text if they have a text."""
        found = {
            folded: fold(values[text]) for text, folded in self._folds.items() if text in values
        }
        return {**values, **found}

    async def list_page(
        self,
        selection: Selection = Selection(),  # noqa: B008 - it is immutable
        after: Place | None = None,
        limit: int = MAX_PAGE,
    ) -> tuple[Sequence[Row], bool]:
        """The rows of a selection after a place, and whether more rows follow.

        There are fewer than `limit` only at the end, or if their texts are very large.
        """
        if selection.order:
            return await self._list_sorted(selection, after, limit)
        rows, is_cut = await self._list_bounded(selection, after, limit, BOUNDS)
        return rows[:limit], is_cut or len(rows) > limit

    async def _list_bounded(
        self, selection: Selection, after: Place | None, limit: int, bounds: PageBounds
    ) -> tuple[Sequence[Row], bool]:
        """Up to `limit + 1` rows, and whether there are fewer because more would be too large."""
        kind, values = (*self._kind(selection), bounds), self._parameters(selection)
        statement = self._page(*kind)
        rows = await fetch(statement, after=_place(selection, after), limit=limit + 1, **values)
        if self._large is None or not rows or len(rows) > limit:
            return rows, False
        if statement.tells_more:
            return rows, rows[-1]["_is_followed"]
        if len(rows) != bounds.short:
            return rows, False
        # Either this is the end, or more rows would be too large.
        follows = self._page(*kind, ids_only=True)
        return rows, bool(await fetch(follows, after=rows[-1]["id"], limit=1, **values))

    async def _list_sorted(
        self, selection: Selection, after: Place | None, limit: int
    ) -> tuple[Sequence[Row], bool]:
        places = {} if after is None else {f"after_{n}": one for n, one in enumerate(after)}
        by_text, follows = bool(selection.q), after is not None
        statement = self._sorted_page(selection.order, self._kinds(selection), by_text, follows)
        values = {**self._parameters(selection), **places}
        rows = await fetch(statement, limit=limit + 1, **values)
        return rows[:limit], len(rows) > limit

    async def list_short(
        self, selection: Selection, after: Place | None, limit: int
    ) -> tuple[Sequence[Row], bool] | None:
        """Like `list_page`; None if the texts may be large."""
        if selection.order:
            return await self._list_sorted(selection, after, limit)
        rows, is_cut = await self._list_bounded(selection, after, limit, _SHORT_BOUNDS)
        return None if is_cut else (rows[:limit], len(rows) > limit)

    async def list_pages(
        self, selection: Selection, pages: Sequence[tuple[int | None, int]]
    ) -> Sequence[tuple[Sequence[Row], bool] | None]:
        """Like `list_page`, for several `after` and `limit` of shared pages, in one statement.

        None for a page that is too long, and has to be read alone.
        """
        statement = self._pages(selection.descending, self._kinds(selection))
        if len(pages) == 1 or statement is None:
            return [await self.list_short(selection, *page) for page in pages]
        afters = [_place(selection, after) for after, _ in pages]
        limits = [limit + 1 for _, limit in pages]
        found: list[list[Row] | None] = [[] for _ in pages]
        owner = selection.owner
        for row in await fetch(statement, afters=afters, limits=limits, owner=owner):
            place = row["page"] - 1
            if row["id"] is not None:
                found[place].append(row)
            elif _is_behind(selection, row["last"], afters[place]):
                found[place] = None
        return [
            None if rows is None else (rows[:limit], len(rows) > limit)
            for rows, (_, limit) in zip(found, pages, strict=True)
        ]

    async def count(self, selection: Selection) -> int:
        """The number of the selection's rows."""
        statement = self._count(self._kinds(selection), bool(selection.q))
        (row,) = await fetch(statement, **self._parameters(selection))
        return int(row["total"])

    async def get(self, ids: Iterable[int], owner: int | None = None) -> dict[int, Row]:
        """The existing rows with these ids, by id."""
        found = list(ids)
        if len(found) == 1:
            rows = await fetch(self._by_id, row_id=found[0], owner=owner)
        else:
            rows = await fetch(self._by_ids, ids=found, owner=owner)
        return {row["id"]: row for row in rows}

    def owned(self, values: Mapping[str, Any], owner: int | None) -> Mapping[str, Any]:
        """The values of a row, with its owner if it has one."""
        return {**values, self._owner_name: owner} if self._owner_name else values

    def created(self, values: Mapping[str, Any], user: int | None) -> Mapping[str, Any]:
        """The values of a new row, with who creates it if that is recorded."""
        return {**values, self._records: user} if self._records else values

    async def insert(self, new: Sequence[Mapping[str, Any]], run: Run = fetch) -> Sequence[Row]:
        """Stores all or none. Returns the rows with ids, which ascend in the given order."""
        is_large = sum(map(self.size, new)) > LARGE * min(len(new), MAX_MEDIUM)
        statement = _by_size(self._insert, is_large)
        times = dict.fromkeys(self._times, int(time())) if self._times else {}
        rows = await run(statement, rows=[{**self._folded(values), **times} for values in new])
        return sorted(rows, key=lambda row: row["id"])

    async def update(
        self,
        row_id: int,
        changes: Mapping[str, Any],
        old: Row | None = None,
        owner: int | None = None,
    ) -> Row | None:
        """Updates a row; None if there is no such row, or it differs from `old`."""
        changes = self._folded(changes)
        if changes and self._is_updated:
            changes["updated_at"] = int(time())
        values = {f"new_{name}": value for name, value in changes.items()}
        statement = self._update(tuple(changes), old is not None)
        statement = _by_size(statement, self.size(changes) > LARGE)
        rows = await fetch(statement, row_id=row_id, owner=owner, **values, **self._old(old))
        return rows[0] if rows else None

    async def delete(self, row_id: int, old: Row | None = None, owner: int | None = None) -> bool:
        """Deletes a row; False if there is no such row, or it differs from `old`."""
        statement = self._delete[old is not None]
        return bool(await fetch(statement, row_id=row_id, owner=owner, **self._old(old)))

    def _old(self, old: Row | None) -> dict[str, Any]:
        return {} if old is None else {f"old_{name}": old[name] for name in self._changing}


def place_of(row: Row, selection: Selection) -> Place:
    """Where a row stands in the order of a selection."""
    if not selection.order:
        return int(row["id"])
    return tuple(row[name] for name, _ in selection.order)


def _by_size(write: Operation, is_large: bool) -> Operation:
    return write._replace(lane="large_write") if is_large else write


def _is_behind(selection: Selection, row_id: int | None, after: int) -> bool:
    """Whether a row comes after an id in the order of a selection."""
    if row_id is None:
        return False
    return row_id < after if selection.descending else row_id > after


def _place(selection: Selection, after: int | None) -> int:
    """The id after which a page begins."""
    if after is None:
        return MAX_ID + 1 if selection.descending else 0
    return after
