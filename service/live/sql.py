"""The SQL of the database of DATABASE_URL. Other databases than these two record no changes."""

from collections.abc import Sequence
from typing import Protocol

from service import settings
from service.live.watched import Watched


class SQL(Protocol):
    """What differs between databases: parts of statements, and whole ones."""

    # Where the changes are. After a restore it is another place, or the changes have another order.
    PLACE: str
    # What a statement sees, as `read_snapshot` reads it.
    SNAPSHOT: str
    IS_STANDBY: str
    # The number of a change in the order of snapshots.
    ORDER: str
    # The number of the first change that a snapshot (:end, :open) doesn't see.
    FIRST: str
    # Whether it doesn't see a change, and another one (:until_end, :until_open) does.
    UNSEEN: str
    # Whether all triggers of the table :resource are there.
    TRIGGERS: str
    # A statement after which nothing takes back what was read before; None if nothing does anyway.
    CONFIRM: str | None
    # The schema of the tables.
    SCHEMA: str
    # Statements before those that change triggers.
    BEGIN: Sequence[str]
    # Others use the table.
    LOCKED: tuple[type[Exception], ...]

    def turn_on(self, watched: Watched, schema: str) -> list[str]:
        """The statements that make the triggers of a table."""

    def turn_off(self, table: str) -> list[str]:
        """The statements that remove the triggers of a table."""


def _load() -> SQL:
    if settings.DATABASE_URL.startswith("sqlite"):
        from service.live import sqlite

        return sqlite
    from service.live import postgresql

    return postgresql


sql = _load()
