"""Durable changes to files: the only module that renames, syncs, locks and removes.

A file appears under its name complete or not at all: it is written beside its place, synced,
renamed, and then its directory is synced; a new directory is synced into its parent before
anything in it counts. Every OSError becomes one `StoreError` that names the path and says what to
do. What an error or a kill leaves lies in directories that are swept.

All calls that change a disk go through `disk`, so that tests can record them, let the nth one
fail, or end the process there.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from weightpkg.errors import StoreError

_ELSEWHERE = "set WEIGHTPKG_HOME to a directory that you may write to"
_ROOM = "`weightpkg gc` frees what is not needed; WEIGHTPKG_HOME can be on another disk"
_REASONS = {
    errno.ENOSPC: ("no space left on the disk", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("the file is larger than this system allows", _ROOM),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("permission denied", _ELSEWHERE),
    errno.EROFS: ("the disk is read-only", _ELSEWHERE),
    errno.ENOTDIR: ("a file is where a directory should be", _ELSEWHERE),
    errno.EXDEV: ("the store is on more than one disk", _ELSEWHERE),
    errno.EIO: ("the disk reports an error", "check the disk; nothing that was complete is lost"),
    errno.EMFILE: ("too many files are open", "raise the limit: `ulimit -n 4096`"),
}
_READ_ONLY = 0o444
_POLL_S = 0.01


class Disk:
    """The system's calls that change a disk, as they are."""

    def create(self, path: Path) -> int:
        """Open a new file for reading and writing; it must not be there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600)

    def open(self, path: Path) -> int:
        """Open a file for reading and writing, an empty one where there is none."""
        return os.open(path, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the bytes at the file's position; return how many."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        """Set a file's size."""
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        """Make the content of an open file durable, or the names in an open directory."""
        os.fsync(descriptor)

    def chmod(self, path: Path, mode: int) -> None:
        """Set permissions."""
        path.chmod(mode)

    def rename(self, path: Path, new: Path) -> None:
        """Give a file or directory another name, in place of a file that has it."""
        path.replace(new)

    def link(self, path: Path, new: Path) -> None:
        """Give a file a second name."""
        os.link(path, new)

    def reflink(self, path: Path, new: Path) -> None:
        """Make a copy that shares its blocks; OSError where the disk has no such thing."""
        from reflink_copy import reflink  # noqa: PLC0415  rarely needed

        reflink(str(path), str(new))

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        path.mkdir()

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def touch(self, path: Path, time_s: float) -> None:
        """Set the times of a file or directory."""
        os.utime(path, (time_s, time_s))


# a name that someone made a symbolic link of is never followed; O_BINARY is Windows'
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
disk = Disk()


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
        raise StoreError(f"`{path}`: {reason}", hint=hint) from error


def make_directory(path: Path, *, is_durable: bool = True) -> Path:
    """Make a directory and its parents; return it.

    Args:
        path: the directory.
        is_durable: False for one whose content nobody misses after a power cut.
    """
    with mapped(path):
        _make_directory(path, is_durable=is_durable)
    return path


def _make_directory(path: Path, *, is_durable: bool) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent, is_durable=is_durable)
    try:
        disk.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    if is_durable:
        sync_directory(path.parent)


def flush(descriptor: int) -> None:
    """Have the disk take what was written to an open file, as far as it can; nothing depends on it."""
    with suppress(OSError):
        getattr(os, "fdatasync", os.fsync)(descriptor)


