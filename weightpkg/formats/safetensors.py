"""Safetensors checkpoints, one file or several with an index: tensors by name, without a copy.

Files are mapped, so that memory does not grow with them; they must not shrink while they are open.
What is in a file's header, and what is refused there, is in `safetensors_header`. An index says in
which file each tensor lies; files and index must agree on every one.
https://huggingface.co/docs/transformers/big_models#sharded-checkpoints (the index)
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from weightpkg.errors import SafetensorsError, shown
from weightpkg.formats.checkpoint_files import INDEX_FILE, SINGLE_FILE
from weightpkg.formats.json_text import JSON, read_json
from weightpkg.formats.mapped import forget, map_file
from weightpkg.formats.safetensors_header import (
    Header,
    SafetensorsTensor,
    is_tensor_name,
    read_header,
)
from weightpkg.package import RelativePath

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "INDEX_FILE",
    "SINGLE_FILE",
    "SafetensorsCheckpoint",
    "SafetensorsFile",
    "SafetensorsTensor",
    "find_weights",
    "read_index",
]

MAX_INDEX_SIZE = 25_000_000

_INDEX_FIELDS = {"metadata", "weight_map"}


class SafetensorsFile:
    """An open file: `metadata` by key, and `tensors` by name in the order of their bytes."""

    def __init__(self, name: str, content: mmap.mmap, header: Header) -> None:
        self.name = name
        self.metadata = header.metadata
        self.tensors = header.tensors
        self._content = content

    @classmethod
    def open(cls, path: Path, *, name: str | None = None) -> SafetensorsFile:
        """Map a file and read its header.

        Args:
            path: a regular file.
            name: what to call it in errors, if not by its path.

        Raises:
            SafetensorsError: it cannot be read, is no safetensors file, or breaks a rule of the
                format.
        """
        name = name or str(path)
        content = map_file(path, name, SafetensorsError)
        try:
            header = read_header(name, content)
        except SafetensorsError:
            content.close()
            raise
        forget(content, 0, header.size)
        return cls(name, content, header)

    def close(self) -> None:
        """Unmap the file, or let it be unmapped with the last of its arrays that is in use."""
        with suppress(BufferError):
            self._content.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def array(self, tensor: SafetensorsTensor) -> NDArray[np.generic]:
        """Return a tensor as it lies in the file, read-only, of its type's `words`.

        A type of less than a byte has several weights a word: the last axis is shorter then.
        """
        words = np.dtype(tensor.dtype.words)
        n_words = tensor.nbytes // words.itemsize
        values = np.frombuffer(self._content, words, n_words, tensor.start)
        return values.reshape((*tensor.shape[:-1], *_last_axis(tensor, words.itemsize)))

    def rows(self, tensor: SafetensorsTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows as they lie in the file: (stop - start, row_bytes) uint8, read-only."""
        size = tensor.row_bytes
        count = (stop - start) * size
        raw = np.frombuffer(self._content, np.uint8, count, tensor.start + start * size)
        return raw.reshape(stop - start, size)

    def release(self, tensor: SafetensorsTensor, start: int, stop: int) -> None:
        """Say that rows are done with, so that they no longer count as this process's memory.

        Arrays of them stay valid: they are read from the file again.
        """
        size = tensor.row_bytes
        forget(self._content, tensor.start + start * size, tensor.start + stop * size)


