"""Texts that commands are given: as arguments, in files, and on standard input, one a line; and files for answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from weightpkg.errors import RunError

MAX_LINE = 16 * 1024 * 1024
"""Bytes; a text has at most four million characters."""

_WINDOW = 4096


def texts_of(arguments: Sequence[str], files: Sequence[Path]) -> Iterator[str]:
    """Yield texts: the arguments, then the lines of files, or else those of standard input.

    Raises:
        RunError: a file cannot be read, or a line is not UTF-8 or too long.
    """
    yield from arguments
    for path in files:
        try:
            with path.open("rb") as stream:
                yield from _lines(stream, f"`{path}`")
        except OSError as error:
            raise RunError(f"`{path}` cannot be read: {error.strerror}") from error
    if not arguments and not files:
        yield from _lines(sys.stdin.buffer, "standard input")


def read_stdin() -> str:
    """Return all of standard input.

    Raises:
        RunError: it is not UTF-8.
    """
    content = sys.stdin.buffer.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RunError(f"standard input is not UTF-8 at byte {error.start:,}") from error


def windows(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield texts many at a time, behind the number of the first: so they need not all be in memory."""
    rest, first = iter(texts), 1
    while window := list(islice(rest, _WINDOW)):
        yield first, window
        first += len(window)


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file that is whole or not there.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    from weightpkg.files import NewFile

    with NewFile(path.parent) as new:
        for piece in pieces:
            new.write(piece)
        new.publish(path, mode=0o644)


def _lines(stream: IO[bytes], name: str) -> Iterator[str]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise RunError(f"line {number:,} of {name} has more than {MAX_LINE:,} bytes")
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            where = f"line {number:,} of {name}"
            raise RunError(f"{where} is not UTF-8 at its byte {error.start:,}") from error
