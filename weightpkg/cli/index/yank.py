"""`weightpkg index yank`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.desk import directory_option, open_workspace
from weightpkg.cli.entry_options import page_path, read_text, write_text


@click.command("yank")
@click.argument("name")
@click.argument("version")
@click.option("--reason", required=True, help="Why nobody should use it, in one line.")
@click.option("--namespace", help="A publisher that is hosted; the index's own if not given.")
@directory_option
@click.option("--dry-run", is_flag=True, help="Print the page, and write nothing.")
def command(
    name: str, version: str, reason: str, namespace: str | None, directory: Path, dry_run: bool
) -> None:
    """Say of a release why nobody should use it; it is then chosen only by an exact version."""
    from weightpkg.entries import parse_version, with_yank

    path = page_path(open_workspace(directory), namespace, name)
    text = with_yank(read_text(path), f"models/{path.name}", parse_version(version), reason)
    write_text(path, text, dry_run=dry_run)
