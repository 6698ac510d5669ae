"""`weightpkg index`: a table of commands, each imported when it is used."""

from __future__ import annotations

import click

from weightpkg.cli.table import Commands

TABLE = {
    "lint": "Check every rule of docs/index.md; say page and key of every fault.",
}
"""Each command is `command` in the module of its name."""


@click.command("index", cls=Commands, table=TABLE, package=__name__)
def command() -> None:
    """Work on an index."""
