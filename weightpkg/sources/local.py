"""`file:` sources: a file of this machine, relative to the index that names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from weightpkg.errors import FetchError
from weightpkg.package import FileSource
from weightpkg.sources import Stream

_PIECE_SIZE = 256 * 1024


class LocalOpener:
    """Opens files relative to `root`, the directory of the index; absolute paths as they are."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, source: FileSource) -> Iterator[Stream]:
        """Open the file.

        Raises:
            FetchError: it is not there, not readable, or no regular file.
        """
        path = self._root / source.path
        try:
            # opening a pipe would wait for its writer, so look first
            if not stat.S_ISREG(path.stat().st_mode):
                raise FetchError(f"`{path}`: not a regular file")
            file = path.open("rb")
        except (OSError, ValueError) as error:
            raise _error(path, error) from error
        with file:
            yield Stream(os.fstat(file.fileno()).st_size, _pieces(path, file))


def _pieces(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := file.read(_PIECE_SIZE):
            yield piece
    except OSError as error:
        raise _error(path, error) from error


def _error(path: Path, error: OSError | ValueError) -> FetchError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FetchError(f"`{path}`: {reason}")
