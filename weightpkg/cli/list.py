"""`weightpkg list`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store, disk_usage


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List installed models."""
    store = Settings.from_environment().store()
    records = store.installed()
    if as_json:
        print_json([_as_json(store, record) for record in records])
    elif records:
        rows = [
            (
                r.full_name,
                str(r.version),
                format_size(disk_usage(store, r)),
                "onnx" if r.tree else "files",
            )
            for r in records
        ]
        print_table([("NAME", "VERSION", "SIZE", "AS"), *rows])
    else:
        click.echo("nothing is installed; `weightpkg search WORDS` finds models", err=True)


def _as_json(store: Store, record: Installed) -> dict[str, object]:
    model = store.model(record.conversion) if record.conversion else None
    return {
        "name": record.full_name,
        "version": str(record.version),
        "size": disk_usage(store, record),
        "path": str(model) if model else None,
        "tree": str(record.tree) if record.tree else None,
        "files": [
            {"path": f.path, "size": f.size, "sha256": f.sha256.hex, "blake3": f.blake3.hex}
            for f in record.files
        ],
    }
