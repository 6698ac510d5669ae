"""A model directory being written: every byte is hashed on its way, and the manifest closes it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tomli_w
from blake3 import blake3

from weightpkg.convert.plan import Part, Plan
from weightpkg.digest import Digest
from weightpkg.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

MANIFEST = "weightpkg.toml"

# A file is made durable at its end; begun earlier, most of that is done while the rest is made.
_SYNC_SIZE = 128 * 1024 * 1024

# Pieces that wait to be written, beside the one that is: memory is that of so many.
_WAITING = 4


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a conversion wrote."""

    path: str
    size: int
    blake3: Digest


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    architecture: the GGUF name or `model_type`, or `onnx` for what was ONNX already.
    placed: files of the source that belong into the directory as they are; the caller puts them there.
    """

    architecture: str
    source_size: int
    files: tuple[OutputFile, ...]
    placed: frozenset[str] = frozenset()
    parts: tuple[Part, ...] = ()

    @property
    def size(self) -> int:
        """Bytes written."""
        return sum(file.size for file in self.files if file.path not in self.placed)


class HashingFile:
    """A file being written in order."""

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self._hasher = blake3()
        self.size = 0

    def write(self, data: memoryview | bytes, /) -> None:
        """Write all of the bytes, however few the system takes at a time."""
        rest = memoryview(data)
        while rest.nbytes:
            rest = rest[self._stream.write(rest) :]
        self._hasher.update(data)
        self.size += len(data)

    def sync(self) -> None:
        """Have the disk write what it has been given so far."""
        os.fsync(self._stream.fileno())

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest("blake3", self._hasher.hexdigest())


class WritingThread:
    """Writes a file while the next bytes are made: both take about as long.

    One thread only makes bytes: NumPy's many short steps would contend for Python's lock, which
    writing and hashing need but once for a whole piece.
    """

    def __init__(self, file: HashingFile, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._disk = ThreadPoolExecutor(1)
        self._sync: Future[None] | None = None
        self._unsynced = 0

    def write(self, data: memoryview | bytes, /) -> None:
        """Have bytes written, which must not change from then on."""
        self._waiting.append((len(data), self._pool.submit(self._file.write, data)))
        if len(self._waiting) > _WAITING:
            self._await_first()

    def _await_first(self) -> None:
        size, written = self._waiting.popleft()
        written.result()
        self._advance(size)
        self._unsynced += size
        if self._unsynced >= _SYNC_SIZE and (self._sync is None or self._sync.done()):
            self._await_sync()
            self._sync = self._disk.submit(self._file.sync)
            self._unsynced = 0

    def _await_sync(self) -> None:
        if self._sync is not None:
            self._sync.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all is written, if nothing went wrong."""
        with self._disk, self._pool:
            while self._waiting and kind is None:
                self._await_first()
            if kind is None:
                self._await_sync()


class ModelDirectory:
    """Writes files into an empty directory and remembers what they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[OutputFile] = []

    @contextmanager
    def create(
        self, name: str, advance: Callable[[int], None] = lambda _: None
    ) -> Iterator[WritingThread]:
        """Open a new large file, to be written piece by piece."""
        with self._create(name) as file, WritingThread(file, advance) as thread:
            yield thread

    def write(self, name: str, content: bytes) -> None:
        """Write a whole small file."""
        with self._create(name) as file:
            file.write(content)

    @contextmanager
    def _create(self, name: str) -> Iterator[HashingFile]:
        with (self.path / name).open("xb", buffering=0) as stream:
            file = HashingFile(stream)
            yield file
        self._files.append(OutputFile(name, file.size, file.digest))

    def expect(self, file: OutputFile) -> None:
        """Count on a file that the caller of the conversion puts there."""
        self._files.append(file)

    def finish(self, provenance: Mapping[str, object]) -> tuple[OutputFile, ...]:
        """Write the manifest: where the model comes from, and every file; return the files."""
        files = tuple(sorted(self._files, key=lambda file: file.path))
        rows = [{"path": f.path, "size": f.size, "blake3": f.blake3.hex} for f in files]
        with (self.path / MANIFEST).open("xb", buffering=0) as stream:
            manifest = tomli_w.dumps({"schema": 1, **provenance, "files": rows})
            HashingFile(stream).write(manifest.encode())
        return files


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversion of which all is known but the bytes.

    write: writes them, into an empty directory, and tells how it goes.
    placed: as `Conversion` has it.
    """

    plan: Plan
    write: Callable[[ModelDirectory, Progress], tuple[OutputFile, ...]]
    placed: frozenset[str] = frozenset()

    def convert(self, directory: Path, progress: Progress) -> Conversion:
        """Write the model directory."""
        files = self.write(ModelDirectory(directory), progress)
        plan = self.plan
        return Conversion(plan.architecture, plan.source_size, files, self.placed, plan.parts)
