"""`weightpkg index release`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from weightpkg.cli.desk import directory_option, open_workspace
from weightpkg.cli.entry_options import (
    day_of,
    entry_options,
    make_variant,
    page_path,
    read_text,
    write_text,
)
from weightpkg.errors import SigningError


@click.command("release")
@click.argument("name")
@click.argument("version")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@entry_options
@directory_option
@click.option("--dry-run", is_flag=True, help="Print the page, and write nothing.")
@click.pass_obj
def command(
    quiet: bool,
    name: str,
    version: str,
    files: tuple[Path, ...],
    sources: tuple[str, ...],
    variant: str | None,
    quantization: str | None,
    changes: str | None,
    day: datetime | None,
    namespace: str | None,
    directory: Path,
    dry_run: bool,
) -> None:
    """Add a release of FILES to the page of NAME; where VERSION is there, add a variant to it."""
    from weightpkg.entries import (
        parse_version,
        read_facts,
        read_page,
        release_text,
        variant_text,
        with_release,
        with_variant,
    )

    workspace = open_workspace(directory)
    path = page_path(workspace, namespace, name)
    page, source, number = read_text(path), f"models/{path.name}", parse_version(version)
    model = read_page(page, source)
    present = next((each for each in model.releases if each.version == number), None)
    made = make_variant(
        files, read_facts(files), sources, name=variant, quantization=quantization, quiet=quiet
    )
    if present is not None:
        if made.name in {each.name for each in present.variants}:
            raise SigningError(
                f"`{model.name}` {version} has a variant `{made.name}`",
                hint="what was released is never changed: make another version",
            )
        text = with_variant(page, source, number, variant_text(made))
    else:
        if not changes:
            raise SigningError("nobody said what is new", hint="`--changes TEXT`")
        new = release_text(str(number), day_of(day), changes, [made])
        text = with_release(page, source, new, [made.name])
    write_text(path, text, dry_run=dry_run)
