"""`weightpkg outdated`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from weightpkg.cli.console import make_progress, print_json, print_table
from weightpkg.project import Indexes, require_project
from weightpkg.report import Standing, standings
from weightpkg.settings import Settings


@click.command("outdated")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(quiet: bool, /, as_json: bool) -> None:
    """List what is locked and has a newer release, was yanked, or is gone.

    Wanted is the newest release that the manifest will have; latest the newest of all.
    """
    project, progress = require_project(Path.cwd()), make_progress(quiet=quiet)
    indexes = Indexes(project.root, project.manifest, Settings.from_environment())
    found = list(standings(project.lockfile(progress.note), indexes))
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = [_row(one) for one in found]
        print_table([("package", "locked", "wanted", "latest", "remark"), *rows])
    else:
        progress.note("everything is up to date")


def _row(one: Standing) -> tuple[str, ...]:
    return one.name, one.locked, one.wanted or "-", one.latest or "-", one.remark
