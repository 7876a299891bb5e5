"""Commands for operators: users and their tokens."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping

import click

from service import settings
from service.database.commands import run
from service.database.dialect import dialect
from service.settings import ACCESS_CACHE_SECONDS
from service.tables import Row
from service.users import owned, queries
from service.users.schemas import MAX_USERNAME, token_out, user_out

UNITS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


@click.group("users")
def users_group() -> None:
    """Manage the users for ACCESS=token and private."""


def check_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The name of a user or a token in lower case."""
    name = queries.normalize(value)
    if name is None:
        limits = f"1 to {MAX_USERNAME} of a-z, 0-9, dot, underscore and hyphen"
        raise click.BadParameter(f"{value!r} is no name: {limits}.")
    return name


def parse_time(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The time from now on, such as `30d`, in seconds since the epoch."""
    if value is None:
        return None
    found = re.fullmatch("([1-9][0-9]{0,4})([hdw])", value, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time such as 12h, 30d or 52w.")
    return int(time.time()) + int(found[1]) * UNITS[found[2]]


name_argument = click.argument("name", callback=check_name)
user_argument = click.argument("user", callback=check_name)


def show(token: str, name: str, advice: str = "rotate it") -> None:
    try:
        click.echo(token)
    except OSError as error:
        # Python flushes the buffer again at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(
            f"{name} has a new token, which could not be printed ({error}): {advice}."
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
@click.option("--subject", help="The user's name at JWT_ISSUER, instead of a token: the claim sub.")
def add(name: str, subject: str | None) -> None:
    """Add a user, and print the token, named default. It can't be shown again."""
    if subject is not None:
        if not settings.JWT_ISSUER:
            raise click.ClickException("Set JWT_ISSUER to add a user of an identity provider.")
        if not queries.is_subject(subject):
            raise click.ClickException("A subject has 1 to 255 printable characters of ASCII.")
        if not run(queries.add_identified, name, settings.JWT_ISSUER, subject):
            raise click.ClickException(f"There is a user {name}, or one of this subject, already.")
        return
    token = queries.new_token()
    if run(queries.add_user, name, token) is None:
        raise click.ClickException(f"There is a user {name} already.")
    show(token, name)


@users_group.command("list")
def list_all() -> None:
    """List all users: name, state, time of creation, and the name at the identity provider."""
    for row in run(queries.list_users):
        user = user_out.dump(row)
        state = "active" if user["is_active"] else "deactivated"
        line = f"{user['username']}\t{state}\t{user['created_at']}"
        click.echo(line if row["subject"] is None else f"{line}\t{row['subject']}")


@users_group.command()
@name_argument
def deactivate(name: str) -> None:
    """Refuse a user, after at most ACCESS_CACHE_SECONDS. The tokens are kept."""
    if run(queries.set_active, name, False) is None:
        raise no_user(name)


@users_group.command()
@name_argument
def activate(name: str) -> None:
    """Accept a user again, with the same tokens."""
    if run(queries.set_active, name, True) is None:
        raise no_user(name)


@users_group.command()
@name_argument
def rotate(name: str) -> None:
    """Give a user a new token default, and print it. The old one becomes invalid."""
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
    """Remove a user permanently, with all tokens, after at most ACCESS_CACHE_SECONDS."""
    if heir is not None and (with_notes or queries.normalize(heir) == name):
        raise click.UsageError("--to needs another user, and no --with-notes.")
    run(remove_user, name, with_notes, heir)


async def remove_user(name: str, with_notes: bool, heir: str | None) -> None:
    """Removes a user, and what the user owns or gives it to an heir.

    First the user is deactivated. After ACCESS_CACHE_SECONDS no process takes the tokens any more,
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
            wait = f"Waiting {ACCESS_CACHE_SECONDS:g} s, until no process takes {name}'s tokens."
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


@click.group("tokens")
def tokens_group() -> None:
    """Manage the tokens of a user. The one named default is managed with users."""


@tokens_group.command("add")
@user_argument
@name_argument
@click.option("--expires", callback=parse_time, help="A time such as 12h, 30d or 52w; else never.")
@click.option("--read-only", is_flag=True, help="Refuse all but GET, HEAD and OPTIONS.")
def add_token(user: str, name: str, expires: int | None, read_only: bool) -> None:
    """Give a user one more token, and print it. It can't be shown again."""
    if name == queries.DEFAULT:
        raise click.ClickException(f"To replace the token {name}: users rotate {user}.")
    token = queries.new_token()
    added = run(queries.add_token, user, name, token, expires, read_only)
    if added is None:
        raise no_user(user)
    if not added:
        raise click.ClickException(f"{user} has a token {name} already.")
    show(token, user, f"revoke {name} and add it again")


@tokens_group.command("list")
@user_argument
def list_tokens(user: str) -> None:
    """List a user's tokens: name, rights, time of expiry, and of the last use, to the hour."""
    found = run(queries.list_tokens, user)
    if found is None:
        raise no_user(user)
    for name, token in found:
        shown = token_out.dump(token)
        rights = "read-only" if shown["read_only"] else "read-write"
        end, use = shown["expires_at"] or "never", shown["last_used_at"] or "unused"
        click.echo(f"{name}\t{rights}\t{end}\t{use}")


@tokens_group.command()
@user_argument
@name_argument
def revoke(user: str, name: str) -> None:
    """Refuse a token for good, after at most ACCESS_CACHE_SECONDS."""
    if not run(queries.revoke_token, user, name):
        raise click.ClickException(f"There is no user {user} with a token {name}.")
