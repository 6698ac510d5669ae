"""`weightpkg convert`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg import files
from weightpkg.cli.console import format_size, make_progress, print_json, print_table
from weightpkg.convert import Job, Quantization, SourceFile, child, format_of
from weightpkg.digest import fingerprint_file
from weightpkg.errors import StoreError
from weightpkg.placing import place_files
from weightpkg.progress import Progress

if TYPE_CHECKING:
    from weightpkg.convert.directory import Conversion
    from weightpkg.convert.plan import Part, Plan

Look = Callable[[Path, str], SourceFile]
"""Takes a file and its name in the model."""


@click.command("convert")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new directory.")
@click.option(
    "--quantize",
    type=click.Choice(["q4", "q8"]),
    help="Make blocks of 4 or 8 bits of a checkpoint's dense matrices.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what each type of tensor becomes, and write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    source: Path,
    output: Path | None,
    quantize: Quantization | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a model that no index names to an ONNX model directory.

    SOURCE is a GGUF file, an ONNX model, which is checked and stays as it is, or a directory of
    safetensors and what belongs to them (config.json, tokenizer.json, ...) as Hugging Face's
    libraries write it. Weights in float32 are not copied: the model directory has a clone of their
    file, or where the disk cannot make one a hard link to it.

    What becomes of each type of tensor, and how exactly, is printed at the end.
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if output is not None and output.exists():
        raise StoreError(f"`{output}` is there already", hint="name a new directory")
    is_checkpoint = source.is_dir() or source.suffix in {".safetensors", ".json"}
    if quantize and not is_checkpoint:
        raise click.UsageError("--quantize: only a checkpoint has dense matrices to quantise")
    progress = make_progress(quiet=quiet)
    start = time.perf_counter()
    if is_checkpoint:
        job = _checkpoint_job(source, _not_hashed if dry_run else _hashed, quantize)
    else:
        job = _file_job(source)
    if dry_run or output is None:
        _print_plan(child.plan(job, progress), progress, as_json=as_json)
        return
    with files.new_directory(output) as directory:
        done = child.convert(job, directory, progress)
        place_files({each.name: each.path for each in job.sources}, done.placed, directory)
    if as_json:
        print_json(_fields(done) | {"size": done.size, "directory": str(output)})
    else:
        _print_parts(done.parts)
    ratio = done.size / done.source_size
    seconds = time.perf_counter() - start
    progress.note(
        f"{output}: {done.architecture}, wrote {ratio:.3g} times the source, {seconds:.1f} s"
    )


def _print_plan(plan: Plan, progress: Progress, *, as_json: bool) -> None:
    if as_json:
        print_json(_fields(plan) | {"size": plan.data_size, "memory": plan.memory})
        return
    _print_parts(plan.parts)
    memory = "" if plan.memory is None else f", with about {format_size(plan.memory)} of memory"
    progress.note(
        f"{plan.architecture}: {format_size(plan.source_size)} become "
        f"{format_size(plan.data_size)} of weights{memory}"
    )


def _print_parts(parts: Sequence[Part]) -> None:
    """Print a line for each type of tensor; a model that stays as it is has none."""
    header = ("type", "tensors", "becomes", "weights", "from", "to")
    rows = [
        (
            part.kind,
            str(part.n_tensors),
            part.becomes,
            part.exactness,
            format_size(part.source_size),
            format_size(part.size),
        )
        for part in parts
    ]
    if rows:
        print_table([header, *rows])


def _fields(made: Plan | Conversion) -> dict[str, object]:
    return {
        "architecture": made.architecture,
        "source_size": made.source_size,
        "parts": [asdict(part) for part in made.parts],
    }


def _file_job(source: Path) -> Job:
    return Job(format_of([source.name]), str(source), (_not_hashed(source, str(source)),))


def _checkpoint_job(source: Path, look: Look, quantize: Quantization | None) -> Job:
    from weightpkg.formats.checkpoint import Checkpoint

    with files.mapped(source):
        found = Checkpoint.find(source).files
    sources = tuple(look(path, name) for name, path in found.items())
    return Job("safetensors", str(source), sources, quantize)


def _hashed(path: Path, name: str) -> SourceFile:
    """Hash a file that may become one of the output's."""
    with files.mapped(path):
        known = fingerprint_file(path)
    return SourceFile(path, known.sha256, name, known.blake3)


def _not_hashed(path: Path, name: str) -> SourceFile:
    """Leave it to the conversion: a dry run does without."""
    return SourceFile(path, None, name)
