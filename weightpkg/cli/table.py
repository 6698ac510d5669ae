"""A group of commands, each imported when it is used: `--help` of hundreds costs what one does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class Commands(click.Group):
    """A table as a group: names and what they do; each is `command` in the module of its name."""

    def __init__(self, *, table: Mapping[str, str], package: str, **attributes: Any) -> None:
        """Make a group; `attributes` are those of click's.

        Args:
            table: each command's name and its line in the list; `-` in a name is `_` in its module's.
            package: the package that has the modules.
            attributes: as `click.Group` takes them.
        """
        super().__init__(**attributes)
        self._table = table
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names, in the table's order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        """Import a command."""
        if cmd_name not in self._table:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._table.items()))
