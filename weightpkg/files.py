"""Durable changes to files: the only module that renames, syncs, locks and removes.

A file appears under its name complete or not at all: it is written beside its place, synced,
renamed, and then its directory is synced. Every OSError becomes one `StoreError` that names the path
and says what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from weightpkg.errors import StoreError

_ELSEWHERE = "set WEIGHTPKG_HOME to a directory that you may write to"
_ROOM = "`weightpkg cache size` shows what takes the space; WEIGHTPKG_HOME can be on another disk"
_REASONS = {
    errno.ENOSPC: ("no space left on the disk", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("the file is larger than this system allows", _ROOM),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("permission denied", _ELSEWHERE),
    errno.EROFS: ("the disk is read-only", _ELSEWHERE),
    errno.ENOTDIR: ("a file is where a directory should be", _ELSEWHERE),
    errno.EIO: ("the disk reports an error", "check the disk; nothing that was complete is lost"),
}


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
        raise StoreError(f"`{path}`: {reason}", hint=hint) from error


def make_directory(path: Path) -> Path:
    """Make a directory and its parents; return it."""
    with mapped(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class NewFile:
    """A file being written beside its place; gone at the end of the `with` unless published."""

    def __init__(self, directory: Path) -> None:
        """Create it in `directory`, on the same disk as its place."""
        make_directory(directory)
        with mapped(directory):
            self._descriptor, name = tempfile.mkstemp(dir=directory)
        self.path = Path(name)

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of the bytes, however few the system takes at a time."""
        rest = memoryview(data)
        with mapped(self.path):
            while rest.nbytes:
                rest = rest[os.write(self._descriptor, rest) :]

    def publish(self, path: Path, *, mode: int = 0o444) -> None:
        """Make the file durable, and give it its name, in place of whatever had it."""
        make_directory(path.parent)
        with mapped(path):
            if hasattr(os, "fchmod"):
                os.fchmod(self._descriptor, mode)
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.replace(path)
            sync_directory(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.path.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, *, temporary: Path, mode: int = 0o644) -> None:
    """Write a small file, in place of whatever had its name.

    Args:
        path: its name.
        content: all of it.
        temporary: a directory on the same disk, where it is until it is complete.
        mode: its permissions.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    with NewFile(temporary) as new:
        new.write(content)
        new.publish(path, mode=mode)


def publish_directory(new: Path, path: Path) -> None:
    """Make every file in `new` read-only and durable, and rename `new` to `path`.

    Where `path` is there already, someone else was faster with the same content: `new` is removed.
    """
    make_directory(path.parent)
    with mapped(path):
        for file in sorted(new.rglob("*")):
            if file.is_file():
                file.chmod(0o444)
                _sync(file)
        sync_directory(new)
        new.chmod(0o755)
        try:
            new.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(new)
        sync_directory(path.parent)


@contextmanager
def new_directory(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Enter an empty directory that becomes `path` when nothing was raised, and else vanishes.

    Args:
        path: its name to be.
        temporary: where it is until then, on the same disk; beside `path` if not given.
    """
    parent = make_directory(temporary or path.absolute().parent)
    with (
        mapped(path),
        tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as name,
    ):
        new = Path(name) / "new"
        new.mkdir()
        yield new
        publish_directory(new, path)


def remove(path: Path, *, trash: Path) -> int:
    """Remove a file or a directory, if it is there; return the bytes that this freed.

    It loses its name by one rename, so that nobody ever sees half of it.
    """
    with mapped(path):
        if not path.exists():
            return 0
        size = tree_size(path)
        make_directory(trash)
        doomed = Path(tempfile.mkdtemp(dir=trash)) / path.name
        path.rename(doomed)
        sync_directory(path.parent)
        shutil.rmtree(doomed.parent)
        return size


def tree_size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what vanishes meanwhile is not counted."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):
            total += file.lstat().st_size if file.is_file() else 0
    return total


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if os.name != "nt":  # Windows has no such call, and needs none
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system lets it go when a process ends, however it ends."""
    from filelock import FileLock  # noqa: PLC0415  slow to import, and only writers lock

    make_directory(path.parent)
    with mapped(path), FileLock(path):
        yield


def sweep(directory: Path, *, older_than: float) -> None:
    """Remove what killed processes left in a directory of temporary files.

    Args:
        directory: of entries that are nobody's after a while.
        older_than: remove what was last changed before this time (seconds since the epoch).
    """
    if not directory.is_dir():
        return
    with mapped(directory):
        for entry in directory.iterdir():
            with suppress(FileNotFoundError):
                if entry.lstat().st_mtime < older_than:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
