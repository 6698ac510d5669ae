"""GGUF files: their metadata by key and type, and their tensors' bytes without a copy.

The file is mapped, so that memory does not grow with it; it must not shrink while it is open.
What is in a header, and what is refused there, is in `gguf_header`.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from weightpkg.errors import GGUFError
from weightpkg.formats.gguf_header import GGUFTensor, Header, Value, read_header
from weightpkg.formats.mapped import forget, map_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GGUFFile", "GGUFTensor", "Value"]

T = TypeVar("T")


class GGUFFile:
    """An open file: `metadata` by key, `tensors` by name; both in the file's order."""

    def __init__(self, name: str, content: mmap.mmap, header: Header) -> None:
        self.name = name
        self.metadata = header.metadata
        self.tensors = header.tensors
        self._content = content

    @classmethod
    def open(cls, path: Path, *, name: str | None = None) -> GGUFFile:
        """Map a file and read its header.

        Args:
            path: a regular file.
            name: what to call it in errors, if not by its path.

        Raises:
            GGUFError: it cannot be read, is no GGUF file, or breaks a rule of the format.
        """
        name = name or str(path)
        content = map_file(path, name, GGUFError)
        try:
            header = read_header(name, content)
        except GGUFError:
            content.close()
            raise
        forget(content, 0, header.size)
        return cls(name, content, header)

    def close(self) -> None:
        """Unmap the file, or let it be unmapped with the last array of `rows` that is in use."""
        with suppress(BufferError):
            self._content.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, tensor: GGUFTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows as they lie in the file: (stop - start, row_bytes) uint8, read-only."""
        size = tensor.row_bytes
        count = (stop - start) * size
        raw = np.frombuffer(self._content, np.uint8, count, tensor.offset + start * size)
        return raw.reshape(stop - start, size)

    def release(self, tensor: GGUFTensor, start: int, stop: int) -> None:
        """Say that rows are done with, so that they no longer count as this process's memory.

        Arrays of them stay valid: they are read from the file again.
        """
        size = tensor.row_bytes
        forget(self._content, tensor.offset + start * size, tensor.offset + stop * size)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of the metadata.

        Args:
            key: such as `llama.block_count`.
            kind: str, int, float, bool or list.
            default: what to return where there is no such key; without it the key must be there.

        Raises:
            GGUFError: the key is missing or has a value of another kind.
        """
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                raise self.error(key, f"is missing ({_NAMES[kind]})")
            return default
        if not isinstance(value, kind) or _is_misread_bool(value, kind):
            raise self.error(key, f"must be {_NAMES[kind]}, not {_NAMES[type(value)]}")
        return value

    def array(self, key: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """Return an array of the metadata, all of whose elements are of one kind.

        Raises:
            GGUFError: as `get`, and where the elements are of another kind.
        """
        values: list[T] = self.get(key, list, default)
        first = values[0] if values else None
        if first is not None and (not isinstance(first, kind) or _is_misread_bool(first, kind)):
            found = _NAMES[type(first)]
            raise self.error(key, f"each element must be {_NAMES[kind]}, not {found}")
        return values

    def error(self, key: str, reason: str) -> GGUFError:
        """An error at one of the metadata's keys, to be raised by the caller."""
        return GGUFError(self.name, f"metadata key `{key}`", reason)


_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
    list: "an array",
}


def _is_misread_bool(value: object, kind: type) -> bool:
    """To Python true is also a whole number; in the file it is not."""
    return isinstance(value, bool) and kind is not bool
