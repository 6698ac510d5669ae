"""`weightpkg sync`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.agreement import agree
from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.cli.mirroring import mirror_options, settings_with
from weightpkg.locking import select, this_platform
from weightpkg.project import Indexes, require_project
from weightpkg.store import Installed
from weightpkg.syncing import Step, finish, groups_of, plan_sync, prepare, sync, yanks


@click.command("sync")
@click.option("--frozen", is_flag=True, help="Change no file of the project; refuse any drift.")
@click.option("--no-dev", is_flag=True, help="Leave out the group dev.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only this group and what is in none."
)
@click.option(
    "--prune", is_flag=True, help="Uninstall what only this project had, and has no more."
)
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Look here for files before they are downloaded.",
)
@click.option(
    "--accept-license", multiple=True, metavar="ID", help="Agree to a license beforehand."
)
@mirror_options
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what is installed as JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    frozen: bool,
    no_dev: bool,
    groups: tuple[str, ...],
    prune: bool,
    find_links: tuple[Path, ...],
    accept_license: tuple[str, ...],
    mirror: str | None,
    mirror_only: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install exactly what weights.lock says.

    A lockfile that does not fit the manifest is written anew first; with --frozen that is an error.
    What is there is looked at, and repaired if it was damaged. Nothing is removed without --prune.
    """
    settings = settings_with(mirror, is_only=mirror_only)
    project = require_project(Path.cwd())
    progress, store = make_progress(quiet=quiet), settings.store()
    lockfile = prepare(project, settings, progress, frozen=frozen or dry_run)
    meant = groups_of(project.manifest.groups, only=groups, without_dev=no_dev)
    packages = list(dict.fromkeys(select(lockfile, this_platform(), meant).values()))
    indexes = Indexes(project.root, project.manifest, settings)
    for warning in yanks(packages, indexes):
        progress.note(f"warning: {warning}")
    steps = plan_sync(packages, indexes, store)
    for step in steps:
        if not step.is_done:
            progress.note(describe(step))
    if dry_run:
        return
    missing = [(step.plan.resolved, step.directory) for step in steps if step.plan.missing]
    agree(missing, store, accept_license, is_project=True)
    done = sync(steps, settings, progress, find_links=find_links)
    for line in finish(project, lockfile, done, store, frozen=frozen, prune=prune):
        progress.note(line)
    if as_json:
        print_json([_as_json(step, record) for step, record in zip(steps, done, strict=True)])


def describe(step: Step) -> str:
    """Say what is to be done for a package."""
    plan = step.plan
    todo = [f"fetch {format_size(plan.download_size)}"] if plan.missing else []
    todo += ["convert to ONNX"] if plan.converts and not plan.is_converted else []
    return f"{step.package} ({step.package.license}): {' and '.join(todo) or 'record'}"


def _as_json(step: Step, record: Installed) -> dict[str, object]:
    return {
        "name": step.package.full_name,
        "version": str(record.version),
        "changed": not step.is_done,
        "conversion": record.conversion,
        "tree": record.tree.hex if record.tree else None,
    }
