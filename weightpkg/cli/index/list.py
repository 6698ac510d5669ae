"""`weightpkg index list`."""

from __future__ import annotations

import click

from weightpkg.cli.console import print_json, print_table
from weightpkg.config import IndexConfig
from weightpkg.settings import Settings


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the configured indexes, and whose signatures count."""
    indexes = Settings.from_environment().config().indexes
    if as_json:
        print_json([_as_json(index) for index in indexes])
    elif indexes:
        rows = [(i.name, i.url, _trust(i), f"{i.max_staleness_days} days") for i in indexes]
        print_table([("NAMESPACE", "URL", "FIRST ROOT", "STALENESS"), *rows])


def _trust(index: IndexConfig) -> str:
    return f"sha256:{index.root_sha256.hex[:16]}" if index.root_sha256 else "unsigned"


def _as_json(index: IndexConfig) -> dict[str, object]:
    return {
        "name": index.name,
        "url": index.url,
        "root-sha256": index.root_sha256.hex if index.root_sha256 else None,
        "max-staleness": index.max_staleness_days,
        "allow-unsigned": index.allow_unsigned,
    }
