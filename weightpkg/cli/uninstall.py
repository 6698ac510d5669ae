"""`weightpkg uninstall`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, make_progress
from weightpkg.errors import NotInstalledError
from weightpkg.requirement import Requirement
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store, uninstall


@click.command("uninstall")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.pass_obj
def command(quiet: bool, names: tuple[str, ...], dry_run: bool) -> None:
    """Remove installed models.

    NAME is as `weightpkg list` prints it; without a variant, all variants of the model go.
    """
    store = Settings.from_environment().store()
    progress = make_progress(quiet=quiet)
    doomed = [record for name in names for record in _matching(store, name)]
    for record in dict.fromkeys(doomed):
        if dry_run:
            progress.note(f"would uninstall {record}")
        else:
            freed = uninstall(store, record)
            progress.note(f"uninstalled {record}, {format_size(freed)} freed")


def _matching(store: Store, name: str) -> list[Installed]:
    requirement = Requirement.parse(name)
    found = [
        record
        for record in store.installed()
        if requirement.name in {record.name, record.full_name}
        and record.version in requirement.specifier
    ]
    if not found:
        raise NotInstalledError(name)
    return found
