"""`weightpkg mirror prune`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.mirror.directory import Mirror, plan_prune, prune


@click.command("prune")
@click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--drop",
    multiple=True,
    metavar="LOCK|NAME",
    help="Need this no more: a lockfile, the first digits of its digest, or a name.",
)
@click.option("--dry-run", is_flag=True, help="Print what would go, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool, /, directory: Path, drop: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Remove from a mirror what nothing in it needs.

    What it is for is what it was made for, lockfile by lockfile, less what --drop names.
    """
    mirror, dropped = Mirror(directory), [_digest_of(text) for text in drop]
    if dry_run:
        _, doomed = plan_prune(mirror, dropped)
        freed = sum((directory / name).stat().st_size for name in doomed)
    else:
        doomed, freed = prune(mirror, dropped, make_progress(quiet=quiet))
    if as_json:
        print_json({"removed": doomed, "freed": freed})
    elif doomed:
        click.echo("\n".join(doomed))
    what = "would go" if dry_run else "removed"
    click.echo(f"{len(doomed)} files {what}, {format_size(freed)}", err=True)


def _digest_of(text: str) -> str:
    """What a lockfile is called in a mirror: the digest of its bytes; anything else is a name."""
    path = Path(text)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else text
