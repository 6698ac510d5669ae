"""`weightpkg add`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import make_progress
from weightpkg.cli.editing import save
from weightpkg.manifest import MANIFEST, NEW_MANIFEST, add_role, role_of
from weightpkg.project import Project, find_project
from weightpkg.settings import Settings


@click.command("add")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--role", help="What the project calls it; the model's name if not given.")
@click.option("--group", help="A group of models that not everyone needs.")
@click.option("--dev", is_flag=True, help="The same as --group dev.")
@click.option("--dry-run", is_flag=True, help="Print what would be locked, and write nothing.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    names: tuple[str, ...],
    role: str | None,
    group: str | None,
    dev: bool,
    dry_run: bool,
) -> None:
    """Add models to the project's manifest, and lock them.

    NAME is what `weightpkg install` takes. Outside a project, a weights.toml is written here.
    `weightpkg sync` installs what is locked.
    """
    if role and len(names) > 1:
        raise click.UsageError("--role is for one NAME")
    project = find_project(Path.cwd()) or Project(Path.cwd() / MANIFEST)
    path = project.manifest_path
    text = path.read_text(encoding="utf-8") if path.exists() else NEW_MANIFEST
    for name in names:
        text = add_role(
            text, role or role_of(name), name, group="dev" if dev else group, source=path.name
        )
    settings = Settings.from_environment()
    save(project, text, settings, make_progress(quiet=quiet), dry_run=dry_run)
