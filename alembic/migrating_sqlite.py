"""Foreign keys of new columns on SQLite, where a table can't get a constraint later.

Alembic's batch mode would copy the table, and lose triggers, indexes of expressions and
AUTOINCREMENT. `env.py` imports this for a file, and Alembic takes the class by its dialect.
"""

from typing import Any

from alembic.ddl.sqlite import SQLiteImpl
from alembic.util import CommandError
from sqlalchemy import Constraint, ForeignKeyConstraint


class Implementation(SQLiteImpl):
    """Adds a foreign key by adding its column again, with the reference."""

    __dialect__ = "sqlite"

    def add_constraint(self, const: Constraint, **options: Any) -> None:
        """Raises CommandError if the column has values, or there are several columns."""
        if not isinstance(const, ForeignKeyConstraint) or self.as_sql:
            super().add_constraint(const, **options)
            return
        name = const.table.name
        if len(const.elements) != 1:
            raise CommandError(f"SQLite: a foreign key of {name} has several columns")
        (element,) = const.elements
        column, referred = element.parent.name, element.column
        assert self.connection is not None
        found = self.connection.exec_driver_sql(f'PRAGMA table_info("{name}")').mappings()
        (old,) = (one for one in found if one["name"] == column)
        if old["notnull"] or old["dflt_value"] is not None:
            raise CommandError(
                f"SQLite: {name}.{column} is NOT NULL or has a default, so it gets no foreign key"
            )
        values = f'SELECT EXISTS (SELECT 1 FROM "{name}" WHERE "{column}" IS NOT NULL)'  # noqa: S608
        if self.connection.exec_driver_sql(values).scalar():
            raise CommandError(f"SQLite: {name}.{column} has values, so it gets no foreign key")
        rules = (("DELETE", const.ondelete), ("UPDATE", const.onupdate))
        actions = "".join(f" ON {event} {action}" for event, action in rules if action)
        indexes = [
            (index, sql)
            for index, sql in self.connection.exec_driver_sql(
                "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (name,)
            ).all()
            if column in self._columns(index)
        ]
        statements = [
            *(f'DROP INDEX "{index}"' for index, _ in indexes),
            f'ALTER TABLE "{name}" DROP COLUMN "{column}"',
            f'ALTER TABLE "{name}" ADD COLUMN "{column}" {old["type"]}'
            f' REFERENCES "{referred.table.name}" ("{referred.name}"){actions}',
            *(sql for _, sql in indexes),
        ]
        for statement in statements:
            self.connection.exec_driver_sql(statement)

    def _columns(self, index: str) -> list[str]:
        assert self.connection is not None
        found = self.connection.exec_driver_sql(f'PRAGMA index_info("{index}")').mappings()
        return [one["name"] for one in found]

    def drop_constraint(self, const: Constraint, **options: Any) -> None:
        """Leaves a foreign key, which goes with its column."""
        if not isinstance(const, ForeignKeyConstraint):
            super().drop_constraint(const, **options)
