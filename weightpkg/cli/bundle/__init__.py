"""`weightpkg bundle`: a table of commands, each imported when it is used."""

from __future__ import annotations

import click

from weightpkg.cli.table import Commands

TABLE = {
    "create": "Write all that lockfiles need into one file.",
    "verify": "Check every byte of a bundle.",
    "import": "Have here what a bundle has.",
}
"""Each command is `command` in the module of its name."""


@click.command("bundle", cls=Commands, table=TABLE, package=__name__)
def command() -> None:
    """Carry all that lockfiles need in one file."""
