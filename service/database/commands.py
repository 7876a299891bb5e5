"""Runs what an operator's command does on the database."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from service.database.connections import connected
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable

Result = TypeVar("Result")


def run(action: Callable[..., Awaitable[Result]], *arguments: object) -> Result:
    """Runs an action on the database, and returns its result. An error ends the command."""

    file = dialect.file()
    if file is not None and not file.exists():
        # SQLite would create an empty file.
        raise click.ClickException(f"There is no file {file}.")

    async def run_connected() -> Result:
        async with connected():
            return await action(*arguments)

    try:
        return asyncio.run(run_connected())
    except DatabaseUnavailable as error:
        raise click.ClickException(error.reason()) from error
    except sqlite3.DatabaseError as error:
        raise click.ClickException(f"The database can't be used: {error}") from error
