"""The commands: `python -m service --help`."""

import http.client
import importlib
import json

import click

# The modules of groups of commands, by the groups' names.
GROUPS: dict[str, str] = {
    "live": "service.live_commands",
    "tokens": "service.users.commands",
    "users": "service.users.commands",
}
# A request of the service ends earlier.
TIMEOUT = 30


class Commands(click.Group):
    """Imports a group when it is used: a health check runs often, and needs no database."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *GROUPS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS:
            return super().get_command(ctx, cmd_name)
        group: click.Group = getattr(importlib.import_module(GROUPS[cmd_name]), f"{cmd_name}_group")
        return group


@click.group(cls=Commands)
def main() -> None:
    """Operate the notes service."""


@main.command()
@click.option("--live", is_flag=True, help="Ask /health/live, which doesn't use the database.")
@click.option("--port", envvar="PORT", default=8000, show_default="PORT, or 8000")
def health(live: bool, port: int) -> None:
    """Ask the service on this machine whether it is ready; if not, fail with the reason."""
    try:
        status, answer = ask(port, "/health/live" if live else "/health/ready")
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = f"Nothing on port {port} answers: {error or type(error).__name__}"
        raise click.ClickException(message) from error
    if status != 200:
        raise click.ClickException(str(answer.get("detail", status)))
    click.echo(answer["status"])


def ask(port: int, path: str) -> tuple[int, dict[str, str]]:
    """The status and the JSON of the answer. OSError, HTTPException or ValueError without them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("not a health check")
    return response.status, answer


if __name__ == "__main__":
    main(prog_name="python -m service")
