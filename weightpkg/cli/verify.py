"""`weightpkg verify`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.cli.publisher_key import make_check, publisher_key_option
from weightpkg.progress import Progress
from weightpkg.reference import matching
from weightpkg.repair import Repaired, make_find_file, repair
from weightpkg.settings import Settings
from weightpkg.store import Store
from weightpkg.verify import Problem, verify


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--repair", "is_repair", is_flag=True, help="Make good what is bad.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Look here for what is to be repaired before it is downloaded.",
)
@publisher_key_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    is_repair: bool,
    find_links: tuple[Path, ...],
    publisher_key: Path | None,
    as_json: bool,
) -> None:
    """Hash models again, offline; exit with 1 if anything is bad and was not repaired.

    NAME is as `weightpkg list` prints it; without one, all that the store has is checked. With
    --repair, only damaged parts of files are fetched, damaged conversions are made again, and what
    was bad is kept in the store's quarantine for a week.
    """
    settings = Settings.from_environment()
    store, progress = settings.store(), make_progress(quiet=ctx.obj)
    check = make_check(publisher_key, store, progress)
    installed = store.installed()
    records = [record for name in names for record in matching(name, installed)]
    with store.use():
        problems = verify(store, progress, records if names else None)
        done = _repair(problems, settings, store, progress, find_links) if is_repair else None
    if as_json:
        print_json([_as_json(p) for p in problems] if done is None else [_done(r) for r in done])
    else:
        lines = map(str, problems) if done is None else map(_line, done)
        click.echo("\n".join(lines) or "everything is as it was installed")
    for record in (records if names else installed) if publisher_key and not problems else ():
        check(record.full_name, record.files)
    if problems and done is None:
        progress.note("hint: weightpkg verify --repair")
    if any(each.error for each in done) if done is not None else problems:
        ctx.exit(1)


def _repair(
    problems: list[Problem],
    settings: Settings,
    store: Store,
    progress: Progress,
    find_links: tuple[Path, ...],
) -> list[Repaired]:
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, progress, find_links=find_links)
        return repair(problems, store, fetcher, make_find_file(store, settings.index()))


def _line(done: Repaired) -> str:
    if done.error:
        return f"{done.problem}: not repaired: {done.error.message}"
    fetched = f", {format_size(done.fetched)} fetched" if done.fetched else ""
    return f"{done.problem}: repaired{fetched}"


def _as_json(problem: Problem) -> dict[str, object]:
    return {"kind": problem.kind, "path": str(problem.path), "models": problem.models}


def _done(done: Repaired) -> dict[str, object]:
    error = done.error.message if done.error else None
    return _as_json(done.problem) | {
        "repaired": error is None,
        "error": error,
        "fetched": done.fetched,
    }
