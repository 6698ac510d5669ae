"""`weightpkg tree`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.lockfile import LockedModel, Lockfile
from weightpkg.project import require_project


@click.command("tree")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(quiet: bool, /, as_json: bool) -> None:
    """Show the project's roles by group, what each asked for, its package, and its files."""
    project = require_project(Path.cwd())
    lockfile = project.lockfile(make_progress(quiet=quiet).note)
    if as_json:
        print_json([_as_json(model, lockfile) for model in lockfile.models])
        return
    for line in _lines(lockfile):
        click.echo(line)


def _lines(lockfile: Lockfile) -> Iterator[str]:
    group = None
    for model in lockfile.models:
        if model.group != group:
            group = model.group
            yield f"[{group}]"
        package = lockfile.package(model.package)
        where = f" on {', '.join(model.platforms)}" if model.platforms else ""
        yield f"{model.role}: {model.requirement}{where}"
        yield f"  {package} ({package.license})"
        for file in package.files:
            yield f"    {file.path}  {format_size(file.size)}  {file.sha256}"


def _as_json(model: LockedModel, lockfile: Lockfile) -> dict[str, object]:
    package = lockfile.package(model.package)
    return {
        "role": model.role,
        "group": model.group,
        "platforms": list(model.platforms),
        "requirement": model.requirement,
        "name": package.full_name,
        "version": str(package.version),
        "license": package.license,
        "files": [
            {"path": str(f.path), "size": f.size, "sha256": f.sha256.hex if f.sha256 else None}
            for f in package.files
        ],
    }
