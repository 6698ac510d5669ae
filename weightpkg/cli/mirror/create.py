"""`weightpkg mirror create`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.contents import Contents
from weightpkg.errors import IncompleteError
from weightpkg.fetch import DEFAULT_JOBS, Fetcher
from weightpkg.mirror.directory import Mirror
from weightpkg.mirror.making import Outcome, Step, create, plan_create
from weightpkg.mirror.wanted import wanted_by_lock, wanted_by_name, without_models
from weightpkg.settings import Settings


@click.command("create")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--lock",
    "locks",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A lockfile; may be given more than once.",
)
@click.option("--no-models", is_flag=True, help="Leave converted models out.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Look here for files before they are downloaded.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=DEFAULT_JOBS, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what is there, as JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    directory: Path,
    names: tuple[str, ...],
    locks: tuple[Path, ...],
    no_models: bool,
    find_links: tuple[Path, ...],
    jobs: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Have all that lockfiles or names need in a directory.

    What is there stays, and is not fetched again; a run that was broken off goes on by the same
    command. Anything that could not be had is listed, and the exit code is not 0. DIR is static
    files: any web server, object store or disk will do.
    """
    if not names and not locks:
        raise click.UsageError("give --lock weights.lock, or names")
    settings, progress = Settings.from_environment(), make_progress(quiet=quiet)
    wanted = [wanted_by_lock(path, settings, progress.note) for path in locks]
    wanted += [wanted_by_name(name, settings) for name in names]
    wanted = [without_models(one) for one in wanted] if no_models else wanted
    mirror, store = Mirror(directory), settings.store()
    plan = plan_create(wanted, mirror, store)
    progress.note(_describe(plan))
    if dry_run:
        if as_json:
            print_json([{"name": s.name, "action": s.action, "size": s.size} for s in plan])
        return
    with ExitStack() as stack:

        @cache
        def fetcher(index: Path) -> Fetcher:
            own = replace(settings, index_dir=index)
            sources = stack.enter_context(own.sources(mirror.store))
            return own.fetcher(sources, mirror.store, progress, jobs=jobs, find_links=find_links)

        outcome = create(wanted, mirror, store, fetcher, progress)
    if as_json:
        print_json(_as_json(outcome))
    progress.note(f"{directory}: {_total(outcome.contents)}")
    if outcome.gaps:
        raise IncompleteError(
            str(directory),
            [str(gap) for gap in outcome.gaps],
            hint="what is there is kept; the same command goes on from it",
        )


def _describe(plan: list[Step]) -> str:
    parts = []
    for action in ("fetch", "copy", "convert", "there"):
        steps = [step for step in plan if step.action == action]
        size = format_size(sum(step.size or 0 for step in steps))
        more = "" if action == "convert" or all(s.size is not None for s in steps) else " and more"
        if steps:
            what = "already there" if action == "there" else f"to {action}"
            known = "" if action == "convert" else f" ({size}{more})"
            parts.append(f"{len(steps)} {what}{known}")
    return ", ".join(parts) or "nothing to do"


def _total(contents: Contents) -> str:
    size = sum(entry.size for entry in contents.files.values())
    n_packages = len({package for need in contents.needs for package in need.packages})
    return f"{n_packages} packages, {len(contents.files)} files, {format_size(size)}"


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "needs": [
            {
                "name": need.name,
                "lock": need.lock.hex if need.lock else None,
                "packages": [package.name for package in need.packages],
            }
            for need in outcome.contents.needs
        ],
        "files": len(outcome.contents.files),
        "size": sum(entry.size for entry in outcome.contents.files.values()),
        "missing": [
            {"name": gap.name, "needed-by": gap.needed_by, "reason": gap.error.message}
            for gap in outcome.gaps
        ],
    }
