"""`weightpkg embed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.api import load
from weightpkg.cli.console import make_progress
from weightpkg.cli.texts import texts_of, windows, write_pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@click.command("embed")
@click.argument("name")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-f", "--file", "files", multiple=True, type=click.Path(path_type=Path), help="Texts, one a line.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write .npy, .json or .jsonl.")  # fmt: skip
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each core.")
@click.option("--no-install", is_flag=True, help="Fail if the model is not installed.")
@click.option("--json", "as_json", is_flag=True, help="Print one list of vectors as JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    name: str,
    texts: tuple[str, ...],
    files: tuple[Path, ...],
    output: Path | None,
    threads: int,
    no_install: bool,
    as_json: bool,
) -> None:
    """Make vectors of texts, which lie near each other where texts mean the same.

    Without a TEXT or a file, each line of standard input is one. A vector is printed as a line of JSON;
    a .npy file has them as (texts, dimensions) float32. What is longer than the model reads is cut, and
    said.
    """
    write = _writer(output, as_json=as_json)
    progress = make_progress(quiet=quiet)
    with load(name, task="feature-extraction", allow_install=not no_install, threads=threads, progress=progress) as model:  # fmt: skip
        given = windows(texts_of(texts, files))
        vectors = (model.embed(w, progress=progress, first=first) for first, w in given)
        write(vectors, model.dimensions)


Vectors = Iterable["NDArray[np.float32]"]
Writer = Callable[[Vectors, int], None]


def _writer(output: Path | None, *, as_json: bool) -> Writer:
    """How vectors are written, by the end of the file's name."""
    if output is None:
        return _print_json if as_json else _print_lines
    writers = {".npy": _write_npy, ".json": _write_json, ".jsonl": _write_jsonl}
    if output.suffix not in writers:
        raise click.UsageError(f"`{output}` does not end in {', '.join(writers)}")
    return lambda vectors, width: write_pieces(output, writers[output.suffix](vectors, width))


def _print_lines(vectors: Vectors, width: int) -> None:
    for line in _write_jsonl(vectors, width):
        click.echo(line, nl=False)


def _print_json(vectors: Vectors, width: int) -> None:
    for piece in _write_json(vectors, width):
        click.echo(piece, nl=False)


def _write_jsonl(vectors: Vectors, _: int) -> Iterator[bytes]:
    for window in vectors:
        for vector in window:
            yield f"{_numbers(vector)}\n".encode()


def _write_json(vectors: Vectors, width: int) -> Iterator[bytes]:
    before = "["
    for line in _write_jsonl(vectors, width):
        yield before.encode() + line.rstrip()
        before = ",\n"
    yield b"]\n" if before != "[" else b"[]\n"


def _write_npy(vectors: Vectors, width: int) -> Iterator[bytes]:
    import numpy as np

    from weightpkg.run.tasks.arrays import npy_bytes

    yield npy_bytes(np.concatenate([np.empty((0, width), np.float32), *vectors]))


def _numbers(vector: NDArray[np.float32]) -> str:
    """A vector with as many digits as tell a float32 from its neighbours."""
    return "[" + ", ".join(json.dumps(float(f"{x:.9g}")) for x in vector.tolist()) + "]"
