"""The options of commands that a mirror can serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from weightpkg.settings import Settings


def mirror_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--mirror` and `--mirror-only`: parameters `mirror` and `mirror_only`."""
    only = click.option(
        "--mirror-only", is_flag=True, help="Ask nothing but the mirror that is set or given."
    )
    where = click.option(
        "--mirror", metavar="URL|DIR", help="Ask this mirror before the canonical sources."
    )
    return where(only(command))


def settings_with(mirror: str | None, *, is_only: bool) -> Settings:
    """Return what the environment says, with a mirror that the command line names.

    Raises:
        UsageError: nothing is to be asked but a mirror, and there is none.
    """
    settings = Settings.from_environment().with_mirror(mirror, is_only=is_only)
    if is_only and settings.mirror() is None:
        raise click.UsageError("--mirror-only needs --mirror, or a mirror in the configuration")
    return settings
