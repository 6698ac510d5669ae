"""`weightpkg init`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import make_progress
from weightpkg.errors import ProjectError
from weightpkg.manifest import MANIFEST, NEW_MANIFEST, PYPROJECT, add_table
from weightpkg.project import Project, find_project


@click.command("init")
@click.option("--pyproject", is_flag=True, help="Use [tool.weightpkg] of ./pyproject.toml.")
@click.pass_obj
def command(quiet: bool, /, pyproject: bool) -> None:
    """Make a project here: write a weights.toml that wants nothing yet."""
    here = Path.cwd()
    found = find_project(here)
    if found is not None and found.root == here:
        raise ProjectError(
            f"`{found.manifest_path}` is there already", hint="`weightpkg add NAME` adds to it"
        )
    path, text = here / MANIFEST, NEW_MANIFEST
    if pyproject:
        path = here / PYPROJECT
        text = add_table(path.read_text(encoding="utf-8") if path.exists() else "")
    Project(path).write(path, text.encode())
    make_progress(quiet=quiet).note(f"wrote {path.name}")
