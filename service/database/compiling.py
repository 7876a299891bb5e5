"""Compiles each statement once, at its first use. encode/databases would do so at every call."""

from functools import cached_property
from typing import Any

from sqlalchemy import ClauseElement
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from service.database.operations import Lane


class Statement:
    """SQL and what a dialect of SQLAlchemy with positional parameters needs to run it."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        self._statement = statement
        self._dialect = dialect
        self.lane: Lane = "write" if isinstance(statement, UpdateBase) else "read"

    @cached_property
    def _compiled(self) -> SQLCompiler:
        compiled = self._statement.compile(dialect=self._dialect)
        assert isinstance(compiled, SQLCompiler)
        return compiled

    @cached_property
    def sql(self) -> str:
        return self._compiled.string

    @cached_property
    def names(self) -> list[str]:
        """The parameters in order."""
        return list(self._compiled.positiontup or [])

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The parameters whose values are part of the statement; None for the others."""
        return dict(self._compiled.params)

    @cached_property
    def parameters(self) -> dict[str, TypeEngine[Any]]:
        return {name: bind.type for name, bind in self._compiled.binds.items()}

    @cached_property
    def columns(self) -> dict[str, TypeEngine[Any]]:
        return {column.keyname: column.type for column in self._compiled._result_columns}

    def text(self) -> str:
        return self.sql
