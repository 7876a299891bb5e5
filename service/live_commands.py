"""Commands for operators: whether changes of resources are recorded."""

import click

from service.app import RESOURCES
from service.database.commands import run
from service.live import switch
from service.live.sweeping import sweep_all
from service.settings import DATABASE_URL


@click.group("live")
def live_group() -> None:
    """Record the changes of resources, for LIVE=1."""
    if DATABASE_URL.startswith("mysql"):
        raise click.ClickException("Changes can be recorded on PostgreSQL and SQLite alone.")


@live_group.command()
def on() -> None:
    """Record changes from now on, by triggers. Run it again after each upgrade."""
    for watched in [one for resource in RESOURCES for one in resource.watched]:
        is_new = run(switch.turn_on, watched)
        click.echo(f"{watched.table}: {'on' if is_new else 'was on already'}")


@live_group.command()
def off() -> None:
    """Remove the triggers, and all recorded changes."""
    for watched in [one for resource in RESOURCES for one in resource.watched]:
        run(switch.turn_off, watched.table)
        click.echo(f"{watched.table}: off")


@live_group.command()
def sweep() -> None:
    """Delete changes of more than a day ago. Services with LIVE=1 do it themselves."""
    run(sweep_all)
