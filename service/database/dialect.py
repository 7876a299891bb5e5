"""What each database has to do, and the one that DATABASE_URL names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import ClauseElement, Column, ColumnElement, Select, Table

from service import settings
from service.database.operations import Connections, Operation


class Dialect(Protocol):
    """The operations that differ from database to database; each is made once, at import."""

    # The database is away, full, slow, refusing or not migrated. Everything else is a defect of
    # this service and stays an error 500.
    UNAVAILABLE: tuple[type[Exception], ...]
    # The connection was lost, as after a restart of the server. The statement may have run.
    CONNECTION_LOST: tuple[type[Exception], ...]
    # The statement has surely not run, as its connection is out of date.
    OUT_OF_DATE: tuple[type[Exception], ...]
    # The statement that begins a transaction which will write.
    BEGIN: str

    def is_not_migrated(self, error: BaseException | None) -> bool:
        """Whether the error says that a table or a column is missing."""

    def file(self) -> Path | None:
        """The file that is the database; None for a server."""

    def connections(self) -> Connections:
        """New connections, none of which is open yet."""

    async def roll_back(self, raw: Any, error: BaseException) -> None:
        """Ends a transaction that has failed, if its connection will be used again."""

    def prepare(self, statement: ClauseElement, searches: bool = False) -> Operation:
        """A single statement, compiled now. encode/databases compiles at every call.

        `searches` is for a statement whose best plan depends on its parameters, and which may read
        every row. It is planned at each call, and leaves connections to the others.
        """

    def insert_many(
        self, table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
    ) -> Operation:
        """Inserts `rows`, any number of mappings with these names, and gives the columns of each.

        The ids rise in the order of `rows`; the rows that it gives are in any order.
        """

    def insert_or_replace(
        self,
        table: Table,
        values: Mapping[str, Any],
        key: Column[Any],
        columns: Sequence[ColumnElement[Any]],
        replaceable: ColumnElement[bool] | None = None,
    ) -> Operation:
        """Inserts a row, or replaces the one with its key, and gives the columns.

        It leaves a row that isn't `replaceable`, and gives nothing. It waits for a transaction
        that has just written a row with the same key.
        """

    def update(
        self,
        table: Table,
        values: Mapping[str, Any],
        row: ColumnElement[bool],
        columns: Sequence[ColumnElement[Any]],
        *conditions: ColumnElement[bool],
    ) -> Operation:
        """Updates one row, if it meets the conditions, and gives its columns; nothing otherwise."""

    def delete(self, table: Table, *where: ColumnElement[bool]) -> Operation:
        """Deletes rows, and gives a row for each."""

    def page(
        self,
        query: Select[Any],
        large: Column[Any],
        short: int,
        max_bytes: int,
        searches: bool,
    ) -> Operation:
        """The first :limit rows of a query.

        There are `short` rows at most, if the `large` columns of :limit rows would have more
        than `max_bytes`.
        """

    def is_one_of(self, column: Column[Any], name: str) -> ColumnElement[bool]:
        """Whether the column has one of the values in the list that the parameter is."""

    def contains(self, text: Column[Any], folded: Column[Any], name: str) -> ColumnElement[bool]:
        """Whether a text contains the parameter, which is folded, without regard to case.

        `folded` has the folded text; NULL where the text is ASCII.
        """

    def shown(self, column: Column[Any]) -> ColumnElement[Any]:
        """A column to select, whose values every client can be shown."""

    def compared(self, column: Column[Any]) -> ColumnElement[Any]:
        """A column to compare with a value that was shown."""


def _load() -> Dialect:
    if settings.DATABASE_URL.startswith("sqlite"):
        from service.database import sqlite

        return sqlite
    from service.database import postgresql

    return postgresql


dialect = _load()