class OpenFile:
    """A file that is written in any order, and can be published under its final name."""

    def __init__(self, path: Path, descriptor: int, *, is_shared: bool = False) -> None:
        self.path = path
        self._descriptor = descriptor
        self._is_shared = is_shared
        self._position = 0

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        """Write all of the bytes at a place, however few the system takes at a time."""
        rest = memoryview(data)
        with mapped(self.path):
            if offset != self._position:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
            self._position = -1  # unknown, until all is written
            while rest.nbytes:
                rest = rest[disk.write(self._descriptor, rest) :]
            self._position = offset + memoryview(data).nbytes

    def truncate(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros."""
        with mapped(self.path):
            disk.truncate(self._descriptor, size)

    def publish(self, path: Path, *, mode: int = _READ_ONLY, is_name_durable: bool = True) -> None:
        """Make the file durable, and give it its name, in place of whatever had it.

        Args:
            path: its name.
            mode: its permissions.
            is_name_durable: False if another file of the directory is published right after it.
        """
        make_directory(path.parent)
        with mapped(path):
            if not self._is_shared:
                disk.chmod(self.path, mode)
            disk.fsync(self._descriptor)
            self.close()
            disk.rename(self.path, path)
            if is_name_durable:
                sync_directory(path.parent)

    def close(self) -> None:
        """Close the file; it stays under its present name."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewFile(OpenFile):
    """A file being written beside its place; gone at the end of the `with` unless published."""

    def __init__(self, directory: Path) -> None:
        """Create it in `directory`, on the same disk as its place."""
        path = make_directory(directory, is_durable=False) / unique_name()
        with mapped(path):
            super().__init__(path, disk.create(path))
        self._size = 0

    def write(self, data: bytes | memoryview, /) -> None:
        """Write at the end."""
        self.write_at(self._size, data)
        self._size += memoryview(data).nbytes

    def __exit__(self, *_: object) -> None:
        self.close()
        with suppress(OSError):  # what stays is swept
            if self.path.exists():
                disk.unlink(self.path)


def keep_file(path: Path) -> OpenFile:
    """Open a file that stays where it is until it is published; made where there is none."""
    make_directory(path.parent, is_durable=False)
    with mapped(path):
        return OpenFile(path, disk.open(path))


def write_file(
    path: Path,
    content: bytes,
    *,
    temporary: Path,
    mode: int = 0o644,
    is_name_durable: bool = True,
) -> None:
    """Write a small file, in place of whatever had its name.

    Args:
        path: its name.
        content: all of it.
        temporary: a directory on the same disk, where it is until it is complete.
        mode: its permissions.
        is_name_durable: False if another file of the directory is published right after it.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    with NewFile(temporary) as new:
        new.write(content)
        new.publish(path, mode=mode, is_name_durable=is_name_durable)


def publish_directory(new: Path, path: Path) -> None:
    """Make every file in `new` read-only and durable, and rename `new` to `path`.

    A file that has other names has the permissions that these want.

    Where `path` is there already, someone else was faster with the same content, and `new` stays.
    """
    make_directory(path.parent)
    with mapped(path):
        for file in sorted(new.rglob("*")):
            if file.is_file() and file.lstat().st_nlink == 1:
                disk.chmod(file, _READ_ONLY)
            _sync(file)
        _sync(new)
        try:
            disk.rename(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_directory(path.parent)


@contextmanager
def new_directory(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Enter an empty directory that becomes `path` when nothing was raised, and else vanishes.

    Args:
        path: its name to be.
        temporary: where it is until then, on the same disk; beside `path` if not given.
    """
    with scratch_directory(temporary or path.absolute().parent) as new, mapped(path):
        yield new
        publish_directory(new, path)


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Enter an empty directory that vanishes at the end, if it has not become something else."""
    path = make_directory(parent, is_durable=False) / unique_name()
    with mapped(path):
        disk.mkdir(path)
        disk.chmod(path, 0o755)
    try:
        with mapped(path):
            yield path
    finally:
        with suppress(OSError):  # what stays is swept
            _remove_tree(path)


def remove(path: Path, *, trash: Path, is_durable: bool) -> int:
    """Remove a file or a directory, if it is there; return the bytes that this freed.

    It loses its name by one rename, so that nobody ever sees half of it.

    Args:
        path: the file or directory.
        trash: a directory on the same disk, where it is until all of it is removed.
        is_durable: whether it must not come back after a power cut.
    """
    doomed = make_directory(trash, is_durable=False) / unique_name()
    with mapped(path):
        size = own_size(path)
        try:
            disk.rename(path, doomed)
        except FileNotFoundError:  # it was not there, or someone else was faster
            return 0
        if is_durable:
            sync_directory(path.parent)
    with suppress(OSError):  # it is out of the way, and what stays is swept
        _remove_tree(doomed)
    return size


def discard(path: Path) -> None:
    """Remove a file that nobody needs, if it is there and the disk lets us."""
    with suppress(OSError):
        disk.unlink(path)


def _remove_tree(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError):
            disk.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        _remove_tree(entry)
    disk.rmdir(path)


def replace_files(fresh: Path, names: Iterable[Path], directory: Path) -> None:
    """Give files of a fresh directory their places in another one, each by one rename.

    Args:
        fresh: where they are.
        names: their names, relative to it.
        directory: where they go, in place of files that have their names.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    parents = {directory}
    for name in names:
        place = directory / name
        make_directory(place.parent)
        with mapped(place):
            if (fresh / name).lstat().st_nlink == 1:
                disk.chmod(fresh / name, _READ_ONLY)
            _sync(fresh / name)
            disk.rename(fresh / name, place)
        parents.add(place.parent)
    for parent in sorted(parents):
        with mapped(parent):
            sync_directory(parent)


def replace_cache(fresh: Path, path: Path) -> None:
    """Give a file that can be made again its place; after a power cut it may be the old one.

    Raises:
        StoreError: the disk may not be written.
    """
    with mapped(path):
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            flush(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(fresh, path)


def set_aside(path: Path, directory: Path, *, keep_name: bool) -> None:
    """Have something bad in a directory of bad things.

    Args:
        path: the thing.
        directory: where it goes.
        keep_name: have a file under its old name as well, until something takes that.
    """
    new = make_directory(directory, is_durable=False) / f"{unique_name()}-{path.name}"
    with mapped(path):
        if keep_name and path.is_file() and not path.is_symlink():
            disk.link(path, new)
        else:
            disk.rename(path, new)


def take(path: Path, directory: Path, *, allow_hardlink: bool) -> Path | None:
    """Have another tool's file in `directory` without copying its bytes, if the disk can.

    It shares the blocks, or else, where that is allowed, the whole file.

    Returns:
        The new name; None where the bytes must be copied.
    """
    new = make_directory(directory, is_durable=False) / unique_name()
    with suppress(OSError, ValueError):
        disk.reflink(path, new)
        return new
    with suppress(OSError):
        _remove_tree(new)
    if allow_hardlink:
        with suppress(OSError):
            disk.link(path, new)
            return new
    return None


@contextmanager
def taken(path: Path) -> Iterator[OpenFile]:
    """Open what `take` made, to be published; it is gone at the end of the `with` otherwise.

    A hard link keeps the permissions of the file that it is.
    """
    with mapped(path):
        file = OpenFile(
            path, os.open(path, os.O_RDONLY | _PLAIN), is_shared=path.stat().st_nlink > 1
        )
    try:
        yield file
    finally:
        file.close()
        with suppress(OSError):  # what stays is swept
            if os.path.lexists(path):
                disk.unlink(path)


def set_mode(path: Path, mode: int) -> None:
    """Set a file's permissions."""
    with mapped(path):
        disk.chmod(path, mode)


def touch(path: Path, time_s: float) -> None:
    """Set the time of a file's last use, if the disk lets us; it is not worth an error."""
    with suppress(OSError):
        disk.touch(path, time_s)


def tree_size(*paths: Path) -> int:
    """Bytes of files, and of all files below directories; one that has several names counts once.

    What vanishes meanwhile is not counted.
    """
    sizes = {
        (entry.st_dev, entry.st_ino) if entry.st_nlink > 1 else file: entry.st_size
        for path in paths
        for file, entry in walk(path)
    }
    return sum(sizes.values())


def own_size(path: Path) -> int:
    """Bytes of what has no other name elsewhere: what removing it frees."""
    return sum(entry.st_size for _, entry in walk(path) if entry.st_nlink == 1)


def walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each regular file at or below a path with what the system knows of it."""
    for file in [path, *_below(path)]:
        with suppress(FileNotFoundError, NotADirectoryError):
            entry = file.lstat()
            if stat.S_ISREG(entry.st_mode):
                yield file, entry


def _below(directory: Path) -> Iterator[Path]:
    """Yield what is below a directory, links not followed, as far as it is there still."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(directory.iterdir()):
            yield entry
            if entry.is_dir() and not entry.is_symlink():
                yield from _below(entry)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if os.name != "nt":  # Windows has no such call, and needs none
        _sync(path)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(
    path: Path, *, shared: bool = False, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold a lock between processes; the system lets it go when a process ends, however it ends.

    Args:
        path: its file, which stays.
        shared: let others in who share it too, and keep out who wants it alone.
        on_wait: called once if someone else has it.
    """
    with _lock_file(path) as descriptor:
        with mapped(path):
            if not _try_lock(descriptor, shared=shared, blocking=False):
                on_wait()
                _try_lock(descriptor, shared=shared, blocking=True)
        yield


@contextmanager
def try_lock(path: Path, *, timeout_s: float = 0.0) -> Iterator[bool]:
    """Enter with True and the lock alone, or with False where anyone else has it for so long."""
    end = time.monotonic() + timeout_s
    with _lock_file(path) as descriptor:
        with mapped(path):
            while not (is_mine := _try_lock(descriptor, shared=False, blocking=False)):
                if time.monotonic() >= end:
                    break
                time.sleep(_POLL_S)
        yield is_mine


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    make_directory(path.parent, is_durable=False)
    with mapped(path):
        descriptor = disk.open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, *, shared: bool, blocking: bool) -> bool:
    if shared and os.name != "nt":
        import fcntl  # noqa: PLC0415  not on Windows

        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if blocking else fcntl.LOCK_NB))
            return True
        return False
    # where locks cannot be shared, users of the store take turns
    from filelock import lock_descriptor  # noqa: PLC0415  slow to import, and only writers lock

    return lock_descriptor(descriptor, blocking=blocking, poll_interval=_POLL_S)


def sweep(directory: Path, *, older_than: float) -> int:
    """Remove what killed processes left in a directory of temporary files; return the bytes freed.

    Args:
        directory: of entries that are nobody's after a while.
        older_than: remove what was last changed before this time (seconds since the epoch).
    """
    freed = 0
    if not directory.is_dir():
        return 0
    with mapped(directory):
        for entry in sorted(directory.iterdir()):
            with suppress(OSError):  # someone else sweeps too, or the next sweep does
                if entry.lstat().st_mtime < older_than:
                    size = tree_size(entry)
                    _remove_tree(entry)
                    freed += size
    return freed


def unique_name() -> str:
    """Return a file name that nobody else has."""
    return f"{os.getpid()}-{os.urandom(8).hex()}"
