"""`weightpkg index publish`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress
from weightpkg.cli.desk import directory_option, now, open_workspace


@click.command("publish")
@click.argument("output", type=click.Path(path_type=Path))
@directory_option
@click.option(
    "--leave-waiting",
    is_flag=True,
    help="Publish what is complete, though other changes wait for signatures.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, say what would be written, and write nothing.",
)
@click.pass_obj
def command(quiet: bool, output: Path, directory: Path, leave_waiting: bool, dry_run: bool) -> None:
    """Write the signed index into OUTPUT, as static files.

    All of it is checked first as a client would. New files come first, timestamp.json last, and
    nothing that is there is changed: publish into the directory that the web server has, or copy it
    there, timestamp.json last.
    """
    from weightpkg.signing.publishing import publish

    workspace = open_workspace(directory)
    with workspace.locked(), make_progress(quiet=quiet).task("checking pages", None) as advance:
        done = publish(
            workspace, output, now(), leave_waiting=leave_waiting, is_dry=dry_run, advance=advance
        )
    if dry_run:
        for path in done.new:
            click.echo(path)
    would = "would write" if dry_run else "wrote"
    click.echo(
        f"{would} {len(done.new)} files, {format_size(done.size)}; timestamp {done.version}",
        err=True,
    )