def _last_axis(tensor: SafetensorsTensor, word_bytes: int) -> tuple[int, ...]:
    """A tensor without axes has no last one either."""
    return (tensor.row_bytes // word_bytes,) if tensor.shape else ()


class SafetensorsCheckpoint:
    """All tensors of a model, in whichever of its open `files` they lie; closed together."""

    def __init__(self, name: str, files: dict[str, SafetensorsFile]) -> None:
        """Take open files by file name; a tensor may lie in one of them only."""
        self.name = name
        self.files = files
        self.tensors = {
            name: tensor for file in files.values() for name, tensor in file.tensors.items()
        }
        self._file_of = {tensor: file for file in files.values() for tensor in file.tensors}
        self._name_of = {tensor: name for name, file in files.items() for tensor in file.tensors}

    @classmethod
    def open(cls, path: Path, *, name: str | None = None) -> SafetensorsCheckpoint:
        """Open a model.

        Args:
            path: a safetensors file, an index (`.json`) beside its shards, or a directory that has
                `model.safetensors` or `model.safetensors.index.json`.
            name: what to call it in errors, if not by the paths of its files.

        Raises:
            SafetensorsError: there is none, a file breaks a rule, or index and files disagree.
        """
        path = find_weights(path, name or str(path))
        if path.suffix == ".json":
            return cls.open_index(path, name=name)
        file = SafetensorsFile.open(path, name=name)
        return cls(file.name, {path.name: file})

    @classmethod
    def open_index(
        cls, index: Path, files: Mapping[str, Path] | None = None, *, name: str | None = None
    ) -> SafetensorsCheckpoint:
        """Open an index and the shards that it names.

        Args:
            index: a JSON file.
            files: where the model's files lie, by file name; if not given, beside the index.
            name: what to call the model in errors, if not by the paths of its files.

        Raises:
            SafetensorsError: as `open`.
        """
        weight_map = _read_index_file(index, name or str(index))
        shards = {shard: index.parent / shard for shard in sorted(set(weight_map.values()))}
        if files is not None:
            shards = {shard: _given(shard, files, name or str(index)) for shard in shards}
        opened: dict[str, SafetensorsFile] = {}
        with ExitStack() as stack:
            for shard, path in shards.items():
                file = SafetensorsFile.open(path, name=f"{name}/{shard}" if name else None)
                opened[shard] = stack.enter_context(file)
            _check_shards(opened, weight_map)
            stack.pop_all()
        return cls(name or str(index), opened)

    def close(self) -> None:
        """Unmap every file, as `SafetensorsFile.close` does."""
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file_of(self, tensor: SafetensorsTensor) -> str:
        """Return the name of the file that a tensor lies in."""
        return self._name_of[tensor.name]

    def array(self, tensor: SafetensorsTensor) -> NDArray[np.generic]:
        """As `SafetensorsFile.array`."""
        return self._file_of[tensor.name].array(tensor)

    def rows(self, tensor: SafetensorsTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """As `SafetensorsFile.rows`."""
        return self._file_of[tensor.name].rows(tensor, start, stop)

    def release(self, tensor: SafetensorsTensor, start: int, stop: int) -> None:
        """As `SafetensorsFile.release`."""
        self._file_of[tensor.name].release(tensor, start, stop)


def _read_index_file(path: Path, name: str) -> dict[str, str]:
    with map_file(path, name, SafetensorsError) as content:
        if len(content) > MAX_INDEX_SIZE:
            reason = f"{len(content):,} bytes, more than {MAX_INDEX_SIZE:,}"
            raise SafetensorsError(name, "index", reason)
        return read_index(name, content[:])


def read_index(name: str, text: bytes) -> dict[str, str]:
    """Read an index: the file name of each tensor, which is a plain one.

    What else it says of the model (`total_size`) is not relied on: writers count it differently.

    Args:
        name: what to call it in errors.
        text: all of it.

    Raises:
        SafetensorsError: it is not one, or breaks a rule.
    """
    try:
        fields = read_json(text)
    except ValueError as error:
        raise SafetensorsError(name, "index", str(error)) from error
    if not isinstance(fields, dict) or not {"weight_map"} <= fields.keys() <= _INDEX_FIELDS:
        raise SafetensorsError(name, "index", "is not an object of metadata and weight_map alone")
    if not isinstance(fields.get("metadata", {}), dict):
        raise SafetensorsError(name, "`metadata`", "is not an object")
    entries = fields["weight_map"]
    if not isinstance(entries, dict) or not entries:
        raise SafetensorsError(name, "`weight_map`", "is not an object, or is empty")
    return {tensor: _read_entry(name, tensor, shard) for tensor, shard in entries.items()}


def _read_entry(name: str, tensor: str, shard: JSON) -> str:
    if not is_tensor_name(tensor):
        reason = f"the tensor name {shown(tensor)!r} is empty, not printable, overlong, or a path"
        raise SafetensorsError(name, "`weight_map`", reason)
    place = f"`weight_map`: tensor `{shown(tensor)}`"
    if not isinstance(shard, str):
        raise SafetensorsError(name, place, "its file is not a string")
    try:
        RelativePath(shard)
    except ValueError as error:
        reason = f"{shown(shard)!r} is not a plain file name"
        raise SafetensorsError(name, place, reason) from error
    if "/" in shard:
        raise SafetensorsError(name, place, f"`{shown(shard)}` is not in the index's own directory")
    return shard


def find_weights(path: Path, name: str) -> Path:
    """Return the file to begin with: `path`, or what it has if it is a directory.

    Raises:
        SafetensorsError: it is a directory that has none, or two; `name` is what to call it.
    """
    try:
        if not path.is_dir():
            return path
        found = [entry for entry in (SINGLE_FILE, INDEX_FILE) if (path / entry).exists()]
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise SafetensorsError(name, "file", reason) from error
    if not found:
        reason = f"has neither `{SINGLE_FILE}` nor `{INDEX_FILE}`"
        raise SafetensorsError(name, "directory", reason)
    if len(found) > 1:
        hint = "give the path of the one that is meant"
        reason = f"has both `{SINGLE_FILE}` and `{INDEX_FILE}`"
        raise SafetensorsError(name, "directory", reason, hint=hint)
    return path / found[0]


def _given(shard: str, files: Mapping[str, Path], name: str) -> Path:
    if shard not in files:
        reason = f"names `{shown(shard)}`, which is not among the model's files"
        raise SafetensorsError(name, "`weight_map`", reason)
    return files[shard]


def _check_shards(files: dict[str, SafetensorsFile], weight_map: dict[str, str]) -> None:
    """Refuse a tensor that is not in the file that the index says, and one in another."""
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].tensors:
            reason = "is not there, where the index says that it lies"
            raise SafetensorsError(files[shard].name, f"tensor `{shown(tensor)}`", reason)
    for shard, file in files.items():
        for tensor in file.tensors:
            if weight_map.get(tensor) != shard:
                reason = "is there, but the index " + (
                    f"says in `{weight_map[tensor]}`" if tensor in weight_map else "has no such"
                )
                raise SafetensorsError(file.name, f"tensor `{shown(tensor)}`", reason)
