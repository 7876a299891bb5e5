"""Compiles each statement once, at its first use. encode/databases would do so at every call."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from service.database.operations import Lane


class Compiled(NamedTuple):
    """SQL and what a dialect needs to run it. `names` are the parameters in order."""

    sql: str
    names: list[str]
    constants: dict[str, Any]
    parameters: dict[str, TypeEngine[Any]]
    columns: dict[str, TypeEngine[Any]]


def compile_statement(statement: ClauseElement, dialect: Dialect) -> Compiled:
    """Compiles for a SQLAlchemy dialect with positional parameters."""
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    return Compiled(
        compiled.string,
        list(compiled.positiontup or []),
        dict(compiled.params),
        {name: bind.type for name, bind in compiled.binds.items()},
        {column.keyname: column.type for column in compiled._result_columns},
    )


def compile_later(statement: ClauseElement, dialect: Dialect) -> Callable[[], Compiled]:
    """A function that compiles the statement at its first call, and then gives the same again."""
    source = [statement]

    @cache
    def compiled() -> Compiled:
        found = compile_statement(source[0], dialect)
        # SQLAlchemy's objects are larger than what was made of them.
        source.clear()
        return found

    return compiled


def lane_of(statement: ClauseElement) -> Lane:
    return "write" if isinstance(statement, UpdateBase) else "read"
