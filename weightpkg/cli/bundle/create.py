"""`weightpkg bundle create`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.fetch import Fetcher
from weightpkg.files import scratch_directory
from weightpkg.mirror.bundle import Gathering, create
from weightpkg.mirror.directory import Mirror
from weightpkg.mirror.making import plan_create
from weightpkg.mirror.wanted import wanted_by_lock, without_models
from weightpkg.mirror.wheels import gather_wheels
from weightpkg.settings import Settings

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


class Size(click.ParamType[int]):
    """Bytes, with or without a decimal unit: `4G`."""

    name = "SIZE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)B?", str(value), re.IGNORECASE)
        size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
        if size < 1024:
            self.fail(f"`{value}` is no size of at least 1K, such as 4G", param, ctx)
        return size


@click.command("create")
@click.argument("locks", nargs=-1, required=True, metavar="LOCK...", type=_EXISTING)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where it goes: site.wpk.",
)
@click.option("--volume-size", type=Size(), help="Split it: FILE.001 and so on, 4G each, say.")
@click.option(
    "--delta-from",
    multiple=True,
    metavar="OLD",
    type=_EXISTING,
    help="Carry only what this bundle did not; all of its volumes.",
)
@click.option("--with-wheels", is_flag=True, help="Carry weightpkg itself and what it needs.")
@click.option("--no-models", is_flag=True, help="Leave converted models out.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Look here for files before they are downloaded.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    locks: tuple[Path, ...],
    output: Path,
    volume_size: int | None,
    delta_from: tuple[Path, ...],
    with_wheels: bool,
    no_models: bool,
    find_links: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write all that lockfiles need into one file.

    The same lockfiles give the same bytes. What the store does not have is fetched and converted
    first. Nothing is written where anything is missing.
    """
    settings, progress = Settings.from_environment(), make_progress(quiet=quiet)
    store = settings.store()
    wanted = [wanted_by_lock(path, settings, progress.note) for path in locks]
    wanted = [without_models(one) for one in wanted] if no_models else wanted
    if dry_run:
        for step in plan_create(wanted, Mirror(output / "none"), store):
            known = format_size(step.size)
            click.echo(f"{'carry' if step.action == 'copy' else step.action} {step.name} ({known})")
        return
    with ExitStack() as stack:

        @cache
        def fetcher(index: Path) -> Fetcher:
            own = replace(settings, index_dir=index)
            sources = stack.enter_context(own.sources(store))
            return own.fetcher(sources, store, progress, find_links=find_links)

        scratch = stack.enter_context(scratch_directory(store.temporary)) if with_wheels else None
        wheels = gather_wheels(scratch, progress) if scratch else []
        paths, listing = create(
            wanted,
            output,
            Gathering(store, fetcher, progress),
            base=delta_from,
            wheels=wheels,
            volume_size=volume_size,
        )
    size = sum(path.stat().st_size for path in paths)
    if as_json:
        print_json(
            {
                "files": [str(path) for path in paths],
                "size": size,
                "members": len(listing.members),
                "patches": len(listing.patches),
                "from-base": len(listing.copies),
            }
        )
    progress.note(f"wrote {', '.join(map(str, paths))}: {format_size(size)}")
