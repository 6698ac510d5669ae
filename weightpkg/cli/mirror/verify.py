"""`weightpkg mirror verify`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import make_progress, print_json
from weightpkg.mirror.directory import Mirror, verify


@click.command("verify")
@click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Check offline that a mirror has what it says, and nothing else.

    Every file is hashed; whatever is missing, damaged, writable by others or not on its list is
    named, and the exit code is 1 then.
    """
    problems = verify(Mirror(directory), make_progress(quiet=ctx.obj))
    if as_json:
        print_json([dict(zip(("kind", "what"), p.split(": ", 1), strict=True)) for p in problems])
    else:
        click.echo("\n".join(problems) or "everything is here, and as it should be")
    if problems:
        click.echo("hint: `weightpkg mirror create` makes good what is bad", err=True)
        ctx.exit(1)
