"""The tokenizer of a model directory, and what it finds wrong as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from weightpkg.errors import RunError


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a model directory; RunError if it cannot be."""
    path = directory / "tokenizer.json"
    try:
        with tokenizing():
            return Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"`{path}` cannot be read: {error}") from error


@contextmanager
def tokenizing() -> Iterator[None]:
    """Say what a tokenizer finds wrong as a RunError."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the library's own are plain ones
            raise
        raise RunError(
            f"the tokenizer fails: {error}",
            hint="`weightpkg verify` tells whether the model is damaged",
        ) from error
