"""`weightpkg list`."""

from __future__ import annotations

import time

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.digest import Digest
from weightpkg.index import Index
from weightpkg.retention import PartialFile, partials
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store, disk_usage


@click.command("list")
@click.option("--partial", is_flag=True, help="List downloads that were not finished.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(partial: bool, as_json: bool) -> None:
    """List installed models, or downloads that a later one can go on with."""
    settings = Settings.from_environment()
    store = settings.store()
    if partial:
        _list_partials(partials(store), settings.index(), as_json=as_json)
        return
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
                r.reference or "",
            )
            for r in records
        ]
        print_table([("NAME", "VERSION", "SIZE", "AS", "FROM"), *rows])
    else:
        click.echo("nothing is installed; `weightpkg search WORDS` finds models", err=True)


def _list_partials(found: list[PartialFile], index: Index, *, as_json: bool) -> None:
    names = {
        partial.name: str(resolved)
        for partial in found
        for resolved, _ in index.find(Digest("sha256", partial.name))
    }
    hours = {partial.name: (time.time() - partial.changed) / 3600 for partial in found}
    if as_json:
        rows = [
            {"blob": p.name, "model": names.get(p.name), "size": p.size, "path": str(p.path)}
            for p in found
        ]
        print_json(rows)
    elif found:
        table = [
            (p.name[:16], names.get(p.name, ""), format_size(p.size), f"{hours[p.name]:.1f} h ago")
            for p in found
        ]
        print_table([("BLOB", "MODEL", "SIZE", "CHANGED"), *table])
    else:
        click.echo("no download was left unfinished", err=True)


def _as_json(store: Store, record: Installed) -> dict[str, object]:
    model = store.model(record.conversion) if record.conversion else None
    return {
        "name": record.full_name,
        "version": str(record.version),
        "reference": record.reference,
        "size": disk_usage(store, record),
        "path": str(model) if model else None,
        "tree": str(record.tree) if record.tree else None,
        "files": [
            {
                "path": f.path,
                "size": f.size,
                "sha256": f.sha256.hex,
                "blake3": f.blake3.hex,
                "kept": f.is_kept,
            }
            for f in record.files
        ],
    }
