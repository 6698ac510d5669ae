"""`file:` sources: a file of this machine, relative to the index that names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from weightpkg.errors import FetchError
from weightpkg.package import FileSource
from weightpkg.sources import PIECE_SIZE, Content, Pieces


class LocalFile:
    """An open file of this machine as `Content`."""

    has_ranges = True
    n_busy = 0

    def __init__(self, file: BinaryIO, name: str) -> None:
        entry = os.fstat(file.fileno())
        self._file = file
        self._lock = Lock()
        self.name = name
        self.size: int | None = entry.st_size
        self.validator: str | None = f"{entry.st_mtime_ns}-{entry.st_ino}"

    def stream(self, start: int, end: int | None = None) -> Pieces:
        """Yield a range; `FetchError` where the system cannot read it, or it has grown shorter."""
        stop = (self.size or 0) if end is None else end
        while start < stop:
            try:
                with self._lock:
                    self._file.seek(start)
                    piece = self._file.read(min(PIECE_SIZE, stop - start))
            except ValueError as error:  # nobody wants the rest any more
                raise FetchError(f"`{self.name}`: it was closed") from error
            except OSError as error:
                raise FetchError(f"`{self.name}`: {error.strerror}") from error
            if not piece:
                raise FetchError(f"`{self.name}`: ends after {start:,} bytes")
            start += len(piece)
            yield piece


class LocalOpener:
    """Opens files relative to `root`, the directory of the index; absolute paths as they are."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, source: FileSource, *_: int | None) -> Iterator[Content]:
        """Open the file, wherever it will be read.

        Raises:
            FetchError: it is not there, not readable, or no regular file.
        """
        with open_file(self._root / source.path) as file:
            yield file


@contextmanager
def open_file(path: Path) -> Iterator[LocalFile]:
    """Open a regular file.

    Raises:
        FetchError: it is not there, not readable, or no regular file.
    """
    try:
        # opening a pipe would wait for its writer, so look first
        if not stat.S_ISREG(path.stat().st_mode):
            raise FetchError(f"`{path}`: not a regular file")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FetchError(f"`{path}`: {reason}") from error
    with file:
        yield LocalFile(file, str(path))
