"""`weightpkg convert`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.digest import hash_file
from weightpkg.errors import StoreError


@click.command("convert")
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A new directory."
)
@click.pass_obj
def command(quiet: bool, source: Path, output: Path) -> None:
    """Convert a model file that no index names to an ONNX model directory.

    SOURCE is a GGUF file.
    """
    from weightpkg.convert.pipeline import convert

    if output.exists():
        raise StoreError(f"`{output}` is there already", hint="name a new directory")
    progress = make_progress(quiet=quiet)
    start = time.perf_counter()
    with files.mapped(source):
        digest = hash_file(source, "sha256")
    with files.new_directory(output) as directory:
        done = convert(source, digest, directory, progress)
    ratio = done.size / done.source_size
    seconds = time.perf_counter() - start
    progress.note(f"{output}: {done.architecture}, {ratio:.2f} times the source, {seconds:.1f} s")
