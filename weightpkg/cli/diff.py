"""`weightpkg diff`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from weightpkg.cli.console import make_progress, print_json
from weightpkg.lockfile import Lockfile, read_lockfile
from weightpkg.project import Indexes, find_project, load_lockfile, require_project
from weightpkg.report import Change, compare
from weightpkg.settings import Settings


@click.command("diff")
@click.argument("old", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("new", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything changed.")
@click.pass_context
def command(ctx: click.Context, old: str, new: str | None, as_json: bool, exit_code: bool) -> None:
    """Show what changed between two lockfiles: versions, licenses, digests, and what releases say.

    NEW is the project's if it is not given; `-` as OLD is standard input:
    git show main:weights.lock | weightpkg diff -
    """
    progress = make_progress(quiet=ctx.obj)
    before = _read(old, progress.note)
    project = find_project(Path.cwd()) if new else require_project(Path.cwd())
    path = project.lockfile_path if project and not new else Path(str(new))
    settings = Settings.from_environment()
    indexes = Indexes(project.root, project.manifest, settings) if project else None
    changes = compare(before, load_lockfile(path, progress.note), indexes)
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        for line in _lines(changes):
            click.echo(line)
    ctx.exit(1 if changes and exit_code else 0)


def _read(path: str, warn: Callable[[str], None]) -> Lockfile:
    if path == "-":
        content = sys.stdin.buffer.read()
        return read_lockfile(content, source="standard input", warn=warn)
    return load_lockfile(Path(path), warn)


def _lines(changes: list[Change]) -> Iterator[str]:
    for change in changes:
        versions = " -> ".join(dict.fromkeys(v for v in (change.old, change.new) if v))
        yield f"{change.kind} {change.name} {versions}"
        yield from (f"  {detail}" for detail in change.details)
        yield from (f"  changes in {note}" for note in change.notes)
