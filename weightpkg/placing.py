"""A file in a second place, without a second copy of its bytes where the disk can do that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from weightpkg import files


def place_files(sources: Mapping[str, Path], names: Collection[str], directory: Path) -> None:
    """Put files of a model into a new directory, which must not change from then on.

    Args:
        sources: where they are, by their names in the model.
        names: which of them; those in folders are passed over, as others make what is in there.
        directory: where they are to be.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    for name, path in sources.items():
        if name in names and "/" not in name:
            place_file(path, directory / name)


def place_file(source: Path, target: Path) -> None:
    """Clone a file; where the disk cannot, make a hard link; where that cannot be, copy it.

    A clone is a file of its own that shares its blocks until one of the two is changed. A link is
    the same file: whoever changes it changes both.

    Raises:
        StoreError: the disk is full, or may not be written, or the target is there.
    """
    with files.mapped(source):
        source = source.resolve(strict=True)
    for attempt in (files.disk.reflink, files.disk.link):
        try:
            attempt(source, target)
        except OSError:
            continue
        return
    import shutil  # noqa: PLC0415  slow to import, and seldom needed

    with files.mapped(target), source.open("rb") as stream, target.open("xb") as copy:
        shutil.copyfileobj(stream, copy)
