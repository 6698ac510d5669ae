"""`weightpkg cache`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.files import tree_size
from weightpkg.settings import Settings
from weightpkg.store import disk_usage

PLACES = {"blobs": "files as fetched", "models": "converted models", "tmp": "unfinished"}


@click.group("cache")
def command() -> None:
    """The store: where it is, and what takes the space."""


@command.command("dir")
def directory() -> None:
    """Print where the store is."""
    click.echo(Settings.from_environment().home)


@command.command("size")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def size(as_json: bool) -> None:
    """Print how large the store is, and what is in it."""
    store = Settings.from_environment().store()
    places = {name: tree_size(store.root / name) for name in PLACES}
    models = {str(record): disk_usage(store, record) for record in store.installed()}
    total = tree_size(store.root)
    if as_json:
        print_json({"total": total, **places, "installed": models})
        return
    rows = [(PLACES[name], format_size(places[name])) for name in PLACES]
    rows += [(f"  {name}", format_size(used)) for name, used in models.items()]
    print_table([("total", format_size(total)), *rows])
