"""`weightpkg lock`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import make_progress
from weightpkg.cli.editing import write
from weightpkg.cli.mirroring import mirror_options, settings_with
from weightpkg.cli.names import LockedName
from weightpkg.errors import ProjectError
from weightpkg.locking import Upgrade
from weightpkg.project import known_facts, lock, require_project
from weightpkg.requirement import NormalizedName, normalize_name


@click.command("lock")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=LockedName())
@click.option("--upgrade", is_flag=True, help="Take the newest releases: of NAME, or of all.")
@mirror_options
@click.option("--check", is_flag=True, help="Write nothing; fail if it would be another file.")
@click.option("--dry-run", is_flag=True, help="Print what would change, and write nothing.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    names: tuple[str, ...],
    upgrade: bool,
    mirror: str | None,
    mirror_only: bool,
    check: bool,
    dry_run: bool,
) -> None:
    """Write what the project uses, exactly, into weights.lock.

    Nothing is downloaded but files that are named by a source which does not say their digest.
    What is locked stays as it is as long as the manifest will have it;
    --upgrade takes newer releases, of the models or roles NAME or of all of them.
    """
    if names and not upgrade:
        raise click.UsageError("names are for --upgrade")
    settings = settings_with(mirror, is_only=mirror_only)
    project = require_project(Path.cwd())
    progress = make_progress(quiet=quiet)
    move = Upgrade(frozenset(map(_folded, names)), everything=upgrade and not names)
    told = None if check or dry_run else progress
    plan = lock(project, settings, progress.note, upgrade=move, progress=told)
    new = plan.lockfile if check else known_facts(plan.lockfile, settings.store())
    for note in plan.notes:
        progress.note(note)
    if write(project, new, progress, dry_run=dry_run or check) and check:
        raise ProjectError(
            f"`{project.lockfile_path.name}` is not up to date", hint="weightpkg lock"
        )


def _folded(name: str) -> NormalizedName:
    try:
        return NormalizedName("/".join(normalize_name(part) for part in name.split("/")))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
