"""Files mapped into memory, which does not grow with them; they must not shrink while they are open."""

from __future__ import annotations

import mmap
import stat
import sys
from pathlib import Path

from weightpkg.errors import FormatError

# Linux maps more than the page that is touched, as much as a large folio of its cache: the last pages
# of what was forgotten come back with the first ones after them, and memory would grow with the number
# of pieces (58 MB for a file of 1.5 GB; forgotten from a multiple of 2 MiB on, nothing).
_AROUND = max(2 * 1024 * 1024, mmap.PAGESIZE)

HINT_FETCH = "the file may not have been downloaded to its end"


def map_file(path: Path, name: str, error: type[FormatError]) -> mmap.mmap:
    """Map a whole file, read-only.

    Args:
        path: a regular file.
        name: what to call it in errors.
        error: what to raise, with the file's name, a place and a reason.

    Raises:
        FormatError: of the class `error`: it is not a regular file, is empty, or cannot be read.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for a writer
            raise error(name, "file", "is not a regular file")
        if not info.st_size:  # nothing cannot be mapped
            raise error(name, "file", "is empty", hint=HINT_FETCH)
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as cause:
        reason = cause.strerror or str(cause)
        raise error(name, "file", f"cannot be read: {reason}") from cause


def forget(content: mmap.mmap, start: int, stop: int) -> None:
    """Say that bytes are done with, so that they no longer count as this process's memory.

    Arrays of them stay valid: they are read from the file again.
    """
    if sys.platform != "win32" and start < stop:
        start -= start % _AROUND
        content.madvise(mmap.MADV_DONTNEED, start, stop - start)
