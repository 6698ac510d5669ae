"""`weightpkg completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from weightpkg.cli import cli


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    For bash: eval "$(weightpkg completion bash)"
    """
    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101  click has these three
    click.echo(completion(cli, {}, "weightpkg", "_WEIGHTPKG_COMPLETE").source())
