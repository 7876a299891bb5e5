"""Commands for operators: `python -m service --help`."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from service.database.connections import connected
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.users import queries
from service.users.schemas import MAX_USERNAME, user_out

Result = TypeVar("Result")


@click.group()
def main() -> None:
    """Operate the notes service on the database of DATABASE_URL."""


@main.group("users")
def users_group() -> None:
    """Manage the users for ACCESS=token."""


def check_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The username in lower case."""
    username = queries.normalize(value)
    if username is None:
        limits = f"1 to {MAX_USERNAME} of a-z, 0-9, dot, underscore and hyphen"
        raise click.BadParameter(f"{value!r} is no username: {limits}.")
    return username


name_argument = click.argument("name", callback=check_name)


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


def show(token: str, name: str) -> None:
    try:
        click.echo(token)
    except OSError as error:
        # Python flushes the buffer again at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(
            f"{name} has a new token, which could not be printed ({error}): rotate it."
        ) from error


def no_user(name: str) -> click.ClickException:
    return click.ClickException(f"There is no user {name}.")


@users_group.command()
@name_argument
def add(name: str) -> None:
    """Add a user, and print the token. It can't be shown again."""
    token = queries.new_token()
    if run(queries.add_user, name, token) is None:
        raise click.ClickException(f"There is a user {name} already.")
    show(token, name)


@users_group.command("list")
def list_all() -> None:
    """List all users: name, state, and time of creation."""
    for user in user_out.dump(run(queries.list_users), many=True):
        state = "active" if user["is_active"] else "deactivated"
        click.echo(f"{user['username']}\t{state}\t{user['created_at']}")


@users_group.command()
@name_argument
def deactivate(name: str) -> None:
    """Refuse a user, after at most ACCESS_CACHE_SECONDS. The token is kept."""
    if run(queries.set_active, name, False) is None:
        raise no_user(name)


@users_group.command()
@name_argument
def activate(name: str) -> None:
    """Accept a user again, with the same token."""
    if run(queries.set_active, name, True) is None:
        raise no_user(name)


@users_group.command()
@name_argument
def rotate(name: str) -> None:
    """Give a user a new token, and print it. The old token becomes invalid."""
    token = queries.new_token()
    if run(queries.set_token, name, token) is None:
        raise no_user(name)
    show(token, name)


@users_group.command()
@name_argument
def remove(name: str) -> None:
    """Remove a user permanently, after at most ACCESS_CACHE_SECONDS. The notes stay."""
    if not run(queries.remove_user, name):
        raise no_user(name)


if __name__ == "__main__":
    main(prog_name="python -m service")
