"""Files of a mirror whose bytes are checked before they are sent.

A file whose digest is known is checked in chunks of 4 MiB by BLAKE3, each right before it goes out,
so that of a damaged file neither the damaged chunk nor what follows it is ever sent. The list of
chunks lies beside a blob; where it does not, it is made once, of bytes whose digest was right.

Files are opened part by part of their path below the mirror's directory and no link is followed, so
nothing outside is ever read.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock, local

from blake3 import blake3

from weightpkg.digest import CHUNK_SIZE, Digest, Hasher
from weightpkg.errors import DocumentError, StoreError
from weightpkg.package import RelativePath
from weightpkg.store import Store

READ_SIZE = 256 * 1024  # stays in a core's cache between reading and hashing
_MAX_LISTS = 1024  # of chunks, kept in memory: 160 kB for each 10 GB
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_HAS_DIR_FD = os.open in os.supports_dir_fd
Identity = tuple[int, int, int, int, int]
_Key = tuple[Digest, Identity]


class DamagedError(Exception):
    """Bytes of the mirror are not what they should be; says where."""


class CheckedFile:
    """An open file, and what its chunks should be; None where nothing is known of it."""

    def __init__(self, descriptor: int, path: str, chunks: tuple[str, ...] | None) -> None:
        self.descriptor = descriptor
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._chunks = chunks

    @property
    def state(self) -> str:
        """What changes when the file does, as a validator of bytes whose digest is not known."""
        return "-".join(f"{number:x}" for number in _identity(self.descriptor)[1:])

    def check(self, i: int) -> None:
        """Read a chunk, and raise DamagedError unless it is what it should be."""
        if self._chunks is None:
            return
        expected = self._chunks[i] if i < len(self._chunks) else ""
        if _hash_chunk(self.descriptor, i) != expected:
            raise DamagedError(f"`{self.path}`: chunk {i} at byte {i * CHUNK_SIZE:,} is damaged")

    def read(self, start: int, size: int) -> bytes:
        """Return bytes; DamagedError where the file has become shorter."""
        with memoryview(bytearray(size)) as view:
            found = bytes(view[: _read_at(self.descriptor, view, start)])
        if not found:
            raise DamagedError(f"`{self.path}`: ends at byte {start:,}, and should not")
        return found

    def read_whole(self) -> bytes:
        """Return all bytes of a file that is small, checked; DamagedError where they are not right."""
        for i in range(-(-self.size // CHUNK_SIZE)):
            self.check(i)
        content = b""
        while len(content) < self.size:
            content += self.read(len(content), self.size - len(content))
        return content

    def close(self) -> None:
        """Close it; it may be closed already."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _hash_chunk(descriptor: int, i: int) -> str:
    hasher, start, end = blake3(), i * CHUNK_SIZE, (i + 1) * CHUNK_SIZE
    view = _buffers.view
    while start < end and (size := _read_at(descriptor, view, start)):
        hasher.update(view[:size])
        start += size
    return hasher.hexdigest()


class _Buffers(local):
    """Room for each thread, which begins on a page boundary: copies to elsewhere are slower."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, READ_SIZE))


_buffers = _Buffers()


if hasattr(os, "preadv"):

    def _read_at(descriptor: int, view: memoryview, start: int) -> int:
        return os.preadv(descriptor, [view], start)

else:
    _SEEKING = Lock()

    def _read_at(descriptor: int, view: memoryview, start: int) -> int:
        with _SEEKING:  # a descriptor has one place, and two threads read it
            os.lseek(descriptor, start, os.SEEK_SET)
            found = os.read(descriptor, len(view))
        view[: len(found)] = found
        return len(found)


class Shelf:
    """Opens files below a mirror's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lists: OrderedDict[_Key, tuple[str, ...]] = OrderedDict()
        self._lock = Lock()
        self._hashing = Lock()  # one file at a time: a second one would only wait for the disk

    def open(self, path: RelativePath, digest: Digest | None = None) -> CheckedFile:
        """Open a file.

        Args:
            path: where it is below the mirror's directory.
            digest: of all that it should be; it goes out unchecked where that is not known.

        Raises:
            FileNotFoundError: there is no such regular file.
            DamagedError: it is not what it should be, as far as that can be told already.
            OSError: as the system gives it.
        """
        descriptor = _open_below(self.root, path.text)
        try:
            chunks = None if digest is None else self._chunks(descriptor, path.text, digest)
            return CheckedFile(descriptor, path.text, chunks)
        except BaseException:
            os.close(descriptor)
            raise

    def _chunks(self, descriptor: int, path: str, digest: Digest) -> tuple[str, ...]:
        key = digest, _identity(descriptor)
        with self._lock:
            if key in self._lists:
                self._lists.move_to_end(key)
                return self._lists[key]
        chunks = self._listed(descriptor, path, digest) or self._hashed(descriptor, path, key)
        with self._lock:
            self._lists[key] = chunks
            while len(self._lists) > _MAX_LISTS:
                self._lists.popitem(last=False)
        return chunks

    def _listed(self, descriptor: int, path: str, digest: Digest) -> tuple[str, ...] | None:
        """Return the list that lies beside a file; None where there is no sound one."""
        found = None
        with suppress(OSError, DocumentError):
            found = Store.read_chunks(self.root / f"{path}.chunks")
        if found is None or digest not in {found.sha256, found.blake3}:
            return None
        size = os.fstat(descriptor).st_size
        if size != found.size:
            raise DamagedError(f"`{path}`: expected {found.size:,} bytes, found {size:,}")
        return found.chunks

    def _hashed(self, descriptor: int, path: str, key: _Key) -> tuple[str, ...]:
        with self._hashing:
            if key in self._lists:
                return self._lists[key]
            hasher, start = Hasher(), 0
            while size := _read_at(descriptor, _buffers.view, start):
                hasher.update(_buffers.view[:size])
                start += size
            found = hasher.finish()
            if key[0] not in {found.sha256, found.blake3}:
                raise DamagedError(f"`{path}`: is not what it should be, {key[0]}")
            return found.chunks


def _identity(descriptor: int) -> Identity:
    """Return what changes when a file does."""
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _open_below(root: Path, path: str) -> int:
    if not _HAS_DIR_FD:
        return _regular(_open_in_place(root, path), path)
    *folders, name = path.split("/")
    folder = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        for each in folders:
            inner = _open_link_free(each, folder, getattr(os, "O_DIRECTORY", 0), path)
            os.close(folder)
            folder = inner
        # no waiting for somebody to write where the name is a pipe's
        return _regular(_open_link_free(name, folder, getattr(os, "O_NONBLOCK", 0), path), path)
    finally:
        os.close(folder)


def _open_link_free(name: str, folder: int, flags: int, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | _NO_LINK | flags, dir_fd=folder)
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno in _EXHAUSTED:
            raise
        raise FileNotFoundError(path) from error


# not the same as that there is no such file
_EXHAUSTED = {errno.EIO, errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.ESTALE}


def _open_in_place(root: Path, path: str) -> int:
    """Open a file where the system opens by whole paths alone (Windows)."""
    whole = root
    for part in path.split("/"):
        whole /= part
        if whole.is_symlink():
            raise FileNotFoundError(path)
    return os.open(whole, os.O_RDONLY | _NO_LINK)


def _regular(descriptor: int, path: str) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor


def check_directory(root: Path) -> None:
    """Raise StoreError unless there is a directory that may be a mirror."""
    if not root.is_dir():
        raise StoreError(
            f"`{root}` is no directory", hint="`weightpkg mirror create DIR` makes one"
        )
