"""`weightpkg adopt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click

from weightpkg.adopt import Places, find_candidates, walk_models
from weightpkg.cli.console import make_progress, print_json
from weightpkg.digest import hash_file
from weightpkg.errors import FetchError
from weightpkg.fetch import Fetcher
from weightpkg.files import mapped
from weightpkg.index import Index
from weightpkg.install import install, plan_install
from weightpkg.package import Resolved
from weightpkg.progress import Progress
from weightpkg.reference import resolve_reference
from weightpkg.settings import Settings
from weightpkg.store import Store


@click.command("adopt")
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
@click.option("--no-convert", is_flag=True, help="Keep the verified files; convert nothing.")
@click.option("--dry-run", is_flag=True, help="Print what would be taken, and take nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool, paths: tuple[Path, ...], no_convert: bool, dry_run: bool, as_json: bool
) -> None:
    """Install models from files that are here already.

    PATH is a file or a folder. Files are known by their digests, and GGUF files that no index knows
    are taken under their own names. All stay where they are, and share their bytes with the store
    where the disk can do that.
    """
    settings = Settings.from_environment()
    progress = make_progress(quiet=quiet)
    found = {
        path: _identify(path, settings.index(), progress)
        for each in paths
        for path in walk_models(each)
    }
    if as_json:
        print_json([{"path": str(p), "is": [str(r) for r in known]} for p, known in found.items()])
    for path, known in found.items():
        progress.note(f"{path}: {', '.join(map(str, known)) or 'no model that is known'}")
    if not dry_run:
        _take(found, settings.store(), progress, allow_conversion=not no_convert)


def _identify(path: Path, index: Index, progress: Progress) -> list[Resolved]:
    """Return what a file is, or belongs to."""
    with mapped(path), progress.task(f"hashing {path.name}", path.stat().st_size) as advance:
        digest = hash_file(path, "sha256", advance=advance)
    known = [resolved for resolved, _ in index.find(digest)]
    if known or path.suffix.lower() != ".gguf":
        return known
    return [resolve_reference(str(path.absolute()), _refuse)]


def _take(
    found: Mapping[Path, list[Resolved]],
    store: Store,
    progress: Progress,
    *,
    allow_conversion: bool,
) -> None:
    """Install each model of which all files are here."""
    fetcher = Fetcher(_refuse, store, progress, places=Places(directories=tuple(found)))
    with store.use():
        for resolved in dict.fromkeys(each for known in found.values() for each in known):
            plan = plan_install(resolved, store, allow_conversion=allow_conversion)
            missing = [f for f in plan.missing if not any(find_candidates(f, fetcher.places))]
            if missing:
                names = ", ".join(str(file.path) for file in missing)
                progress.note(
                    f"{resolved}: {names} is not here; `weightpkg install --find-links` fetches it"
                )
            else:
                progress.note(f"installed {install(plan, store, fetcher)}")


def _refuse(*_: object) -> NoReturn:
    raise FetchError("the file has changed while it was looked at")
