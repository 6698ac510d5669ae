"""`weightpkg convert`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.digest import hash_file
from weightpkg.errors import StoreError
from weightpkg.progress import Progress

if TYPE_CHECKING:
    from weightpkg.convert.directory import Conversion


@click.command("convert")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A new directory."
)
@click.option(
    "--quantize",
    type=click.Choice(["q4", "q8"]),
    help="Make blocks of 4 or 8 bits of a checkpoint's dense matrices.",
)
@click.pass_obj
def command(quiet: bool, source: Path, output: Path, quantize: Literal["q4", "q8"] | None) -> None:
    """Convert a model that no index names to an ONNX model directory.

    SOURCE is a GGUF file, an ONNX model, which is checked and stays as it is, or a directory of
    safetensors and what belongs to them (config.json, tokenizer.json, ...) as Hugging Face's
    libraries write it. Weights in float32 are not copied: the model directory has a clone of their
    file, or where the disk cannot make one a hard link to it.
    """
    if output.exists():
        raise StoreError(f"`{output}` is there already", hint="name a new directory")
    progress = make_progress(quiet=quiet)
    start = time.perf_counter()
    is_checkpoint = source.is_dir() or source.suffix in {".safetensors", ".json"}
    if is_checkpoint:
        done = _convert_checkpoint(source, output, quantize, progress)
    elif quantize is None:
        done = _convert_file(source, output, progress)
    else:
        raise click.UsageError("--quantize: the weights of a GGUF file are converted as they are")
    ratio = done.size / done.source_size
    seconds = time.perf_counter() - start
    progress.note(
        f"{output}: {done.architecture}, wrote {ratio:.3g} times the source, {seconds:.1f} s"
    )


def _convert_file(source: Path, output: Path, progress: Progress) -> Conversion:
    from weightpkg.convert import SourceFile, format_of
    from weightpkg.convert.child import convert

    with files.mapped(source):
        digest = hash_file(source, "sha256")
    with files.new_directory(output) as directory:
        file = SourceFile(source, digest, str(source))
        return convert(format_of([source.name]), [file], directory, progress)


def _convert_checkpoint(
    source: Path, output: Path, quantize: Literal["q4", "q8"] | None, progress: Progress
) -> Conversion:
    from weightpkg.convert.checkpoints import convert_checkpoint
    from weightpkg.formats.checkpoint import Checkpoint
    from weightpkg.placing import kept_modes, place_file

    with files.mapped(source):
        checkpoint = Checkpoint.find(source)
        digests = {name: hash_file(path, "sha256") for name, path in checkpoint.files.items()}
    with kept_modes(checkpoint.files.values()), files.new_directory(output) as directory:
        return convert_checkpoint(
            checkpoint, digests, directory, progress, place_file, quantization=quantize
        )
