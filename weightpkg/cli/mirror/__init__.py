"""`weightpkg mirror`: a table of commands, each imported when it is used."""

from __future__ import annotations

import click

from weightpkg.cli.table import Commands

TABLE: dict[str, str] = {}
"""Each command is `command` in the module of its name."""


@click.command("mirror", cls=Commands, table=TABLE, package=__name__)
def command() -> None:
    """Make, check and use a directory that has all that lockfiles need."""
