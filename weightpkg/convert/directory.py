"""A model directory being written: every byte is hashed on its way, and the manifest closes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w
from blake3 import blake3

from weightpkg.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

MANIFEST = "weightpkg.toml"


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

    @property
    def size(self) -> int:
        """Bytes written."""
        return sum(file.size for file in self.files if file.path not in self.placed)


class HashingFile:
    """A file being written in order."""

    def __init__(self, stream: FileIO, advance: Callable[[int], None]) -> None:
        self._stream = stream
        self._advance = advance
        self._hasher = blake3()
        self.size = 0

    def write(self, data: memoryview | bytes, /) -> None:
        """Write all of the bytes, however few the system takes at a time."""
        rest = memoryview(data)
        while rest.nbytes:
            rest = rest[self._stream.write(rest) :]
        self._hasher.update(data)
        self.size += len(data)
        self._advance(len(data))

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest("blake3", self._hasher.hexdigest())


class ModelDirectory:
    """Writes files into an empty directory and remembers what they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[OutputFile] = []

    @contextmanager
    def create(
        self, name: str, advance: Callable[[int], None] = lambda _: None
    ) -> Iterator[HashingFile]:
        """Open a new file for writing."""
        with (self.path / name).open("xb", buffering=0) as stream:
            output = HashingFile(stream, advance)
            yield output
        self._files.append(OutputFile(name, output.size, output.digest))

    def write(self, name: str, content: bytes) -> None:
        """Write a whole small file."""
        with self.create(name) as output:
            output.write(content)

    def expect(self, file: OutputFile) -> None:
        """Count on a file that the caller of the conversion puts there."""
        self._files.append(file)

    def finish(self, provenance: Mapping[str, object]) -> tuple[OutputFile, ...]:
        """Write the manifest: where the model comes from, and every file; return the files."""
        files = tuple(sorted(self._files, key=lambda file: file.path))
        rows = [{"path": f.path, "size": f.size, "blake3": f.blake3.hex} for f in files]
        with (self.path / MANIFEST).open("xb") as stream:
            stream.write(tomli_w.dumps({"schema": 1, **provenance, "files": rows}).encode())
        return files
