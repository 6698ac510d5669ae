"""`weightpkg adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.adopt import Places, walk_models
from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.digest import hash_file
from weightpkg.fetch import Fetcher
from weightpkg.files import mapped
from weightpkg.index import Index
from weightpkg.install import install, plan_install
from weightpkg.package import File, Resolved
from weightpkg.progress import Progress
from weightpkg.settings import Settings

Found = dict[Path, list[tuple[Resolved, File]]]


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

    PATH is a file or a folder. Files are known by their digests; they stay where they are, and
    share their bytes with the store where the disk can do that.
    """
    settings = Settings.from_environment()
    progress = make_progress(quiet=quiet)
    found = _identify(paths, settings.index(), progress)
    if as_json:
        print_json(
            [{"path": str(p), "is": [str(r) for r, _ in known]} for p, known in found.items()]
        )
    for path, known in found.items():
        names = ", ".join(str(resolved) for resolved, _ in known)
        other = f"not in the index; `weightpkg install ./{path.name}` takes it as it is"
        progress.note(f"{path}: {names or other}")
    if not dry_run:
        _take(found, settings, progress, allow_conversion=not no_convert)


def _identify(paths: tuple[Path, ...], index: Index, progress: Progress) -> Found:
    found: Found = {}
    for path in (file for each in paths for file in walk_models(each)):
        with mapped(path), progress.task(f"hashing {path.name}", path.stat().st_size) as advance:
            digest = hash_file(path, "sha256", advance=advance)
        found[path] = list(index.find(digest))
    return found


def _take(found: Found, settings: Settings, progress: Progress, *, allow_conversion: bool) -> None:
    store = settings.store()

    def refuse(*_: object) -> None:  # all that is taken is here
        raise AssertionError("a source was opened")

    with store.use():
        for path, known in found.items():
            places = Places(directories=(path,))
            fetcher = Fetcher(refuse, store, progress, places=places)  # type: ignore[arg-type]
            for _, file in known[:1]:
                fetcher.fetch(file)
        chosen = dict.fromkeys(r for known in found.values() for r, _ in known)
        for resolved in chosen:
            plan = plan_install(resolved, store, allow_conversion=allow_conversion)
            if plan.missing:
                missing = format_size(plan.download_size)
                progress.note(
                    f"{resolved}: {missing} are not here; `weightpkg install` fetches them"
                )
            else:
                progress.note(f"installed {install(plan, store, fetcher)}")
