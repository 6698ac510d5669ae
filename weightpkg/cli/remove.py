"""`weightpkg remove`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.cli.editing import save
from weightpkg.cli.names import LockedName
from weightpkg.manifest import remove_role
from weightpkg.project import require_project
from weightpkg.settings import Settings


@click.command("remove")
@click.argument("roles", nargs=-1, required=True, metavar="ROLE...", type=LockedName())
@click.option("--dry-run", is_flag=True, help="Print what would change, and write nothing.")
@click.pass_obj
def command(quiet: bool, /, roles: tuple[str, ...], dry_run: bool) -> None:
    """Remove models from the project's manifest, and lock the rest.

    What is installed stays, until `weightpkg sync --prune` or `weightpkg gc`.
    """
    project = require_project(Path.cwd())
    path = project.manifest_path
    with files.mapped(path):
        text = path.read_text(encoding="utf-8")
    for role in roles:
        text = remove_role(text, role, source=path.name)
    save(project, text, Settings.from_environment(), make_progress(quiet=quiet), dry_run=dry_run)
