"""`weightpkg export`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import tomli

from weightpkg.cli.console import make_progress, print_json
from weightpkg.lockfile import LockedPackage, Lockfile, dump_lockfile
from weightpkg.project import require_project
from weightpkg.syncing import groups_of


@click.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "requirements"]),
    default="json",
    show_default=True,
    help="All of the lockfile, or a line for each package.",
)
@click.option("--no-dev", is_flag=True, help="Leave out the group dev.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only this group and what is in none."
)
@click.pass_obj
def command(quiet: bool, /, form: str, no_dev: bool, groups: tuple[str, ...]) -> None:
    """Print the lockfile in another form, for all platforms.

    Lines of requirements can be installed: weightpkg export --format requirements | grep -v '^ *#' |
    xargs weightpkg install
    """
    project = require_project(Path.cwd())
    lockfile = project.lockfile(make_progress(quiet=quiet).note)
    meant = groups_of(project.manifest.groups, only=groups, without_dev=no_dev)
    lockfile = lockfile.only(meant)
    if form == "json":
        print_json(tomli.loads(dump_lockfile(lockfile).decode()))
        return
    for line in _requirements(lockfile):
        click.echo(line)


def _requirements(lockfile: Lockfile) -> Iterator[str]:
    for package in lockfile.packages:
        roles = [model.role for model in lockfile.models if model.package == package.key]
        yield f"# {', '.join(dict.fromkeys(roles))}; {package.license}"
        yield from _digests(package)
        yield package.reference or package.key


def _digests(package: LockedPackage) -> Iterator[str]:
    return (f"#   {file.path} {file.sha256}" for file in package.files)
