"""`weightpkg index add-model`."""

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
    write_text,
)
from weightpkg.errors import SigningError


@click.command("add-model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the model is called.")
@click.option("--summary", required=True, help="What it is, in one line.")
@click.option("--release", "version", default="1.0.0", show_default=True, help="Its first release.")
@click.option(
    "--task", help="As Hugging Face names it; what its architecture is mostly for if not given."
)
@click.option(
    "--license", "license_id", help="An SPDX expression; what the files say if not given."
)
@click.option("--license-url", help="Where the license's text is.")
@click.option("--homepage", help="Where people read more.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; once for each.")
@entry_options
@directory_option
@click.option("--dry-run", is_flag=True, help="Print the page, and write nothing.")
@click.pass_obj
def command(
    quiet: bool,
    files: tuple[Path, ...],
    name: str,
    summary: str,
    version: str,
    task: str | None,
    license_id: str | None,
    license_url: str | None,
    homepage: str | None,
    tags: tuple[str, ...],
    sources: tuple[str, ...],
    variant: str | None,
    quantization: str | None,
    changes: str | None,
    day: datetime | None,
    namespace: str | None,
    directory: Path,
    dry_run: bool,
) -> None:
    """Make the page of a model of its FILES: hashes them, and reads their headers.

    FILES are those of one variant: a GGUF file, in one or more parts, or safetensors files with
    config.json, tokenizer.json and what else belongs to them.
    """
    from weightpkg.entries import (
        NewModel,
        new_page,
        parse_version,
        read_facts,
        read_page,
        release_text,
        task_of,
    )

    workspace = open_workspace(directory)
    path = page_path(workspace, namespace, name)
    if path.exists():
        raise SigningError(
            f"`{path}` is there already", hint="`weightpkg index release` adds to it"
        )
    facts = read_facts(files)
    if facts.architecture is None:
        raise SigningError(
            "the files do not say which architecture it is", hint="name the config.json, too"
        )
    if not (license_id or facts.license):
        raise SigningError("the files do not say which license it has", hint="`--license SPDX-ID`")
    made = make_variant(files, facts, sources, name=variant, quantization=quantization, quiet=quiet)
    model = NewModel(
        name=name,
        summary=summary,
        task=task or task_of(facts.architecture),
        license=license_id or str(facts.license),
        license_url=license_url,
        homepage=homepage,
        tags=tags,
    )
    first = str(parse_version(version))
    release = release_text(first, day_of(day), changes or "first release", [made])
    text = new_page(model, facts, release, made.name)
    read_page(text, f"models/{path.name}")
    write_text(path, text, dry_run=dry_run)
