"""The operations that each database provides, and the dialect for DATABASE_URL."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import ClauseElement, Column, ColumnElement, Select, Table

from service import settings
from service.database.operations import Connections, Operation, PageBounds


class Dialect(Protocol):
    """The operations that differ between databases. Each is compiled at its first use."""

    # The database is down, full, slow, refuses or is not migrated: 503. Any other error is a
    # defect of this service: 500.
    UNAVAILABLE: tuple[type[Exception], ...]
    # The connection is lost, for example by a restart of the server. The statement may have run.
    CONNECTION_LOST: tuple[type[Exception], ...]
    # The connection is out of date, so the statement did not run.
    OUT_OF_DATE: tuple[type[Exception], ...]
    # Those of them where the server ended a transaction for the sake of another one.
    DEADLOCK: tuple[type[Exception], ...]
    # The database refuses the values of a statement, of which nothing is stored. Those of CONFLICT
    # break a constraint: 409.
    REJECTED: tuple[type[Exception], ...]
    CONFLICT: tuple[type[Exception], ...]
    # The statement that begins a transaction with writes.
    BEGIN: str

    def state(self, error: BaseException | None) -> str:
        """What the error says of the database, such as "is not migrated" or "is unavailable"."""

    def file(self) -> Path | None:
        """The database file; None for a server."""

    def connections(self) -> Connections:
        """New connections, not open yet."""

    async def roll_back(self, raw: Any, error: BaseException) -> None:
        """Rolls back a failed transaction, unless its connection is closed anyway."""

    def prepare(self, statement: ClauseElement, searches: bool = False) -> Operation:
        """One statement, compiled at its first use.

        `searches` marks a statement that may read every row and whose best plan depends on its
        parameters. It is planned at each call, in a lane of its own.
        """

    def is_owners(self, column: Column[Any], name: str) -> ColumnElement[bool]:
        """Whether the column has the value of a parameter, which may be that of all rows or few.

        It is found in an index of the column. The plan is the same for each value.
        """

    def prepare_on_writable(self, query: Select[Any], tables: Sequence[Table]) -> Operation:
        """One query, which fails where a write to these tables would. It changes nothing.

        It doesn't fail on a server that takes no writes if DATABASE_URL asks for such a server.
        """

    def insert_many(
        self, table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
    ) -> Operation:
        """Inserts the parameter `rows`, a list of mappings with these names.

        Returns the columns of the new rows, in any order. The ids ascend in the order of `rows`.
        """

    def insert_or_replace(
        self,
        table: Table,
        values: Mapping[str, Any],
        key: Column[Any],
        columns: Sequence[ColumnElement[Any]],
        replaceable: ColumnElement[bool] | None = None,
    ) -> Operation:
        """Inserts a row, or replaces the row with the same key. Returns its columns.

        Returns no row, and changes nothing, if the existing row isn't `replaceable`. Waits for a
        concurrent transaction that wrote the same key.
        """

    def update(
        self,
        table: Table,
        values: Mapping[str, Any],
        row: ColumnElement[bool],
        columns: Sequence[ColumnElement[Any]],
        *conditions: ColumnElement[bool],
    ) -> Operation:
        """Updates one row if it meets the conditions. Returns its columns, or no row."""

    def delete(self, table: Table, *where: ColumnElement[bool]) -> Operation:
        """Deletes rows. Returns one row for each."""

    def page(
        self,
        query: Select[Any],
        key: Column[Any],
        large: Column[Any] | None,
        bounds: PageBounds,
        descending: bool,
        searches: bool,
    ) -> Operation:
        """The :limit rows of a query behind the key :after, in the order of the key.

        Returns fewer rows if the values of the column `large` in these rows exceed the bounds.
        None if no values are large.
        """

    def sorted_page(
        self,
        query: Select[Any],
        order: Sequence[tuple[Column[Any], bool]],
        follows: bool,
        searches: bool,
    ) -> Operation:
        """The :limit rows of a query in the order of columns, each with whether it descends.

        No column is NULL, and all together are unique. With `follows` the rows are those behind the
        row with the values :after_0, :after_1, ...
        """

    def pages(
        self,
        query: Select[Any],
        key: Column[Any],
        large: Column[Any] | None,
        bounds: PageBounds,
        descending: bool,
    ) -> Operation | None:
        """Several pages in one statement, for the parameters `afters` and `limits`, two lists.

        The rows have a further column `page`, the number of their page from 1. Their order is that
        of the pages. A page without rows may have a row whose key is None, and whose column `last`
        is the key of the last row of all. If that is behind the page's `after`, the page is too
        long, and has to be read alone. None if the database can't.
        """

    def is_one_of(self, column: Column[Any], name: str) -> ColumnElement[bool]:
        """Whether the column's value is in the parameter, a list."""

    def contains(
        self, text: Column[Any], folded: Column[Any], name: str, indexed: bool = True
    ) -> ColumnElement[bool]:
        """Whether a text contains the parameter, ignoring case.

        The parameter is case-folded. `folded` holds the case-folded text, or NULL for ASCII. With
        `indexed` an index of the texts of all rows may be used.
        """

    def shown(self, column: Column[Any]) -> ColumnElement[Any]:
        """The column to select, with values that JSON can represent."""

    def compared(self, column: Column[Any]) -> ColumnElement[Any]:
        """The column to compare with a value from `shown`."""


def _load() -> Dialect:
    if settings.DATABASE_URL.startswith("sqlite"):
        from service.database import sqlite

        return sqlite
    if settings.DATABASE_URL.startswith("mysql"):
        from service.database import mysql

        return mysql
    from service.database import postgresql

    return postgresql


dialect = _load()
