"""`weightpkg uninstall`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, make_progress
from weightpkg.reference import matching
from weightpkg.retention import uninstall
from weightpkg.settings import Settings


@click.command("uninstall")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.pass_obj
def command(quiet: bool, names: tuple[str, ...], dry_run: bool) -> None:
    """Remove installed models.

    NAME is as `weightpkg list` prints it, or the source that was asked for; without a variant, all
    variants of the model go.
    """
    store = Settings.from_environment().store()
    progress = make_progress(quiet=quiet)
    records = store.installed()
    doomed = list(dict.fromkeys(r for name in names for r in matching(name, records)))
    would = "would uninstall" if dry_run else "uninstalled"
    freed = None if dry_run else uninstall(store, doomed)
    for record in doomed:
        progress.note(f"{would} {record}")
    if freed is not None:
        progress.note(f"{format_size(freed)} freed")
    elif not dry_run:
        progress.note("the store is in use just now: `weightpkg gc` frees the space later")
