"""`weightpkg bundle import`."""  # noqa: N999  the table names modules as commands are called

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.mirror.bundle import import_bundle
from weightpkg.mirror.directory import Mirror
from weightpkg.settings import Settings


@click.command("import")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--into",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Make a mirror of it there, and touch nothing else.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what it brought as JSON.")
@click.pass_obj
def command(quiet: bool, /, paths: tuple[Path, ...], into: Path | None, as_json: bool) -> None:
    """Have here what a bundle has.

    FILE are all its volumes, if it has several. Each member is verified before it has its name; a run that
    was broken off goes on by the same command. `weightpkg sync --frozen` then needs no network.
    """
    settings, progress = Settings.from_environment(), make_progress(quiet=quiet)
    mirror = Mirror(into or settings.imported)
    store = None if into else settings.store()
    contents = import_bundle(paths, mirror, store, progress)
    size = sum(entry.size for entry in contents.files.values())
    if as_json:
        print_json({"into": str(mirror.directory), "needs": [n.name for n in contents.needs]})
    progress.note(f"{mirror.directory}: {len(contents.files)} files, {format_size(size)}")
