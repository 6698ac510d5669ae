"""`weightpkg index lint`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.errors import DocumentError
from weightpkg.index import Index
from weightpkg.settings import Settings


@click.command("lint")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.pass_context
def command(ctx: click.Context, directory: Path | None) -> None:
    """Check every rule of docs/index.md; say page and key of every fault.

    DIRECTORY is an index; without it, the one in use is checked.
    """
    index = Index(directory) if directory else Settings.from_environment().index()
    pages = len(index.names())
    faults = index.lint()
    for fault in faults:
        click.echo(fault.message)
    for warning in index.warnings() if not faults else ():
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{pages} pages, {len(faults)} faults", err=True)
    ctx.exit(DocumentError.exit_code if faults else 0)
