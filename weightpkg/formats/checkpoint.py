"""Checkpoints as Hugging Face's libraries save them: weights, config.json and tokenizer files.

A checkpoint is files by name, wherever they lie; only those that are known by name are ever opened.
Weights are read from safetensors files alone: a directory that has only pickles is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from weightpkg.errors import CheckpointError, SafetensorsError
from weightpkg.formats.checkpoint_files import (
    DOCUMENTS,
    INDEX_FILE,
    SINGLE_FILE,
    is_module_config,
)
from weightpkg.formats.json_text import JSON, MAX_MARKS, read_json
from weightpkg.formats.mapped import map_file
from weightpkg.formats.safetensors import SafetensorsCheckpoint, SafetensorsFile, find_weights
from weightpkg.formats.strangers import refuse_pickle

MAX_DOCUMENT_SIZE = 1024 * 1024


class Checkpoint:
    """The files of a model by their names in it, such as `1_Pooling/config.json`."""

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        """Take regular files that do not change; `name` is what to call the model in errors."""
        self.name = name
        self.files = dict(sorted(files.items()))

    @classmethod
    def find(cls, path: Path) -> Checkpoint:
        """Find the files that are known by name; none is opened.

        Args:
            path: a directory, or the one of its weights files that is meant: a safetensors file or
                the index of several.

        Raises:
            SafetensorsError: there are no weights, or more than one set, or they are no file.
            PickleError: all the weights that there are would be pickles.
        """
        directory = path if path.is_dir() else path.parent
        try:
            weights = find_weights(path, str(path))
        except SafetensorsError:
            _refuse_pickles(directory)
            raise
        if not weights.is_file():  # opening a pipe would wait for a writer
            raise SafetensorsError(str(weights), "file", "is not a regular file")
        name = str(path)
        files = {entry: directory / entry for entry in DOCUMENTS if (directory / entry).is_file()}
        files |= _module_configs(directory)
        if weights.suffix != ".json":
            return cls(name, {**files, SINGLE_FILE: weights})
        shards = {p.name: p for p in directory.glob("*.safetensors") if p.name != SINGLE_FILE}
        return cls(name, {**files, **shards, INDEX_FILE: weights})

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def open_weights(self) -> SafetensorsCheckpoint:
        """Open the tensors.

        Raises:
            SafetensorsError: there are none, more than one set, or a file breaks a rule.
        """
        found = [name for name in (SINGLE_FILE, INDEX_FILE) if name in self.files]
        if len(found) != 1:
            reason = f"has {'both' if found else 'neither'} of `{SINGLE_FILE}` and `{INDEX_FILE}`"
            raise SafetensorsError(self.name, "files", reason)
        if found == [INDEX_FILE]:
            return SafetensorsCheckpoint.open_index(
                self.files[INDEX_FILE], self.files, name=self.name
            )
        file = SafetensorsFile.open(self.files[SINGLE_FILE], name=f"{self.name}/{SINGLE_FILE}")
        return SafetensorsCheckpoint(self.name, {SINGLE_FILE: file})

    def content(self, name: str, *, max_bytes: int = MAX_DOCUMENT_SIZE) -> bytes:
        """Return all of a file that is there and not too large.

        Raises:
            CheckpointError: it is not.
        """
        if name not in self.files:
            raise self.error(name, "is not there")
        with map_file(self.files[name], f"{self.name}/{name}", CheckpointError) as content:
            if len(content) > max_bytes:
                raise self.error(name, f"{len(content):,} bytes, more than {max_bytes:,}")
            return content[:]

    def document(
        self, name: str, *, max_bytes: int = MAX_DOCUMENT_SIZE, max_marks: int = MAX_MARKS
    ) -> JSON:
        """Return what a JSON file says.

        Args:
            name: of the file.
            max_bytes: how large it may be.
            max_marks: how many commas and brackets it may have.

        Raises:
            CheckpointError: it is missing, too large, or no JSON.
        """
        try:
            return read_json(self.content(name, max_bytes=max_bytes), max_marks=max_marks)
        except ValueError as error:
            raise self.error(name, str(error)) from error

    def fields(
        self, name: str, *, max_bytes: int = MAX_DOCUMENT_SIZE, max_marks: int = MAX_MARKS
    ) -> dict[str, JSON]:
        """Return the fields of a JSON file that is an object; otherwise as `document`."""
        found = self.document(name, max_bytes=max_bytes, max_marks=max_marks)
        if not isinstance(found, dict):
            raise self.error(name, "is not an object")
        return found

    def error(self, name: str, reason: str, *, place: str = "file") -> CheckpointError:
        """An error about one of the files, to be raised by the caller."""
        return CheckpointError(f"{self.name}/{name}", place, reason)


def _module_configs(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the configurations of the parts that sentence-transformers puts a model together of."""
    for path in sorted(directory.glob("*/config.json")):
        name = path.relative_to(directory).as_posix()
        if is_module_config(name) and path.is_file():
            yield name, path


def _refuse_pickles(directory: Path) -> None:
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.stat().st_size:
                refuse_pickle(path)
