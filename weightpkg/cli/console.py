"""What a person sees while something takes long, and sizes and tables as people read them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import click

from weightpkg.progress import Advance, Progress, Silence


def make_progress(*, quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing if that is wanted."""
    if quiet:
        return Silence()
    return Bars() if sys.stderr.isatty() else Lines()


class Lines:
    """A line at the end of each task, for logs."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:  # noqa: ARG002  a line shows what came
        """Say what was done when it is done."""
        return _line(description)

    def note(self, message: str) -> None:
        """Say it."""
        click.echo(message, err=True)


class Bars(Lines):
    """A bar with bytes, speed and time left for each task."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Show a bar until it is done."""
        return _bar(description, total)


@contextmanager
def _line(description: str) -> Iterator[Advance]:
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size

    start = time.perf_counter()
    yield advance
    seconds = time.perf_counter() - start
    click.echo(f"{description}: {format_size(done)} in {seconds:.1f} s", err=True)


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda size: progress.advance(task, size)


def format_size(size: int | None) -> str:
    """Return bytes in decimal units, as downloads are counted.

    >>> format_size(98_362_432)
    '98.4 MB'
    """
    if size is None:
        return "unknown size"
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def print_json(value: object) -> None:
    """Print a value for programs."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
