"""Compiles each statement once. encode/databases would compile it at every call."""

from typing import Any, NamedTuple

from sqlalchemy import ClauseElement
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from service.database.operations import Lane


class Compiled(NamedTuple):
    """SQL and what a dialect needs to run it. `names` are the parameters in order."""

    sql: str
    names: list[str]
    constants: dict[str, Any]
    lane: Lane
    parameters: dict[str, TypeEngine[Any]]
    columns: dict[str, TypeEngine[Any]]


def compile_statement(statement: ClauseElement, dialect: Dialect) -> Compiled:
    """Compiles for a SQLAlchemy dialect with positional parameters."""
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    writes = compiled.isinsert or compiled.isupdate or compiled.isdelete
    return Compiled(
        compiled.string,
        list(compiled.positiontup or []),
        dict(compiled.params),
        "write" if writes else "read",
        {name: bind.type for name, bind in compiled.binds.items()},
        {column.keyname: column.type for column in compiled._result_columns},
    )
