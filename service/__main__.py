"""Commands for operators: `python -m service --help`."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import click

from service.database.connections import connected
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.settings import ACCESS_CACHE_SECONDS
from service.tables import Row
from service.users import owned, queries
from service.users.schemas import MAX_USERNAME, user_out

Result = TypeVar("Result")


@click.group()
def main() -> None:
    """Operate the notes service on the database of DATABASE_URL."""


@main.group("users")
def users_group() -> None:
    """Manage the users for ACCESS=token and private."""


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


async def find_user(name: str) -> Row:
    user = await queries.get_user(name)
    if user is None:
        raise no_user(name)
    return user


def told(counts: Mapping[str, int]) -> str:
    """How many rows of each table, such as `notes: 3`."""
    return ", ".join(f"{table}: {count}" for table, count in counts.items())


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
def adopt(name: str) -> None:
    """Give a user the notes that have no owner, and print their number."""
    counts = run(adopt_all, name)
    click.echo(told(counts))


async def adopt_all(name: str) -> dict[str, int]:
    return await owned.adopt((await find_user(name))["id"])


@users_group.command()
@name_argument
@click.option("--with-notes", is_flag=True, help="Remove the user's notes, too.")
@click.option("--to", "heir", metavar="NAME", help="Give the user's notes to another user.")
def remove(name: str, with_notes: bool, heir: str | None) -> None:
    """Remove a user permanently, after at most ACCESS_CACHE_SECONDS."""
    if heir is not None and (with_notes or queries.normalize(heir) == name):
        raise click.UsageError("--to needs another user, and no --with-notes.")
    run(remove_user, name, with_notes, heir)


async def remove_user(name: str, with_notes: bool, heir: str | None) -> None:
    """Removes a user, and what the user owns or gives it to an heir.

    First the user is deactivated. After ACCESS_CACHE_SECONDS no process takes the token any more,
    so nothing is added while the rows go. The user goes last: what was interrupted can be repeated.
    What a request stores that began before is without an owner then, for `adopt`.
    """
    user = await find_user(name)
    new_owner = None if heir is None else (await find_user(heir))["id"]
    counts = await owned.count_owned(user["id"])
    if counts and not (with_notes or heir):
        raise click.ClickException(
            f"{name} has {told(counts)}. Give them to another user with --to NAME, or remove them"
            " with --with-notes."
        )
    if with_notes or heir:
        await queries.set_active(name, False)
        if ACCESS_CACHE_SECONDS:
            wait = f"Waiting {ACCESS_CACHE_SECONDS:g} s, until no process takes {name}'s token."
            click.echo(wait, err=True)
        await asyncio.sleep(ACCESS_CACHE_SECONDS)
        try:
            await owned.give_owned(user["id"], new_owner)
        except dialect.CONFLICT as error:
            left = told(await owned.count_owned(user["id"]))
            raise click.ClickException(
                f"{name} is deactivated and still has {left}. One of them has a unique value that"
                " another has, or others refer to it."
            ) from error
    await queries.remove_user(name)


if __name__ == "__main__":
    main(prog_name="python -m service")
