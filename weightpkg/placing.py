"""A file in a second place, without a second copy of its bytes where the disk can do that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weightpkg import files


def place_file(source: Path, target: Path) -> None:
    """Clone a file; where the disk cannot, make a hard link; where that cannot be, copy it.

    A clone is a file of its own that shares its blocks until one of the two is changed. A link is
    the same file: whoever changes it changes both.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    from reflink_copy import reflink  # noqa: PLC0415  only conversions of checkpoints place files

    source = source.resolve()
    for attempt in (reflink, os.link):
        try:
            attempt(source, target)
        except OSError:
            continue
        return
    with files.mapped(target):
        shutil.copyfile(source, target)


@contextmanager
def kept_modes(paths: Iterable[Path]) -> Iterator[None]:
    """Give files the permissions again that they had, as a link's are its file's."""
    modes = {path: path.stat().st_mode for path in paths}
    try:
        yield
    finally:
        for path, mode in modes.items():
            if path.stat().st_mode != mode:
                path.chmod(mode)
