"""`weightpkg why`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import make_progress, print_json
from weightpkg.cli.names import LockedName
from weightpkg.errors import ProjectError
from weightpkg.project import require_project
from weightpkg.report import reasons


@click.command("why")
@click.argument("name", type=LockedName())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(quiet: bool, /, name: str, as_json: bool) -> None:
    """Say which roles need something: NAME is a model, a role, a file, or how a digest begins."""
    project = require_project(Path.cwd())
    lockfile = project.lockfile(make_progress(quiet=quiet).note)
    found = reasons(name, lockfile)
    if not found:
        raise ProjectError(f"nothing that is locked is called `{name}`", hint="weightpkg tree")
    if as_json:
        rows = [(package, model) for package, models in found for model in models]
        print_json(
            [
                {
                    "package": package.key,
                    "role": model.role,
                    "group": model.group,
                    "requirement": model.requirement,
                    "platforms": list(model.platforms),
                }
                for package, model in rows
            ]
        )
        return
    for package, models in found:
        click.echo(f"{package} ({package.license}), from {package.index or package.reference}")
        for model in models:
            group = f" of the group {model.group}" if model.group else ""
            where = f", on {', '.join(model.platforms)}" if model.platforms else ""
            click.echo(f"  {model.role}{group} wants {model.requirement}{where}")
