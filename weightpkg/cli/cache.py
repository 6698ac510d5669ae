"""`weightpkg cache`."""

from __future__ import annotations

from itertools import islice

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.files import tree_size
from weightpkg.retention import projects
from weightpkg.settings import Settings
from weightpkg.store import Store, disk_usage

PLACES = {
    "blobs": "files as fetched",
    "models": "converted models",
    "partial": "unfinished downloads",
    "quarantine": "damaged and replaced",
    "cache": "what is made again when it is missing",
    "indexes": "what is held of signed indexes",
    "tmp": "unfinished",
}


@click.group("cache")
def command() -> None:
    """The store: where it is, and what takes the space."""


@command.command("dir")
def directory() -> None:
    """Print where the store is."""
    click.echo(Settings.from_environment().home)


@command.command("size")
@click.option(
    "--by",
    type=click.Choice(["place", "model", "blob", "project"]),
    default="place",
    show_default=True,
    help="What to count for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def size(by: str, as_json: bool) -> None:
    """Print how large the store is, and what is in it, the largest first.

    What several models or projects share is counted for each of them, and once in the total.
    """
    store = Settings.from_environment().store()
    counts = {"place": _places, "model": _models, "blob": _blobs, "project": _projects}[by](store)
    total = tree_size(store.root)
    if as_json:
        print_json({"total": total, "by": by, "sizes": counts})
        return
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    print_table([("total", format_size(total)), *((name, format_size(n)) for name, n in rows)])


def _places(store: Store) -> dict[str, int]:
    """A file that is in two places, as weights that are used as they are, counts in the first."""
    sizes, before = {}, 0
    for i, text in enumerate(PLACES.values()):
        after = tree_size(*(store.root / name for name in islice(PLACES, i + 1)))
        sizes[text], before = after - before, after
    return sizes


def _models(store: Store) -> dict[str, int]:
    return {str(record): disk_usage(store, record) for record in store.installed()}


def _blobs(store: Store) -> dict[str, int]:
    paths = (store.root / "blobs" / "sha256").glob("*/*")
    return {path.name: tree_size(path) for path in paths if path.suffix != ".chunks"}


def _projects(store: Store) -> dict[str, int]:
    used = {}
    for lockfile, names in projects(store).items():
        records = [
            record
            for record in store.installed()
            if names & {record.conversion, *(file.sha256.hex for file in record.files)}
        ]
        used[str(lockfile)] = sum(disk_usage(store, record) for record in records)
    return used
