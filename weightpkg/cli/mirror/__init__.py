"""`weightpkg mirror`: a table of commands, each imported when it is used."""

from __future__ import annotations

import click

from weightpkg.cli.table import Commands

TABLE = {
    "create": "Have all that lockfiles or names need in a directory.",
    "verify": "Check offline that a mirror has what it says, and nothing else.",
    "prune": "Remove from a mirror what nothing in it needs.",
    "serve": "Serve a mirror over HTTP, also to other tools' clients.",
}
"""Each command is `command` in the module of its name."""


@click.command("mirror", cls=Commands, table=TABLE, package=__name__)
def command() -> None:
    """Make, check and use a directory that has all that lockfiles need."""
