"""`weightpkg bundle verify`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.mirror.bundle import verify_bundle


@click.command("verify")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--json", "as_json", is_flag=True, help="Print what it has as JSON.")
@click.pass_obj
def command(quiet: bool, /, paths: tuple[Path, ...], as_json: bool) -> None:
    """Check every byte of a bundle.

    FILE are all its volumes, if it has several. Nothing is unpacked.
    """
    bundle = verify_bundle(paths, make_progress(quiet=quiet))
    size = sum(entry.size for entry in bundle.contents.files.values())
    if as_json:
        base = bundle.listing.base
        print_json(
            {
                "digest": str(bundle.digest),
                "base": str(base) if base else None,
                "needs": [need.name for need in bundle.contents.needs],
                "files": len(bundle.contents.files),
                "carried": len(bundle.carried),
                "size": size,
            }
        )
        return
    what = f"{len(bundle.contents.files)} files, {format_size(size)}"
    click.echo(f"{bundle.name}: complete, and as it was written: {what}")
