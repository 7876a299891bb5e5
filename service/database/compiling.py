"""Compiles each statement once, at its first use. encode/databases would do so at every call."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ClauseElement
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from service.database.operations import Lane

Made = TypeVar("Made")


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


def compile_later(
    statement: ClauseElement, dialect: Dialect, make: Callable[[Compiled], Made]
) -> Callable[[], Made]:
    """A function that gives what `make` makes of the compiled statement. The first call makes it.

    Only that is kept then: SQLAlchemy's objects are larger. Errors of the statement come at the
    first call.
    """
    kept: ClauseElement | Made = statement

    def get() -> Made:
        nonlocal kept
        # Another thread may change it meanwhile.
        found = kept
        if isinstance(found, ClauseElement):
            kept = found = make(compile_statement(found, dialect))
        return found

    return get


def lane_of(statement: ClauseElement) -> Lane:
    return "write" if isinstance(statement, UpdateBase) else "read"
