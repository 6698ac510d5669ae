"""`weightpkg convert`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.convert import Job, Quantization, SourceFile, format_of
from weightpkg.digest import fingerprint_file
from weightpkg.errors import StoreError
from weightpkg.placing import place_files


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
def command(quiet: bool, source: Path, output: Path, quantize: Quantization | None) -> None:
    """Convert a model that no index names to an ONNX model directory.

    SOURCE is a GGUF file, an ONNX model, which is checked and stays as it is, or a directory of
    safetensors and what belongs to them (config.json, tokenizer.json, ...) as Hugging Face's
    libraries write it. Weights in float32 are not copied: the model directory has a clone of their
    file, or where the disk cannot make one a hard link to it.
    """
    from weightpkg.convert import child

    if output.exists():
        raise StoreError(f"`{output}` is there already", hint="name a new directory")
    progress = make_progress(quiet=quiet)
    start = time.perf_counter()
    is_checkpoint = source.is_dir() or source.suffix in {".safetensors", ".json"}
    if quantize and not is_checkpoint:
        raise click.UsageError("--quantize: only a checkpoint has dense matrices to quantise")
    job = _checkpoint_job(source, quantize) if is_checkpoint else _file_job(source)
    with files.new_directory(output) as directory:
        done = child.convert(job, directory, progress)
        place_files({each.name: each.path for each in job.sources}, done.placed, directory)
    ratio = done.size / done.source_size
    seconds = time.perf_counter() - start
    progress.note(
        f"{output}: {done.architecture}, wrote {ratio:.3g} times the source, {seconds:.1f} s"
    )


def _file_job(source: Path) -> Job:
    return Job(format_of([source.name]), str(source), (_hashed(source, str(source)),))


def _checkpoint_job(source: Path, quantize: Quantization | None) -> Job:
    from weightpkg.formats.checkpoint import Checkpoint

    with files.mapped(source):
        found = Checkpoint.find(source).files
    sources = tuple(_hashed(path, name) for name, path in found.items())
    return Job("safetensors", str(source), sources, quantize)


def _hashed(path: Path, name: str) -> SourceFile:
    with files.mapped(path):
        known = fingerprint_file(path)
    return SourceFile(path, known.sha256, name, known.blake3)
